package mesh

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/wan"
)

const (
	// soakRate is each site's uplink and downlink: small, so that ten minutes of it
	// fit on a disk, and a blob is long on the wire.
	soakRate = 20 * wan.Mbit
	soakTrip = 80 * time.Millisecond
	// soakLayer is the size of a layer, soakBacklog how many bytes shall wait to be
	// replicated at any time, of all sites: far more than the links take in a second.
	soakLayer, soakBacklog = 4 << 20, 64 << 20
	// soakPulls are clients of each other site that pull from a site over the WAN.
	soakPulls = 2
	// soakUse is what part of each uplink the blobs must use for a soak to count: all
	// but what TCP loses to the full queues, and the pauses between blobs.
	soakUse = 0.8
	// soakEdit is the pause between two edits, on average.
	soakEdit = time.Second
)

// soakSaturated: three voters whose links are full of blobs, in both directions,
// all the time; an edit a second at a follower. Nobody stands for election.
func (b *controlBench) soakSaturated(t *testing.T) {
	topo := wan.Topo{Default: wan.Params{RTT: wan.Duration(soakTrip)}}
	for _, name := range []string{"s0", "s1", "s2"} {
		topo.Sites = append(topo.Sites, wan.Site{Name: name, Egress: soakRate, Ingress: soakRate})
	}
	lab := wan.Start(t, topo)
	sites := []*farSite{startFar(t, lab, "s0", "serve", "--site", "s0", "--profile", "wan")}
	for _, s := range topo.Sites[1:] {
		sites = append(sites, startFar(t, lab, s.Name, "join", sites[0].token(t, s.Name)))
	}
	for _, args := range [][]string{{"project", "create", "prod", "--public"}, {"rule", "create", "everywhere", "--projects", "prod", "--sites", "all"}} {
		if r := sites[0].cli(t, args...); r.Code != 0 {
			t.Fatalf("%v: %s", args, r.Stderr)
		}
	}
	leader := leading(t, sites)
	follower := sites[0]
	if follower == leader {
		follower = sites[1]
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { replicate(ctx, t, sites) })
	pulled := pullAcross(ctx, t, &wg, sites)
	lab.Stats(true)
	cluster.Eventually(t, 3*cluster.Patience, "all uplinks are busy", func() error {
		pause(t, 5*time.Second)
		st := lab.Stats(true)
		for _, s := range topo.Sites {
			if share := uplink(st, s.Name); share < soakUse {
				return fmt.Errorf("%s sends at %.0f %% of its uplink", s.Name, 100*share)
			}
		}
		return nil
	})

	terms := newTerms(t, sites)
	admin, err := follower.asker().self(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	failed := 0
	lab.Stats(true)
	for end := time.Now().Add(*controlSoak); time.Now().Before(end); {
		start := time.Now()
		if err := follower.asker().edit(ctx, admin, start.String()); err != nil {
			failed++
			t.Logf("an edit failed: %v", err)
		} else {
			took = append(took, time.Since(start))
		}
		terms.look(t, sites)
		pause(t, soakEdit/2+rand.N(soakEdit))
	}
	st := lab.Stats(false)
	terms.look(t, sites)
	least := 1.0
	for _, s := range topo.Sites {
		least = min(least, uplink(st, s.Name))
	}
	cancel()
	wg.Wait()
	replicated := 0.0
	for _, s := range sites {
		n, err := s.asker().metric(t.Context(), receivedMetric)
		if err != nil {
			t.Fatal(err)
		}
		replicated += n
	}
	b.report(t, "soak saturated: leader changes", terms.changes, "", figures.Never(), fmt.Sprintf("%s, wan profile at %s, %d Mbit/s", *controlSoak, soakTrip, soakRate/wan.Mbit))
	b.report(t, "soak saturated: edits that failed", float64(failed), "", figures.Never(), fmt.Sprintf("of %d", failed+len(took)))
	b.report(t, "soak saturated: least use of an uplink", 100*least, "%", figures.AtLeast(100*soakUse), fmt.Sprintf("%.1f GB were replicated and %.1f GB pulled; the machine %.0f %% busy", replicated/1e9, float64(pulled.Load())/1e9, 100*st.MachineCPU))
	if len(took) > 0 {
		b.report(t, "soak saturated: edit at a follower, p50", quantile(took, 0.5), "ms", nil, "through HTTP, behind the blobs in the links' queues")
		b.report(t, "soak saturated: edit at a follower, p99", quantile(took, 0.99), "ms", nil, "")
	}
	for _, row := range b.rows {
		if row.Strict && row.Missed() {
			t.Errorf("%s: %g", row.Name, row.Value)
		}
	}
}

// uplink is the share of a site's uplink that was in use.
func uplink(st wan.Stats, site string) float64 {
	return float64(st.Site(site).EgressBytes) * 8 / st.Seconds / float64(soakRate)
}

// terms counts elections: each one raises the term.
type terms struct{ last, changes float64 }

func newTerms(t *testing.T, sites []*farSite) *terms {
	x := &terms{}
	x.look(t, sites)
	x.changes = 0
	return x
}

func (x *terms) look(t *testing.T, sites []*farSite) {
	t.Helper()
	for _, s := range sites {
		term, err := s.asker().metric(t.Context(), "portolan_consensus_term")
		if err != nil {
			t.Fatal(err)
		}
		if term > x.last {
			x.changes += term - x.last
			x.last = term
		}
	}
}

// pullAcross has clients of every site pull a blob from each other site, over and
// over, and counts the bytes.
func pullAcross(ctx context.Context, t *testing.T, wg *sync.WaitGroup, sites []*farSite) *atomic.Int64 {
	t.Helper()
	var pulled atomic.Int64
	for i, from := range sites {
		img, err := random.Image(4*soakLayer, 1)
		if err != nil {
			t.Fatal(err)
		}
		from.push(t, fmt.Sprintf("library/pulled%d:1", i), img)
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		digest, err := layers[0].Digest()
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range sites {
			for range soakPulls {
				if at == from {
					continue
				}
				client := &http.Client{Transport: &http.Transport{DialContext: at.lab.Dialer(at.site)}}
				t.Cleanup(client.CloseIdleConnections)
				wg.Go(func() {
					for ctx.Err() == nil {
						n, err := download(ctx, client, fmt.Sprintf("http://%s/v2/library/pulled%d/blobs/%s", from.host, i, digest))
						pulled.Add(n)
						if err != nil && ctx.Err() == nil {
							t.Errorf("pull from %s at %s: %v", from.site, at.site, err)
							return
						}
					}
				})
			}
		}
	}
	return &pulled
}

func download(ctx context.Context, client *http.Client, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.SetBasicAuth("admin", wanPassword)
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", resp.Status)
	}
	return n, err
}

// replicate pushes images at each site in turn, as fast as the others take them.
func replicate(ctx context.Context, t *testing.T, sites []*farSite) {
	pushed := 0.0
	for i := 0; ctx.Err() == nil; {
		came := 0.0
		for _, s := range sites {
			n, err := s.asker().metric(ctx, receivedMetric)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("metrics of %s: %v", s.site, err)
				}
				return
			}
			came += n
		}
		// Every other site shall have what was pushed at one.
		if float64(len(sites)-1)*pushed-came > soakBacklog {
			select {
			case <-ctx.Done():
			case <-time.After(250 * time.Millisecond):
			}
			continue
		}
		s := sites[i%len(sites)]
		img, err := random.Image(soakLayer, 2)
		if err == nil {
			err = remote.Write(s.ref(t, fmt.Sprintf("prod/load%d:%d", i%len(sites), i)), img, s.options(ctx)...)
		}
		if err != nil {
			if ctx.Err() == nil {
				t.Errorf("push at %s: %v", s.site, err)
			}
			return
		}
		pushed += 2 * soakLayer
		i++
	}
}
