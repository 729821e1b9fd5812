package blobs

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a bucket: how its calls went.
type metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

func newMetrics() metrics {
	return metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_blobs_bucket_calls_total",
			Help: "Calls on the bucket by kind (read, write, delete) and result (ok, missing, unavailable, cancelled).",
		}, []string{"call", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "portolan_blobs_bucket_call_seconds",
			Help:    "Time until the bucket answered: for reads the first byte, for writes all of it.",
			Buckets: []float64{.005, .02, .1, .5, 2, 10, 60},
		}, []string{"call"}),
	}
}

const (
	callRead   = "read"
	callWrite  = "write"
	callDelete = "delete"
)

func (m *metrics) note(call string, begun time.Time, err error) {
	result := "ok"
	switch {
	case err == nil:
	case errors.Is(err, errNoObject):
		result = "missing"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		result = "cancelled"
	default:
		result = "unavailable"
	}
	m.calls.WithLabelValues(call, result).Inc()
	m.seconds.WithLabelValues(call).Observe(time.Since(begun).Seconds())
}

// Describe implements prometheus.Collector, for a store on a bucket.
func (s *Store) Describe(ch chan<- *prometheus.Desc) {
	s.objects.metrics.calls.Describe(ch)
	s.objects.metrics.seconds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (s *Store) Collect(ch chan<- prometheus.Metric) {
	s.objects.metrics.calls.Collect(ch)
	s.objects.metrics.seconds.Collect(ch)
}
