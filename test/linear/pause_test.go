package linear

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/portolan/portolan/registryapi/harbor"
	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/registryapi/rest"
	"github.com/portolan/portolan/test/cluster"
)

// pauseCall bounds a call. It is longer than a pause: what a node answers when it
// goes on, to who asked before or during it, is what the test is about.
const pauseCall = 15 * time.Second

// paused is a mesh of real processes that takes calls by its API.
type paused struct {
	*world // history and objects; it has no mesh of its own
	mesh   *cluster.Mesh
	http   *http.Client
}

// ask sends a request to site i as the administrator. An error means that nobody
// knows what became of it.
func (p *paused) ask(ctx context.Context, i int, method, path, strict string, in, out any) (int, rest.Failures, error) {
	var failed rest.Failures
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, failed, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, p.mesh.Sites[i].URL+path, body)
	if err != nil {
		return 0, failed, err
	}
	req.SetBasicAuth(p.mesh.Username, p.mesh.Password)
	req.Header.Set("Content-Type", "application/json")
	if strict != "" {
		req.Header.Set(rest.ConsistencyHeader, strict)
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return 0, failed, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		return resp.StatusCode, failed, json.Unmarshal(b, &failed)
	}
	if err == nil && out != nil {
		err = json.Unmarshal(b, out)
	}
	return resp.StatusCode, failed, err
}

func (p *paused) path(id int64) string { return fmt.Sprintf("/api/v2.0/users/%d", id) }

// do makes a call at site i and notes how it ended, as world.do does.
func (p *paused) do(ctx context.Context, client, i int, c call) {
	ctx, cancel := context.WithTimeout(ctx, pauseCall)
	defer cancel()
	from := time.Now()
	if c.kind == read {
		var u harbor.User
		if status, _, err := p.ask(ctx, i, http.MethodGet, p.path(c.object), "strict", nil, &u); err == nil && status == http.StatusOK {
			p.note(client, c, answer{object: object{u.Comment, u.Version}}, from)
		}
		return
	}
	in := map[string]any{"comment": c.value}
	if c.seen != 0 {
		in["resource_version"] = c.seen
	}
	status, failed, err := p.ask(ctx, i, http.MethodPut, p.path(c.object), "", in, nil)
	switch {
	case err != nil:
		p.note(client, c, answer{unknown: true}, from)
	case status == http.StatusOK:
		p.note(client, c, answer{}, from)
	case status == http.StatusConflict && c.seen != 0:
		p.note(client, c, answer{lost: true}, from)
	case status == http.StatusServiceUnavailable && len(failed.Errors) == 1 && !failed.Errors[0].Indeterminate:
	case status == http.StatusServiceUnavailable:
		p.note(client, c, answer{unknown: true}, from)
	default:
		p.t.Errorf("%+v: %d %+v", c, status, failed)
	}
}

func (p *paused) client(ctx context.Context, id int, rng *rand.Rand) {
	last := map[int64]uint64{}
	for n := 0; ctx.Err() == nil; n++ {
		i, c := rng.IntN(len(p.mesh.Sites)), call{object: p.ids[rng.IntN(len(p.ids))], kind: kind(rng.IntN(3)), value: fmt.Sprintf("%d.%d", id, n)}
		pause := time.Duration(5+rng.IntN(30)) * time.Millisecond
		if c.kind == swap {
			// What the local copy has: with a paused or cut-off node's, one that is gone.
			var u harbor.User
			at, cancel := context.WithTimeout(context.WithoutCancel(ctx), pauseCall)
			if status, _, err := p.ask(at, i, http.MethodGet, p.path(c.object), "", nil, &u); err != nil || status != http.StatusOK {
				u.Version = max(1, last[c.object])
			}
			cancel()
			c.seen, last[c.object] = u.Version, u.Version
		}
		p.do(context.WithoutCancel(ctx), id, i, c)
		wait(ctx, pause)
	}
}

// signal pauses a process, or lets it go on.
func (p *paused) signal(i int, s syscall.Signal) {
	if err := syscall.Kill(p.mesh.Sites[i].PID, s); err != nil {
		p.t.Errorf("%s: %v", p.mesh.Sites[i].Name, err)
	}
}

