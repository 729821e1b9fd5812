package catalog

import "github.com/prometheus/client_golang/prometheus"

// metrics of one catalogue. They are counted always and shown if registered.
type metrics struct {
	requests, commits, bytes prometheus.Counter
	conflicts                prometheus.Counter
	registry                 prometheus.Registerer
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "portolan_catalog_" + name, Help: help})
	}
	return &metrics{
		requests:  counter("requests_total", "Requests that wrote to the catalogue."),
		commits:   counter("commits_total", "Synced transactions; fewer than requests when they are gathered."),
		bytes:     counter("written_bytes_total", "Keys and values written."),
		conflicts: counter("conflicts_total", "Concurrent tag writes made here that lost."),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.commits, m.bytes, m.conflicts}
}

func (m *metrics) register(r prometheus.Registerer) error {
	m.registry = r
	for _, x := range m.all() {
		if err := r.Register(x); err != nil {
			m.unregister()
			return err
		}
	}
	return nil
}

func (m *metrics) unregister() {
	if m.registry != nil {
		for _, x := range m.all() {
			m.registry.Unregister(x)
		}
	}
}

func (m *metrics) group(g *group) {
	m.commits.Inc()
	m.requests.Add(float64(len(g.waiting)))
	m.bytes.Add(float64(g.size))
	for _, b := range g.batches {
		m.conflicts.Add(float64(b.lost))
	}
}
