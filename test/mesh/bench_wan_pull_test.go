package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
)

// drain pulls an image at a site and forgets it, checking digests. It gives the
// time to the first byte of a layer, too.
func (f *farSite) drain(ctx context.Context, ref string, img v1.Image) error {
	manifest, err := img.Manifest()
	if err != nil {
		return err
	}
	repo, _, _ := strings.Cut(ref, ":")
	errs := make([]error, len(manifest.Layers))
	var wg sync.WaitGroup
	for i, l := range manifest.Layers {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.host+"/v2/"+repo+"/blobs/"+l.Digest.String(), nil)
			if err != nil {
				errs[i] = err
				return
			}
			req.SetBasicAuth("admin", wanPassword)
			resp, err := (&http.Client{Transport: f.transport}).Do(req)
			if err != nil {
				errs[i] = err
				return
			}
			defer resp.Body.Close()
			sum, err := v1Hash(resp.Body)
			if err == nil && (resp.StatusCode != http.StatusOK || sum != l.Digest.String()) {
				err = fmt.Errorf("%s: %s, digest %s", l.Digest, resp.Status, sum)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func v1Hash(r io.Reader) (string, error) {
	h, _, err := v1.SHA256(r)
	return h.String(), err
}

// clients20: twenty clients at one site ask for the same cold image at once, and one
// for another one before. Right before each the link carries something else, so that
// both find it in the same condition: TCP's windows have grown, and its rate is known.
func (b *bench) clients20(t *testing.T, name string) {
	m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond}, []float64{100, 100})
	memory := watchMemory(t, m.pids())
	at := m.sites[1]
	var alone, slowest time.Duration
	var st measured
	const note = "a quarter of the image, as twenty clients of all of it load the machine"
	for _, n := range []int{1, 20} {
		img, size := benchImage(t, *benchScale/4)
		image := fmt.Sprintf("prod/cold%d:1", n)
		m.sites[0].push(t, image, img)
		at.listed(t, image)
		m.warmUp(t, at, fmt.Sprintf("prod/warm%d:1", n))
		before := m.metric(t, 1, receivedMetric)
		m.stats(t, true)
		start := time.Now()
		took := make([]time.Duration, n)
		errs := make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				errs[i] = at.drain(t.Context(), image, img)
				took[i] = time.Since(start)
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		st = m.stats(t, false)
		if n == 1 {
			alone = took[0]
			continue
		}
		slowest = slices.Max(took)
		b.add(t, st, name+": payload over the WAN", (m.metric(t, 1, receivedMetric)-before)/size, "F", figures.AtMost(1.02), note)
	}
	b.add(t, st, name+": slowest over one alone", slowest.Seconds()/alone.Seconds(), "x", figures.AtMost(1.15),
		fmt.Sprintf("%.3g s and %.3g s; %s", slowest.Seconds(), alone.Seconds(), note))
	memory.add(b, t, st, name)
}

// warmUp pulls an image at a site that is nobody's else.
func (m *farMesh) warmUp(t *testing.T, at *farSite, image string) {
	t.Helper()
	img, _ := benchImage(t, *benchScale/16)
	m.sites[0].push(t, image, img)
	at.listed(t, image)
	if err := at.drain(t.Context(), image, img); err != nil {
		t.Fatal(err)
	}
}

// listed waits until a site knows an image.
func (f *farSite) listed(t *testing.T, image string) {
	t.Helper()
	cluster.Eventually(t, cluster.Patience, image+" is known at "+f.site, func() error {
		_, err := remote.Head(f.ref(t, image), f.options(t.Context())...)
		return err
	})
}

// coldPull: one client, nothing else on the links, which are long.
func (b *bench) coldPull(t *testing.T, name string) {
	const rtt = 160 * time.Millisecond
	m := startFarMesh(t, farLinks{rtt: rtt}, []float64{200, 200})
	four := m.goodput(t, 0, 1, 4)
	memory := watchMemory(t, m.pids())
	at := m.sites[1]
	img, size := benchImage(t, *benchScale)
	m.sites[0].push(t, "prod/cold:1", img)
	at.listed(t, "prod/cold:1")
	m.stats(t, true)
	line := m.startTimeline(t)
	start := time.Now()
	if err := at.drain(t.Context(), "prod/cold:1", img); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	st := m.stats(t, false)
	line.end(t, m, name)
	b.add(t, st, name+": goodput over that of four TLS flows", size/took.Seconds()/four, "x", figures.AtLeast(0.85), "")
	memory.add(b, t, st, name)
	// The connection is up now.
	small, _ := benchImage(t, *benchScale/20)
	m.sites[0].push(t, "prod/first:1", small)
	at.listed(t, "prod/first:1")
	manifest, err := small.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	m.stats(t, true)
	start = time.Now()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+at.host+"/v2/prod/first/blobs/"+manifest.Layers[0].Digest.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("admin", wanPassword)
	resp, err := (&http.Client{Transport: at.transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.ReadFull(resp.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	first := time.Since(start)
	st = m.stats(t, false)
	b.add(t, st, name+": first byte", first.Seconds()/rtt.Seconds(), "RTT", figures.AtMost(4), "")
}

// loss: one client's cold pull over a link that loses packets, beside one TLS flow.
func loss(congestion string, scale float64, judge func(goodput, link, flow float64) (float64, string, *figures.Target)) func(b *bench, t *testing.T, name string) {
	return func(b *bench, t *testing.T, name string) {
		const rate = 100 // Mbit/s
		m := startFarMesh(t, farLinks{rtt: 100 * time.Millisecond, loss: 0.001, mtu: 1500, congestion: congestion}, []float64{rate, rate})
		flow := m.goodput(t, 0, 1, 1)
		at := m.sites[1]
		img, size := benchImage(t, scale**benchScale)
		m.sites[0].push(t, "prod/cold:1", img)
		at.listed(t, "prod/cold:1")
		m.stats(t, true)
		line := m.startTimeline(t)
		start := time.Now()
		if err := at.drain(t.Context(), "prod/cold:1", img); err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		st := m.stats(t, false)
		line.end(t, m, name)
		v, unit, target := judge(size/took.Seconds(), m.rates[1]*1e6/8, flow)
		b.add(t, st, name, v, unit, target, fmt.Sprintf("%.3g Mbit/s; one TLS flow has %.3g; %.2g of the image", size/took.Seconds()*8/1e6, flow*8/1e6, scale))
	}
}

func ofLink(goodput, link, _ float64) (float64, string, *figures.Target) {
	return goodput / link, "of the link", figures.AtLeast(0.85)
}

func ofFlow(goodput, _, flow float64) (float64, string, *figures.Target) {
	return goodput / flow, "flows", figures.AtLeast(3)
}
