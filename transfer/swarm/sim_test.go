package swarm

import (
	"cmp"
	pq "container/heap"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// sim is a network on a virtual clock: uplinks, downlinks and delays, with the
// scheduler, the windows and the holder's bookkeeping of real nodes. Nothing in
// it is random.
type sim struct {
	t     *testing.T
	now   time.Time
	rtt   time.Duration
	unit  float64
	sizes []int      // of the blobs, in units
	nodes []*simNode // the first has the blobs
	flows []*simFlow
	queue simEvents
	seq   int
	stale bool // flows began or ended since the links were shared
}

type simNode struct {
	s        *sim
	i        int
	id       identity.NodeID
	up, down float64 // bytes a second
	start    time.Duration

	blobs   []*simBlob
	pipes   map[int]*pipe
	done    time.Time
	sent    float64 // units
	came    int
	telling bool
	dead    bool
	deaf    bool // keeps its connections and sends nothing
	lies    bool
	bad     map[int]int // wrong units by node
	quiet   map[int]time.Time
}

// simBlob is one blob at one node.
type simBlob struct {
	sched *schedule // nil: the holder
	crowd *crowd
	news  []uint32
}

// simFlow is a stream of one blob: requests in order, one on the wire.
type simFlow struct {
	from, to *simNode
	blob     int
	pending  []simUnit
	left     float64 // of the unit on the wire; 0: none
	rate     float64
}

// simUnit is a request for one unit.
type simUnit struct {
	unit        int
	unlessGiven time.Duration
	asked       time.Time
}

type simEvent struct {
	at  time.Time
	seq int
	do  func()
}

type simEvents []simEvent

func (q simEvents) Len() int { return len(q) }
func (q simEvents) Less(i, j int) bool {
	return cmp.Or(q[i].at.Compare(q[j].at), cmp.Compare(q[i].seq, q[j].seq)) < 0
}
func (q simEvents) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simEvents) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simEvents) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

const mbit = 1e6 / 8

// newSim has a holder and receivers with such uplinks, in Mbit/s.
func newSim(t *testing.T, sizes []int, rtt time.Duration, ups ...float64) *sim {
	s := &sim{t: t, now: time.Unix(1_000_000, 0), rtt: rtt, unit: mib, sizes: sizes}
	for i, up := range ups {
		node := &simNode{
			s: s, i: i, up: up * mbit, down: up * mbit, pipes: map[int]*pipe{},
			bad: map[int]int{}, quiet: map[int]time.Time{}, start: time.Duration(i) * 17 * time.Millisecond,
		}
		node.id[0], node.id[1] = byte(i+1), byte(i*37)
		for b, n := range sizes {
			blob := &simBlob{crowd: newCrowd()}
			if i > 0 {
				blob.sched = newSchedule(digest.FromString(fmt.Sprint("simulated ", b)), receiver{node: node.id}, n)
			}
			node.blobs = append(node.blobs, blob)
		}
		s.nodes = append(s.nodes, node)
	}
	return s
}

// units are those of all blobs.
func (s *sim) units() int {
	sum := 0
	for _, n := range s.sizes {
		sum += n
	}
	return sum
}

func (n *simNode) left() int {
	sum := 0
	for _, b := range n.blobs {
		sum += b.sched.left
	}
	return sum
}

func (s *sim) after(d time.Duration, do func()) {
	s.seq++
	pq.Push(&s.queue, simEvent{s.now.Add(d), s.seq, do})
}

// run goes on until every living receiver has the blob.
func (s *sim) run() {
	s.t.Helper()
	for _, n := range s.nodes[1:] {
		s.after(n.start, n.begin)
	}
	end := s.now.Add(10 * time.Minute)
	for s.now.Before(end) {
		if !slices.ContainsFunc(s.nodes[1:], func(n *simNode) bool { return !n.dead && !n.deaf && n.done.IsZero() }) {
			return
		}
		s.share()
		next := end
		if len(s.queue) > 0 {
			next = s.queue[0].at
		}
		var landing *simFlow
		for _, f := range s.flows {
			if f.left > 0 && f.rate > 0 {
				if at := s.now.Add(time.Duration(math.Ceil(f.left / f.rate * 1e9))); at.Before(next) {
					next, landing = at, f
				}
			}
		}
		passed := next.Sub(s.now).Seconds()
		for _, f := range s.flows {
			if f.left > 0 {
				f.left = max(1, f.left-passed*f.rate) // its own event is the end
			}
		}
		s.now = next
		if landing != nil {
			landing.landed()
		} else if len(s.queue) > 0 {
			pq.Pop(&s.queue).(simEvent).do()
		}
	}
	for _, n := range s.nodes[1:] {
		for b, blob := range n.blobs {
			for i := range s.sizes[b] {
				if !blob.sched.have.has(i) {
					s.t.Logf("node %d waits for unit %d of blob %d: on its way %v, taken %v, %d have it", n.i, i, b, blob.sched.flying[i], blob.sched.taken.has(i), blob.sched.spread[i])
				}
			}
		}
	}
	s.t.Fatal("it does not end")
}

