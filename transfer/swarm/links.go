package swarm

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/identity"
)

// linkSeconds is over how many whole seconds a link's rate is taken: units of
// 1 MiB come every half second at 20 Mbit/s.
const linkSeconds = 10

// Link is what comes to this node from one site.
type Link struct {
	Site     string // that sends
	Received int64  // bytes of blobs since the start, checked or not
	Rate     float64
	// Left is what is missing of the blobs that come from there now: of one that
	// several sites send, the part that is to be expected at their rates. Blobs that
	// wait for their turn are not in it: nobody knows yet who will send them.
	Left int64
}

// ETA is how long what is left takes at the rate; 0: not known, or nothing is.
func (l Link) ETA() time.Duration {
	if l.Left <= 0 || l.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(l.Left) / l.Rate * float64(time.Second))
}

// Links tells it of each site that sent something since the start, or is to, by name.
func (s *Swarm) Links() []Link {
	now := time.Now()
	rates := map[identity.NodeID]float64{}
	links := map[string]*Link{}
	of := func(node identity.NodeID) *Link {
		site := s.site(node)
		if links[site] == nil {
			links[site] = &Link{Site: site}
		}
		return links[site]
	}
	s.arrivals.each(now, func(node identity.NodeID, total int64, rate float64) {
		rates[node] = rate
		l := of(node)
		l.Received += total
		l.Rate += rate
	})
	s.mu.Lock()
	flights := slices.Collect(maps.Values(s.flights))
	s.mu.Unlock()
	for _, f := range flights {
		left, senders := f.expected()
		for node, bytes := range share(left, senders, rates) {
			of(node).Left += bytes
		}
	}
	return slices.SortedFunc(func(yield func(Link) bool) {
		for _, l := range links {
			if !yield(*l) {
				return
			}
		}
	}, func(a, b Link) int { return cmp.Compare(a.Site, b.Site) })
}

// expected gives what a flight lacks, and who sends it.
func (f *flight) expected() (left int64, senders []identity.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.layout == nil || f.over {
		return 0, nil
	}
	left = max(0, f.layout.size-int64(f.have)*f.layout.unitSize)
	for node, l := range f.lanes {
		if len(l.asked) > 0 {
			senders = append(senders, node)
		}
	}
	if len(senders) == 0 && f.from != (identity.NodeID{}) {
		senders = append(senders, f.from)
	}
	return left, senders
}

// share parts what is left among those that send it, by their rates; evenly while
// none is known.
func share(left int64, senders []identity.NodeID, rates map[identity.NodeID]float64) map[identity.NodeID]int64 {
	sum := 0.0
	for _, node := range senders {
		sum += rates[node]
	}
	out := make(map[identity.NodeID]int64, len(senders))
	for _, node := range senders {
		part := 1 / float64(len(senders))
		if sum > 0 {
			part = rates[node] / sum
		}
		out[node] = int64(float64(left) * part)
	}
	return out
}

// received notes bytes of blobs that came from a peer.
func (s *Swarm) received(from identity.NodeID, n int) {
	s.metrics.bytesReceived.WithLabelValues(from.String()).Add(float64(n))
	s.arrivals.add(from, n, time.Now())
}

// arrivals counts what came from each peer. Peers are members of the mesh, so
// they are few.
type arrivals struct {
	mu    sync.Mutex
	peers map[identity.NodeID]*arrival
}

// arrival counts by seconds: the one that is not over yet, and those before.
type arrival struct {
	total  int64
	second int64 // of the last count
	counts [linkSeconds + 1]int64
}

// turn forgets the seconds that are too old at another one.
func (a *arrival) turn(second int64) {
	for a.second < second {
		if second-a.second > int64(len(a.counts)) {
			a.counts, a.second = [linkSeconds + 1]int64{}, second
			return
		}
		a.second++
		a.counts[a.second%int64(len(a.counts))] = 0
	}
}

func (as *arrivals) add(node identity.NodeID, n int, now time.Time) {
	as.mu.Lock()
	defer as.mu.Unlock()
	a := as.peers[node]
	if a == nil {
		if as.peers == nil {
			as.peers = map[identity.NodeID]*arrival{}
		}
		a = &arrival{second: now.Unix()}
		as.peers[node] = a
	}
	a.turn(now.Unix())
	a.total += int64(n)
	a.counts[a.second%int64(len(a.counts))] += int64(n)
}

// each tells of all peers: what came in all, and in a second, in bytes.
func (as *arrivals) each(now time.Time, fn func(node identity.NodeID, total int64, rate float64)) {
	as.mu.Lock()
	defer as.mu.Unlock()
	for node, a := range as.peers {
		a.turn(now.Unix())
		sum := int64(0)
		for i, n := range a.counts {
			if int64(i) != a.second%int64(len(a.counts)) { // that one is not over
				sum += n
			}
		}
		fn(node, a.total, float64(sum)/linkSeconds)
	}
}

// linkCollector reads the links when it is asked.
type linkCollector struct{ s *Swarm }

var (
	linkRateDesc = prometheus.NewDesc("portolan_transfer_link_bytes_per_second",
		"Bytes of blobs that come from a site in a second, over the last ten.", []string{"site"}, nil)
	linkLeftDesc = prometheus.NewDesc("portolan_transfer_link_left_bytes",
		"Bytes missing of the blobs that come from a site now.", []string{"site"}, nil)
	linkReceivedDesc = prometheus.NewDesc("portolan_transfer_link_received_bytes_total",
		"Bytes of blobs received from a site, checked or not.", []string{"site"}, nil)
)

func (c linkCollector) Describe(out chan<- *prometheus.Desc) {
	out <- linkRateDesc
	out <- linkLeftDesc
	out <- linkReceivedDesc
}

func (c linkCollector) Collect(out chan<- prometheus.Metric) {
	for _, l := range c.s.Links() {
		out <- prometheus.MustNewConstMetric(linkRateDesc, prometheus.GaugeValue, l.Rate, l.Site)
		out <- prometheus.MustNewConstMetric(linkLeftDesc, prometheus.GaugeValue, float64(l.Left), l.Site)
		out <- prometheus.MustNewConstMetric(linkReceivedDesc, prometheus.CounterValue, float64(l.Received), l.Site)
	}
}
