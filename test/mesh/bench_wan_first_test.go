package mesh

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/portolan/portolan/test/bench/figures"
)

// firstBytes: the first byte of a cold layer over a slow link, beside the first MiB,
// which is a unit: so long a client waits where nobody sends sub-states. The
// connection is up.
func (b *bench) firstBytes(t *testing.T, name string) {
	const rtt = 80 * time.Millisecond
	m := startFarMesh(t, farLinks{rtt: rtt}, []float64{100, 10})
	at := m.sites[1]
	img, _ := benchImage(t, *benchScale/20)
	m.sites[0].push(t, "prod/first:1", img)
	at.listed(t, "prod/first:1")
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at.host+"/v2/prod/first/blobs/"+manifest.Layers[0].Digest.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("admin", wanPassword)
	m.stats(t, true)
	start := time.Now()
	resp, err := (&http.Client{Transport: at.transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	first := time.Since(start)
	if _, err := io.ReadFull(resp.Body, make([]byte, 1<<20-1)); err != nil {
		t.Fatal(err)
	}
	unit := time.Since(start)
	st := m.stats(t, false)
	b.add(t, st, name+": first byte", first.Seconds()/rtt.Seconds(), "RTT", figures.AtMost(4), "")
	b.add(t, st, name+": first MiB", unit.Seconds()/rtt.Seconds(), "RTT", nil, "the first byte would come no sooner without sub-states")
}