// share gives each flow its part of the links, fairly.
func (s *sim) share() {
	if !s.stale {
		return
	}
	s.stale = false
	type link struct {
		free  float64
		flows int
	}
	up, down := make([]link, len(s.nodes)), make([]link, len(s.nodes))
	var open []*simFlow
	for i, n := range s.nodes {
		up[i].free, down[i].free = n.up, n.down
	}
	for _, f := range s.flows {
		f.rate = 0
		if f.left > 0 && !f.from.dead && !f.from.deaf && !f.to.dead {
			open = append(open, f)
			up[f.from.i].flows++
			down[f.to.i].flows++
		}
	}
	for len(open) > 0 {
		least := math.Inf(1)
		for _, f := range open {
			least = min(least, up[f.from.i].free/float64(up[f.from.i].flows), down[f.to.i].free/float64(down[f.to.i].flows))
		}
		full := func(l link) bool { return l.free/float64(l.flows) <= least*(1+1e-9) }
		var rest, fixed []*simFlow
		for _, f := range open {
			if full(up[f.from.i]) || full(down[f.to.i]) {
				fixed = append(fixed, f)
			} else {
				rest = append(rest, f)
			}
		}
		for _, f := range fixed {
			f.rate = least
			for _, l := range []*link{&up[f.from.i], &down[f.to.i]} {
				l.free -= least
				l.flows--
			}
		}
		open = rest
	}
}

func (n *simNode) begin() {
	s := n.s
	for b := range n.blobs {
		n.blobs[b].sched.holder(s.nodes[0].id)
		// The watch goes out with the request for the record.
		s.after(s.rtt/2, func() {
			s.nodes[0].blobs[b].crowd.watchers[n.id] = &watched{}
			s.nodes[0].tellMembers(b)
		})
	}
	s.after(s.rtt, n.tick)
}

func (n *simNode) tellMembers(b int) {
	s := n.s
	for _, o := range s.nodes[1:] {
		if n.blobs[b].crowd.watchers[o.id] == nil {
			continue
		}
		members := n.blobs[b].crowd.receivers(o.id)
		s.after(s.rtt/2, func() {
			sched := o.blobs[b].sched
			sched.receivers(members)
			for _, m := range members {
				p := s.node(m.node)
				if sched.peers[m.node] != nil || o.bad[p.i] >= maxStrikes || p.dead {
					continue
				}
				sched.partial(m.node, newBitmap(s.sizes[b]))
				s.after(s.rtt, func() { // its bitmap
					if sched.peers[m.node] != nil {
						sched.partial(m.node, slices.Clone(p.blobs[b].sched.have))
						o.fill()
					}
				})
			}
			o.fill()
		})
	}
}

func (s *sim) node(id identity.NodeID) *simNode { return s.nodes[int(id[0])-1] }

func (n *simNode) tick() {
	if n.dead || n.left() == 0 {
		return
	}
	for _, f := range slices.Clone(n.s.flows) {
		if f.to != n || len(f.pending) == 0 {
			continue
		}
		if n.s.now.Sub(n.quiet[f.from.i]) > quietFor && (f.from.dead || f.from.deaf) {
			n.drop(f.from)
		}
	}
	n.fill()
	n.s.after(100*time.Millisecond, n.tick)
}

// drop gives a peer up.
func (n *simNode) drop(p *simNode) {
	for _, b := range n.blobs {
		b.sched.lost(p.id)
		b.sched.leave(p.id)
	}
	delete(n.pipes, p.i)
	n.bad[p.i] = maxStrikes
	n.s.stale = true
	n.s.flows = slices.DeleteFunc(n.s.flows, func(f *simFlow) bool { return f.to == n && f.from == p })
}

func (n *simNode) pipe(i int) *pipe {
	if n.pipes[i] == nil {
		n.pipes[i] = &pipe{waiting: map[*waiter]class{}}
	}
	return n.pipes[i]
}

// fill asks for what there is room for; earlier blobs come first.
func (n *simNode) fill() {
	s := n.s
	if n.dead || n.deaf {
		return
	}
	for _, p := range s.nodes {
		for b, blob := range n.blobs {
			if blob.sched.peers[p.id] == nil {
				continue
			}
			pi := n.pipe(p.i)
			for {
				blob.sched.paced(p.id, pi.unitTook(s.now))
				room := pi.room(classReplication, int64(s.unit), maxRun*int64(s.unit)) / int64(s.unit)
				o, ok := blob.sched.next(p.id, int(room), s.now, nil)
				if !ok {
					break
				}
				if pi.total() == 0 {
					n.quiet[p.i] = s.now
				}
				pi.ask(classReplication, int64(o.n)*int64(s.unit), s.now)
				asked := s.now
				s.after(s.rtt/2, func() {
					f := s.flow(p, n, b)
					for i := range o.n {
						f.pending = append(f.pending, simUnit{o.first + i, o.unlessGiven, asked})
					}
					f.send()
				})
			}
		}
	}
}