// leads finds the site that leads, as any site says.
func (p *paused) leads(ctx context.Context) int {
	for i := range p.mesh.Sites {
		var s mesh.Status
		if status, _, err := p.ask(ctx, i, http.MethodGet, mesh.Prefix+"/status", "", nil, &s); err == nil && status == http.StatusOK {
			for j := range p.mesh.Sites {
				if p.mesh.Sites[j].Name == s.LeaderSite {
					return j
				}
			}
		}
	}
	return 0
}

// TestLinearizable_Paused: three real processes take edits and strict reads while
// the leading one, or another, stands still for longer than an election and goes
// on as if nothing had been: with requests in its hands, leases that ended long
// ago, and a clock that jumped. None of them answers a strict read from the past.
func TestLinearizable_Paused(t *testing.T) {
	seed := chosenSeed(t)
	length := 2 * *forFlag
	if testing.Short() {
		length = min(length, 8*time.Second)
	}
	p := &paused{world: &world{t: t, start: time.Now()}, mesh: cluster.StartDev(t, 3), http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}}
	t.Cleanup(p.http.CloseIdleConnections)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for i := range objects {
		at, name := rand.IntN(len(p.mesh.Sites)), fmt.Sprintf("u%d", i)
		if status, failed, err := p.ask(t.Context(), at, http.MethodPost, "/api/v2.0/users", "", map[string]string{"username": name, "password": "Secret-of-u-1"}, nil); err != nil || status != http.StatusCreated {
			t.Fatalf("user %s: %d %+v %v", name, status, failed, err)
		}
		var found []harbor.User
		if status, _, err := p.ask(t.Context(), at, http.MethodGet, "/api/v2.0/users?q=username%3D"+name, "strict", nil, &found); err != nil || status != http.StatusOK || len(found) != 1 {
			t.Fatalf("user %s: %d %+v %v", name, status, found, err)
		}
		p.ids = append(p.ids, found[0].ID)
	}
	for i := range p.mesh.Sites { // all know all of them
		if status, failed, err := p.ask(t.Context(), i, http.MethodGet, p.path(p.ids[objects-1]), "strict", nil, nil); err != nil || status != http.StatusOK {
			t.Fatalf("%s: %d %+v %v", p.mesh.Sites[i].Name, status, failed, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	for id := range clients {
		wg.Go(func() { p.client(ctx, id, rand.New(rand.NewPCG(seed, uint64(id)))) })
	}
	rng := rand.New(rand.NewPCG(seed, clients))
	pauses := 0
	for wait(ctx, time.Duration(300+rng.IntN(700))*time.Millisecond) {
		i, who := rng.IntN(len(p.mesh.Sites)), "any"
		if rng.IntN(3) > 0 {
			i, who = p.leads(ctx), "the leader"
		}
		lasts := time.Duration(1500+rng.IntN(2500)) * time.Millisecond
		t.Logf("%6s: %s (%s) stands still for %s", time.Since(p.start).Round(time.Millisecond), p.mesh.Sites[i].Name, who, lasts)
		p.signal(i, syscall.SIGSTOP)
		wait(ctx, lasts)
		p.signal(i, syscall.SIGCONT)
		pauses++
	}
	wg.Wait()

	counts := map[string]int{}
	for _, op := range p.history {
		c, a := op.Input.(call), op.Output.(answer)
		counts[[]string{"reads", "writes", "swaps"}[c.kind]]++
		if a.unknown {
			counts["not known"]++
		}
		if a.lost {
			counts["lost"]++
		}
	}
	t.Logf("%d calls in %d pauses: %v", len(p.history), pauses, counts)
	if pauses < 2 || len(p.history) < 5*int(length.Seconds()) || counts["reads"] == 0 || counts["writes"] == 0 || counts["swaps"] == counts["lost"] {
		t.Error("too few pauses or calls to show anything")
	}
	result, info := check(p.history, checkFor)
	if result == porcupine.Ok {
		return
	}
	show(t, model, result, info, "paused", seed)
}
