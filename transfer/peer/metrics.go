package peer

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	connections  prometheus.GaugeFunc
	lines        prometheus.GaugeFunc
	dialFailures prometheus.Counter
	refusals     *prometheus.CounterVec
}

func newMetrics(h *Host) *metrics {
	return &metrics{
		connections: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "portolan_transfer_peer_connections",
			Help: "Peers that this node has a data connection with.",
		}, func() float64 { return float64(len(h.h.Network().Peers())) }),
		lines: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "portolan_transfer_peer_lines",
			Help: "Further connections that this node dialed to take content on.",
		}, func() float64 { return float64(h.lines.count()) }),
		dialFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portolan_transfer_peer_dial_failures_total",
			Help: "Data connections to members that could not be made.",
		}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_transfer_peer_refusals_total",
			Help: "Data connections refused, by reason.",
		}, []string{"reason"}),
	}
}

func (m *metrics) refuse(reason string) { m.refusals.WithLabelValues(reason).Inc() }

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.connections, m.lines, m.dialFailures, m.refusals}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for i, c := range m.all() {
		if err := r.Register(c); err != nil {
			for _, done := range m.all()[:i] {
				r.Unregister(done)
			}
			return err
		}
	}
	return nil
}

func (m *metrics) unregister(r prometheus.Registerer) {
	for _, c := range m.all() {
		r.Unregister(c)
	}
}
