package swarm

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	unitsSent     prometheus.Counter
	bytesSent     prometheus.Counter
	unitsSpared   prometheus.Counter
	refused       *prometheus.CounterVec
	bytesReceived *prometheus.CounterVec
	unitsReceived prometheus.Counter
	badUnits      *prometheus.CounterVec
	badLists      *prometheus.CounterVec
	badHaves      *prometheus.CounterVec
	disputes      prometheus.Counter
	inflight      prometheus.GaugeFunc
	failovers     *prometheus.CounterVec
	flights       *prometheus.CounterVec
	active        prometheus.GaugeFunc
	links         linkCollector
}

func newMetrics(s *Swarm) *metrics {
	name := func(n string) string { return "portolan_transfer_swarm_" + n }
	counter := func(n, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name(n), Help: help})
	}
	vec := func(n, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(n), Help: help}, labels)
	}
	return &metrics{
		links:         linkCollector{s},
		unitsSent:     counter("sent_units_total", "Units of blobs sent to peers."),
		bytesSent:     counter("sent_bytes_total", "Bytes of blobs sent to peers, without protocol."),
		unitsSpared:   counter("spared_units_total", "Units not sent to a peer because another one that receives the blob was given them."),
		refused:       vec("refused_requests_total", "Requests of peers that were refused.", "status"),
		bytesReceived: vec("received_bytes_total", "Bytes of blobs received from a peer, checked or not.", "node"),
		unitsReceived: counter("received_units_total", "Units of blobs received and found right."),
		badUnits:      vec("bad_units_total", "Units from a peer that are not the blob's, or came with false sub-states, when it is certain that the peer is wrong.", "node"),
		badLists:      vec("bad_lists_total", "Records and unit lists from a peer that were refused, and those that it signed and that were proven false.", "node"),
		badHaves:      vec("bad_haves_total", "Messages of a peer about units that it can't have.", "node"),
		disputes:      counter("disputed_records_total", "Pairs of signed records that name different unit lists of one blob: one signer lied or is broken."),
		inflight: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name("inflight_bytes"), Help: "Bytes asked for of peers that have not come yet.",
		}, func() float64 { return float64(s.pipes.flying()) }),
		failovers: vec("failovers_total", "Times that a blob on its way went on from another holder.", "reason"),
		flights:   vec("fetches_total", "Blobs that were fetched from peers, by how it ended.", "result"),
		active: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: name("active_fetches"), Help: "Blobs on their way now.",
		}, func() float64 { return float64(s.active()) }),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{
		m.unitsSent, m.bytesSent, m.unitsSpared, m.refused, m.bytesReceived, m.unitsReceived,
		m.badUnits, m.badLists, m.badHaves, m.disputes, m.inflight, m.failovers, m.flights, m.active, m.links,
	}
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
