package transfer

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reg       prometheus.Registerer
	all       []prometheus.Collector
	artifacts prometheus.Counter
	failures  prometheus.Counter
	scans     prometheus.Histogram
}

func newMetrics(r *Reconciler, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		reg: reg,
		artifacts: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portolan_transfer_artifacts_total", Help: "Artifacts that were brought here whole, by rules or as their home.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "portolan_transfer_attempts_failed_total", Help: "Attempts to bring an artifact here that ended early.",
		}),
		scans: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "portolan_transfer_scan_seconds", Help: "Time to compare a project with what is held.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 10),
		}),
	}
	m.all = []prometheus.Collector{m.artifacts, m.failures, m.scans, queueCollector{r}, behindCollector{r}}
	if reg == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := reg.Register(c); err != nil {
			for _, done := range m.all[:i] {
				reg.Unregister(done)
			}
			return nil, fmt.Errorf("register the reconciler's metrics: %w", err)
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

// queueCollector reads the queue when it is asked.
type queueCollector struct{ r *Reconciler }

var queueDesc = prometheus.NewDesc("portolan_transfer_queue_artifacts",
	"Artifacts that are wanted here and not whole.", []string{"state"}, nil)

func (c queueCollector) Describe(out chan<- *prometheus.Desc) { out <- queueDesc }

func (c queueCollector) Collect(out chan<- prometheus.Metric) {
	ready, running, failed := c.r.queue.lengths()
	for state, n := range map[string]int{"ready": ready, "running": running, "failed": failed} {
		out <- prometheus.MustNewConstMetric(queueDesc, prometheus.GaugeValue, float64(n), state)
	}
}
