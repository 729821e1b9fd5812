package v2

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	refused *prometheus.CounterVec
	served  *prometheus.CounterVec
	pushed  *prometheus.CounterVec
}

// Values of labels.
const (
	fromStore  = "store"  // held here
	fromMesh   = "mesh"   // arriving while it was served
	fromBucket = "bucket" // by the bucket, after a redirect

	pushedBlob     = "blob"
	pushedMount    = "mount"
	pushedManifest = "manifest"
)

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_registryapi_refused_total", Help: "Requests to /v2/ answered with an error, by the specification's code.",
		}, []string{"code"}),
		served: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_registryapi_blobs_served_total", Help: "Blobs served, by where they came from: this site's store, the mesh while the client waited, or a redirect to this site's bucket.",
		}, []string{"source"}),
		pushed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_registryapi_pushed_total", Help: "Blobs, mounts and manifests accepted.",
		}, []string{"kind"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.refused, m.served, m.pushed} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("registryapi/v2: register metrics: %w", err)
		}
	}
	return m, nil
}
