package sync

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg       prometheus.Registerer
	all       []prometheus.Collector
	exchanges *prometheus.CounterVec
	pulls     *prometheus.CounterVec
	pages     *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	feed      prometheus.Counter
	asks      *prometheus.CounterVec
	hints     prometheus.Counter
	mismatch  prometheus.Counter
	repaired  prometheus.Counter

	falseProofs *prometheus.CounterVec
}

func newMetrics(s *Sync, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		reg: reg,
		exchanges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_transfer_exchanges_total", Help: "Exchanges of catalogue heads that this node asked for.",
		}, []string{"outcome"}),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_transfer_pulls_total", Help: "Pulls of one project's catalogue from one peer.",
		}, []string{"outcome"}),
		pages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_transfer_pages_total", Help: "Catalogue pages moved.",
		}, []string{"direction"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_transfer_catalogue_bytes", Help: "Bytes of catalogue pages and feeds moved.",
		}, []string{"direction"}),
		feed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portolan_transfer_feed_entries_total", Help: "Entries of other stores' feeds taken over.",
		}),
		asks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_transfer_questions_total", Help: "Questions to other nodes about what they hold.",
		}, []string{"outcome"}),
		hints: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portolan_transfer_hints_total", Help: "Announcements of other nodes heard by gossip.",
		}),
		mismatch: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portolan_transfer_check_mismatches_total", Help: "Projects found with equal vectors and unequal checks: rows are missing somewhere.",
		}),
	}
	m.repaired = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "portolan_transfer_hints_repaired_total", Help: "Hints about what other stores hold that the hourly comparison found wrong.",
	})
	m.falseProofs = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "portolan_transfer_false_proofs_total", Help: "Proofs of content by which a node showed something else.",
	}, []string{"node"})
	m.all = []prometheus.Collector{m.falseProofs, m.repaired, m.exchanges, m.pulls, m.pages, m.bytes, m.feed, m.asks, m.hints, m.mismatch, peerCollector{s}}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := reg.Register(c); err != nil {
			for _, done := range m.all[:i] {
				reg.Unregister(done)
			}
			return nil, fmt.Errorf("register the exchange's metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

// peerCollector reads the peers' state when it is asked: a removed site's series
// end with its link.
type peerCollector struct{ s *Sync }

var (
	lagDesc = prometheus.NewDesc("portolan_transfer_lag_seconds",
		"How long ago everything that a site then had was last known to be here; if it never was: how long this node runs.", []string{"site"}, nil)
	offsetDesc = prometheus.NewDesc("portolan_transfer_clock_offset_seconds",
		"A site's clock minus this one's.", []string{"site"}, nil)
)

func (c peerCollector) Describe(out chan<- *prometheus.Desc) {
	out <- lagDesc
	out <- offsetDesc
}

// Collect tells of each site once, by the node of it that this one knows most of.
func (c peerCollector) Collect(out chan<- prometheus.Metric) {
	lag, offset := map[string]float64{}, map[string]float64{}
	now := c.s.cfg.Now()
	for _, p := range c.s.Peers() {
		if p.Site == "" {
			continue
		}
		since := p.SyncedAt
		if since.IsZero() {
			since = c.s.began
		}
		behind := max(0, now.Sub(since).Seconds())
		if known, ok := lag[p.Site]; !ok || behind < known {
			lag[p.Site] = behind
		}
		if !p.SyncedAt.IsZero() {
			offset[p.Site] = p.Offset.Seconds()
		}
	}
	for site, v := range lag {
		out <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, v, site)
	}
	for site, v := range offset {
		out <- prometheus.MustNewConstMetric(offsetDesc, prometheus.GaugeValue, v, site)
	}
}
