package peer

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	connections    prometheus.GaugeFunc
	lines          prometheus.GaugeFunc
	windows        prometheus.GaugeFunc
	windowRefusals prometheus.Counter
	streamsShed    prometheus.Counter
	dialFailures   prometheus.Counter
	refusals       *prometheus.CounterVec
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
		windows: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "portolan_transfer_peer_window_bytes",
			Help: "Receive windows of all streams: what peers may send and nobody has read.",
		}, func() float64 { return float64(h.windowBytes()) }),
		windowRefusals: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portolan_transfer_peer_window_refusals_total",
			Help: "Receive windows that did not grow for want of memory: transfers over long links are slower for it.",
		}),
		streamsShed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portolan_transfer_peer_streams_shed_total",
			Help: "Streams that were reset because their peer had more than others, and there were too many.",
		}),
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

// windowBytes is what the resource manager has given out.
func (h *Host) windowBytes() (n int64) {
	_ = h.h.Network().ResourceManager().ViewSystem(func(s network.ResourceScope) error {
		n = s.Stat().Memory
		return nil
	}) // fails only as its function does
	return n
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.connections, m.lines, m.windows, m.windowRefusals, m.streamsShed, m.dialFailures, m.refusals}
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
