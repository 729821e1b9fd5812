package siblings

import "github.com/prometheus/client_golang/prometheus"

// Values of labels.
const (
	imageBegun   = "begun"
	imageRefused = "refused" // too many were under way

	blobBrought = "brought"
	blobHere    = "here" // by the time that it was looked for
	blobGivenUp = "given_up"
	blobFailed  = "failed"
)

type metrics struct {
	images, blobs *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		images: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_transfer_sibling_images_total", Help: "Images whose first missing blob was asked for: the rest was begun with, or too many were under way.",
		}, []string{"result"}),
		blobs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_transfer_sibling_blobs_total", Help: "Blobs of such images that nobody had asked for, by what became of them.",
		}, []string{"result"}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	if err := r.Register(m.images); err != nil {
		return err
	}
	if err := r.Register(m.blobs); err != nil {
		r.Unregister(m.images)
		return err
	}
	return nil
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r != nil {
		r.Unregister(m.images)
		r.Unregister(m.blobs)
	}
}
