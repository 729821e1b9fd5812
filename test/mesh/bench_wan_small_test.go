package mesh

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/wan"
)

var benchSmall = flag.Int("wan.small", 10_000, "images of the cases of small images, at most 20,000: a page of tags in each of the repositories")

const (
	smallSites  = 3      // that receive them
	smallBlobs  = 5      // of an image, its configuration among them
	smallBytes  = 10_000 // of a blob
	smallRepos  = 20
	smallPushes = 32  // clients at once
	smallRate   = 200 // images a second that are to come to each site, where the links carry so many
	// idleWithin is what tells an idle link: less than an image in so long. Answers to
	// requests are a third of it away.
	idleWithin = 250 * time.Millisecond
)

// small: images of 5 blobs of 10 KB lie at the first site, and a rule that wants
// them at all others is made. Their entries are everywhere by then, as they are
// soon after a push: what is measured is what the rule moves, with the search for
// it, from the rule on. Timed from the start of the push it would be the registry's
// pushes that are measured: one site takes them in no faster than it sends them.
// Each image leaves the first site once, and the others swap what they have: 200 a
// second are 80 Mbit/s of blobs out of the first site and into each other. So of 400
// Mbit/s there is plenty, and of 100 most is in use.
func small(rate float64) func(b *bench, t *testing.T, name string) {
	return func(b *bench, t *testing.T, name string) {
		m := startFarMesh(t, farLinks{rtt: 80 * time.Millisecond}, slices.Repeat([]float64{rate}, 1+smallSites))
		n := *benchSmall
		pushed := m.pushSmall(t, n)
		before := make([]float64, len(m.sites))
		for i := range m.sites {
			m.knowsSmall(t, i, n)
			before[i] = m.metric(t, i, "process_cpu_seconds_total")
		}
		m.stats(t, true)
		line := m.startTimeline(t)
		idle := m.watchIdle(t)
		memory := watchMemory(t, m.pids())
		start := time.Now()
		m.must(t, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
		took := m.awaitSmall(t, n, start, line)
		st := m.stats(t, false)
		line.end(t, m, name)
		quiet := idle.end(took)
		last := slices.Max(took)
		sent := m.metric(t, 0, "portolan_transfer_swarm_sent_bytes_total")
		origin := (m.metric(t, 0, "process_cpu_seconds_total") - before[0]) / float64(n)
		receivers := 0.0
		for i := 1; i < len(m.sites); i++ {
			receivers += (m.metric(t, i, "process_cpu_seconds_total") - before[i]) / float64(n*smallSites)
			if err := m.arrives(t, "prod/app0:v0", i); err != nil { // it was counted right
				t.Error(err)
			}
		}
		t.Logf("took %v; the router used %.1f s of processor time in %.1f s", took[1:], st.CPUSeconds, st.Seconds)
		b.add(t, st, name+": images a second from the rule on, at each site", float64(n)/last.Seconds(), "1/s", figures.AtLeast(min(smallRate, 0.8*m.smallBound())),
			fmt.Sprintf("%d images of %d blobs of %d bytes, pushed before, %.3g a second", n, smallBlobs, smallBytes, float64(n)/pushed.Seconds()))
		b.add(t, st, name+": share of the origin's uplink in use", float64(st.Site("s0").EgressBytes)*8/1e6/m.rates[0]/last.Seconds(), "", nil, "")
		bound := float64(n) / m.smallBound()
		b.add(t, st, name+": time from the rule on over the bound", last.Seconds()/bound, "", nil, fmt.Sprintf("the bound is %.1f s", bound))
		b.add(t, st, name+": payload that the origin sent", sent/float64(n*smallBlobs*smallBytes), "F", figures.AtMost(1.15), "")
		b.add(t, st, name+": share of the time in which a link was idle, the worst", slices.Max(quiet), "", figures.AtMost(0.05), "")
		b.add(t, st, name+": processor time of the origin for an image", 1000*origin, "CPU-ms", nil, "all sites together")
		b.add(t, st, name+": processor time of a receiver for an image", 1000*receivers, "CPU-ms", nil, "")
		memory.add(b, t, st, name)
	}
}

// smallBound is what the sites can do at best, in images a second: each leaves the
// first site once, and all uplinks together carry a copy for every other.
func (m *farMesh) smallBound() float64 {
	receiving := make([]int, len(m.rates)-1)
	for i := range receiving {
		receiving[i] = i + 1
	}
	return 1 / m.bound(smallBlobs*smallBytes, 1, receiving)
}

// pushSmall pushes the images at the first site, over its registry, and says how
// long that took.
func (m *farMesh) pushSmall(t *testing.T, n int) time.Duration {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: m.lab.Dialer(m.sites[0].site), MaxIdleConnsPerHost: smallPushes}}
	defer client.CloseIdleConnections()
	send := func(ctx context.Context, method, path, mediaType string, body []byte) error {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+m.sites[0].host+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.SetBasicAuth("admin", wanPassword)
		req.Header.Set("Content-Type", mediaType)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		said, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusCreated {
			err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, said)
		}
		return err
	}
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	const config, layer, image = "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.manifest.v1+json"
	push := func(ctx context.Context, i int) error {
		repo := fmt.Sprintf("/v2/prod/app%d", i%smallRepos)
		var blobs [smallBlobs]descriptor
		for j := range blobs {
			body := make([]byte, smallBytes)
			_, _ = rand.Read(body) // never fails
			sum := sha256.Sum256(body)
			blobs[j] = descriptor{layer, "sha256:" + hex.EncodeToString(sum[:]), len(body)}
			if err := send(ctx, http.MethodPost, repo+"/blobs/uploads/?digest="+blobs[j].Digest, "application/octet-stream", body); err != nil {
				return err
			}
		}
		blobs[0].MediaType = config
		body, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": image, "config": blobs[0], "layers": blobs[1:]})
		if err != nil {
			return err
		}
		return send(ctx, http.MethodPut, fmt.Sprintf("%s/manifests/v%d", repo, i/smallRepos), image, body)
	}
	g, ctx := errgroup.WithContext(t.Context())
	g.SetLimit(smallPushes)
	begun := time.Now()
	for i := range n {
		g.Go(func() error { return push(ctx, i) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	t.Logf("pushed %d images in %s", n, took.Round(time.Second))
	return took
}

// knowsSmall waits until a site's catalogue names all the images.
func (m *farMesh) knowsSmall(t *testing.T, i, n int) {
	t.Helper()
	s := m.sites[i]
	cluster.Eventually(t, 2*cluster.Patience, s.site+" knows all images", func() error {
		known := 0
		for r := range smallRepos {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s/v2/prod/app%d/tags/list", s.host, r), nil)
			if err != nil {
				return err
			}
			req.SetBasicAuth("admin", wanPassword)
			resp, err := (&http.Client{Transport: s.transport}).Do(req)
			if err != nil {
				return err
			}
			var list struct{ Tags []string }
			err = errors.Join(json.NewDecoder(resp.Body).Decode(&list), resp.Body.Close())
			if err != nil {
				return err
			}
			known += len(list.Tags)
		}
		if known < n {
			return fmt.Errorf("%d of %d", known, n)
		}
		return nil
	})
}

// awaitSmall waits until each site but the first has brought so many artifacts here,
// and says when it had. It asks more often towards the end: to answer takes a node
// that has much to bring some milliseconds.
func (m *farMesh) awaitSmall(t *testing.T, n int, start time.Time, line *timeline) []time.Duration {
	t.Helper()
	const within, often, seldom = 20 * time.Minute, 100 * time.Millisecond, 2 * time.Second
	took := make([]time.Duration, len(m.sites))
	next := time.NewTimer(seldom)
	defer next.Stop()
	for left := len(m.sites) - 1; left > 0; <-next.C {
		wait := seldom
		for i := 1; i < len(m.sites); i++ {
			if took[i] > 0 {
				continue
			}
			have, since := m.metric(t, i, "portolan_transfer_artifacts_total"), time.Since(start)
			if have >= float64(n) {
				took[i] = since
				line.note("%s has all", m.sites[i].site)
				left--
				continue
			}
			half := time.Duration(float64(since) * (float64(n) - have) / max(1, have) / 2)
			wait = min(wait, max(often, half))
		}
		if time.Since(start) > within {
			t.Fatalf("not all images were at all sites within %s: %v", within, took[1:])
		}
		next.Reset(wait)
	}
	return took
}

// idleWatch looks at what each site receives.
type idleWatch struct {
	start time.Time
	stop  context.CancelFunc
	done  sync.WaitGroup
	at    []time.Duration
	came  [][]uint64 // bytes so far, of each site
}

func (m *farMesh) watchIdle(t *testing.T) *idleWatch {
	ctx, cancel := context.WithCancel(t.Context())
	w := &idleWatch{start: time.Now(), stop: cancel}
	w.done.Go(func() {
		tick := time.NewTicker(idleWithin)
		defer tick.Stop()
		for {
			if st, err := m.lab.Control.Stats(ctx, false); err == nil {
				w.at = append(w.at, time.Since(w.start))
				w.came = append(w.came, ingress(st))
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return w
}

func ingress(st wan.Stats) []uint64 {
	out := make([]uint64, len(st.Sites))
	for i, s := range st.Sites {
		out[i] = s.IngressBytes
	}
	return out
}

// end gives, for each site but the first, the share of its time in which next to
// nothing came.
func (w *idleWatch) end(took []time.Duration) []float64 {
	w.stop()
	w.done.Wait()
	var out []float64
	for i := 1; i < len(took); i++ {
		idle, all := 0, 0
		for k := 1; k < len(w.at) && w.at[k] <= took[i]; k++ {
			all++
			if w.came[k][i]-w.came[k-1][i] < smallBlobs*smallBytes {
				idle++
			}
		}
		out = append(out, float64(idle)/float64(max(1, all)))
	}
	return out
}