func (s *sim) flow(from, to *simNode, blob int) *simFlow {
	for _, f := range s.flows {
		if f.from == from && f.to == to && f.blob == blob {
			return f
		}
	}
	f := &simFlow{from: from, to: to, blob: blob}
	s.flows = append(s.flows, f)
	return f
}

// send puts the next unit on the wire.
func (f *simFlow) send() {
	s, blob := f.from.s, f.from.blobs[f.blob]
	for f.left == 0 && len(f.pending) > 0 && !f.from.dead {
		o := f.pending[0]
		if blob.sched != nil && !blob.sched.have.has(o.unit) {
			s.t.Fatal("a unit was asked for that the peer has not")
		}
		if blob.crowd.claim(o.unit, f.to.id, o.unlessGiven, s.now) {
			f.left = s.unit
			s.stale = true
			return
		}
		f.pending = f.pending[1:]
		s.after(s.rtt/2, func() {
			f.to.pipe(f.from.i).arrived(classReplication, int64(s.unit), true, s.now)
			f.to.blobs[f.blob].sched.refused(o.unit, f.from.id, s.now)
			f.to.fill()
		})
	}
}

func (f *simFlow) landed() {
	s, o := f.from.s, f.pending[0]
	f.left = 0
	s.stale = true
	f.pending = f.pending[1:]
	f.from.sent++
	f.send()
	s.after(s.rtt/2, func() { f.to.take(f.from, f.blob, o) })
}

func (n *simNode) take(from *simNode, b int, o simUnit) {
	s := n.s
	if n.dead || n.bad[from.i] >= maxStrikes {
		return
	}
	n.came++
	n.quiet[from.i] = s.now
	n.pipe(from.i).answered(s.rtt)
	n.pipe(from.i).arrived(classReplication, int64(s.unit), false, s.now)
	n.pipe(from.i).took(s.now.Sub(o.asked))
	blob := n.blobs[b]
	if from.lies {
		blob.sched.landed(o.unit, from.id)
		if n.bad[from.i]++; n.bad[from.i] >= maxStrikes {
			n.drop(from)
		}
		n.fill()
		return
	}
	had := blob.sched.have.has(o.unit)
	blob.sched.got(o.unit, from.id)
	if !had {
		blob.news = append(blob.news, uint32(o.unit))
		n.tell()
	}
	if n.done.IsZero() && n.left() == 0 {
		n.done = s.now
	}
	n.fill()
}

// tell sends what came, at most once in haveEvery.
func (n *simNode) tell() {
	if n.telling || n.deaf {
		return
	}
	s := n.s
	n.telling = true
	s.after(haveEvery, func() {
		n.telling = false
		for b, blob := range n.blobs {
			news := blob.news
			blob.news = nil
			for _, o := range s.nodes[1:] {
				if len(news) == 0 || o == n || o.dead || o.bad[n.i] >= maxStrikes {
					continue
				}
				s.after(s.rtt/2, func() {
					sched := o.blobs[b].sched
					if sched.peers[n.id] != nil && !sched.gained(n.id, news) {
						s.t.Fatal("a delta was refused")
					}
					o.fill()
				})
			}
		}
	})
}

// took is when the last of the nodes was done, and the copies that the holder
// sent.
func (s *sim) took(nodes []*simNode) (time.Duration, float64) {
	last := time.Duration(0)
	for _, n := range nodes {
		if !n.done.IsZero() {
			last = max(last, n.done.Sub(time.Unix(1_000_000, 0)))
		}
	}
	return last, s.nodes[0].sent / float64(s.units())
}

// bound is max(F/u_s, F/d_min, N*F/(u_s+sum u_i)) for the nodes.
func (s *sim) bound(nodes []*simNode) time.Duration {
	f := float64(s.units()) * s.unit
	sum, slowest := s.nodes[0].up, math.Inf(1)
	for _, n := range nodes {
		sum += n.up
		slowest = min(slowest, n.down)
	}
	t := max(f/s.nodes[0].up, f/slowest, float64(len(nodes))*f/sum)
	return time.Duration(t * 1e9)
}

// shares makes a node say what it can send.
func (n *simNode) shares(mbits uint32) {
	for _, b := range n.blobs {
		b.sched.self.share = mbits
	}
}

func same(n int, rate float64) []float64 { return slices.Repeat([]float64{rate}, n) }
