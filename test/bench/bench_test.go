package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// listen serves h and counts connections and requests.
func listen(t *testing.T, h http.HandlerFunc) (s *server, requests, connections *atomic.Int64) {
	t.Helper()
	requests, connections = &atomic.Int64{}, &atomic.Int64{}
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		h(w, r)
	}))
	web.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	web.Start()
	t.Cleanup(web.Close)
	return &server{name: ours, addr: strings.TrimPrefix(web.URL, "http://"), auth: "Basic eDp5"}, requests, connections
}

func TestLoad_CountsWhatTheServerCounts(t *testing.T) {
	s, requests, connections := listen(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") })
	const clients, count = 7, 500
	cs := newClients(s, clients, false)
	defer cs.close()
	var mu sync.Mutex
	seen := map[int]int{}
	r := load{Clients: clients, Count: count}.run(t.Context(), func(ctx context.Context, w, i int) error {
		mu.Lock()
		seen[i]++
		mu.Unlock()
		return cs[w].call(ctx, http.MethodGet, "/v2/", http.StatusOK)
	})
	if r.Err != nil || r.Done != count || r.Errors != 0 || len(r.Took) != count {
		t.Fatalf("%d done, %d errors, %d times, %v", r.Done, r.Errors, len(r.Took), r.Err)
	}
	if got := requests.Load(); got != count {
		t.Errorf("the server saw %d requests, want %d", got, count)
	}
	if got := connections.Load(); got > clients {
		t.Errorf("%d connections for %d clients: they must be kept", got, clients)
	}
	for i := range count {
		if seen[i] != 1 {
			t.Errorf("number %d was given %d times", i, seen[i])
		}
	}
	if !slices.IsSorted(r.Took) || r.Took[count-1] > r.Elapsed {
		t.Error("the times are not sorted, or longer than the whole")
	}
}

func TestLoad_CountsErrorsApart(t *testing.T) {
	var n atomic.Int64
	s, _, _ := listen(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%4 == 0 {
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	cs := newClients(s, 3, false)
	defer cs.close()
	r := load{Clients: 3, Count: 100}.run(t.Context(), func(ctx context.Context, w, _ int) error {
		return cs[w].call(ctx, http.MethodGet, "/", http.StatusOK)
	})
	if r.Done != 75 || r.Errors != 25 || r.Err == nil || !strings.Contains(r.Err.Error(), "429") {
		t.Errorf("%d done, %d errors, %v", r.Done, r.Errors, r.Err)
	}
}

func TestLoad_EndsWithItsTimeAndItsContext(t *testing.T) {
	// The first operation of each worker lasts longer than the load: none is
	// begun after, and none is forgotten.
	var begun atomic.Int64
	r := load{Clients: 4, For: time.Nanosecond}.run(t.Context(), func(context.Context, int, int) error {
		begun.Add(1)
		return nil
	})
	if int64(r.Done) != begun.Load() {
		t.Errorf("%d done of %d begun", r.Done, begun.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	r = load{Clients: 2, Count: 1 << 30}.run(ctx, func(_ context.Context, _, i int) error {
		if i == 10 {
			cancel()
		}
		return nil
	})
	if !errors.Is(r.Err, context.Canceled) {
		t.Errorf("after its context's end the load says %v", r.Err)
	}
}

func TestClient_PushesWhatItSays(t *testing.T) {
	src := newSource(1 << 20)
	b := src.blob(1 << 20)
	var got digest.Digest
	s, requests, _ := listen(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Basic eDp5" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodPost {
			w.Header().Set("Location", "http://"+r.Host+"/session?_state=a%2Fb")
			w.WriteHeader(http.StatusAccepted)
			return
		}
		if r.URL.Query().Get("_state") != "a/b" || r.URL.Query().Get("digest") != b.digest || r.ContentLength != 1<<20 {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		got, _ = digest.FromReader(r.Body)
		w.WriteHeader(http.StatusCreated)
	})
	c := newClient(s, true)
	defer c.close()
	if err := c.pushBlob(t.Context(), "library/x", b); err != nil {
		t.Fatal(err)
	}
	if got.String() != b.digest || requests.Load() != 2 {
		t.Errorf("the server got %s in %d requests, want %s in 2", got, requests.Load(), b.digest)
	}
	if other := src.blob(1 << 20); other.digest == b.digest {
		t.Error("two blobs are the same: a registry would keep the second by a look-up")
	}
}

func TestClient_CountsTheBytes(t *testing.T) {
	src := newSource(300 << 10)
	whole := src.blob(300 << 10)
	for name, handler := range map[string]http.HandlerFunc{
		"of a known length": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "307200")
			for _, p := range whole.parts {
				_, _ = w.Write(p)
			}
		},
		"in chunks": func(w http.ResponseWriter, r *http.Request) {
			for _, p := range whole.parts {
				_, _ = w.Write(p)
				w.(http.Flusher).Flush()
			}
		},
		"on a connection that ends": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			for _, p := range whole.parts {
				_, _ = w.Write(p)
			}
		},
	} {
		s, _, _ := listen(t, handler)
		c := newClient(s, false)
		for range 3 {
			if err := c.getBlob(t.Context(), "library/x", whole); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := c.getBlob(t.Context(), "library/x", src.blob(299<<10)); err == nil {
			t.Errorf("%s: a blob of another length was taken for the right one", name)
		}
		c.close()
	}
}

func TestList_CountsEntries(t *testing.T) {
	s, _, _ := listen(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, `{"name":"library/x","tags":["`+strings.Repeat(`t","`, 99)+`t"]}`)
	})
	c := newClient(s, false)
	defer c.close()
	if err := c.list(t.Context(), "/v2/library/x/tags/list", 100); err != nil {
		t.Error(err)
	}
	if err := c.list(t.Context(), "/v2/library/x/tags/list", 120); err == nil {
		t.Error("100 entries were taken for 120")
	}
}

func TestKinds_KeepTheirShares(t *testing.T) {
	counts := make([]int, len(kinds))
	for i := range 10_000 {
		counts[kindOf(i)]++
	}
	for k, kind := range kinds {
		if counts[k] != kind.share*100 {
			t.Errorf("%s: %d of 10000, want %d", kind.name, counts[k], kind.share*100)
		}
	}
}

func TestFigures(t *testing.T) {
	if m := median([]float64{9, 1, 5}); m != 5 {
		t.Errorf("median of three: %g", m)
	}
	if m := median([]float64{4, 1, 2, 9}); m != 3 {
		t.Errorf("median of four: %g", m)
	}
	var r result
	for i := range 100 {
		r.Took = append(r.Took, time.Duration(i+1)*time.Millisecond)
	}
	if r.quantile(0.5) != 51 || r.quantile(0.99) != 100 || (result{}).quantile(0.5) != 0 {
		t.Errorf("quantiles: %g, %g", r.quantile(0.5), r.quantile(0.99))
	}
	cpu, err := parseCPU("4711 (a name) with (parens) S 1 2 3 4 5 6 7 8 9 10 1234 66 0 0 20 0 9 0 100 0 0")
	if err != nil || cpu != 13 {
		t.Errorf("processor time %g, %v", cpu, err)
	}
	mib, err := parseAnonymous("Name:\tx\nVmRSS:\t  9000 kB\nRssAnon:\t  2048 kB\nRssFile:\t 1 kB\n")
	if err != nil || mib != 2 {
		t.Errorf("memory %g, %v", mib, err)
	}
}

func TestRows_AreJudged(t *testing.T) {
	for _, c := range []struct {
		target       *target
		ours, theirs []float64
		met          bool
	}{
		{ratioAtLeast(1.2), []float64{130, 1, 500}, []float64{100}, true},
		{ratioAtLeast(1.2), []float64{119}, []float64{100}, false},
		{ratioAtMost(0.4), []float64{39}, []float64{100}, true},
		{ratioAtMost(0.4), []float64{41}, []float64{100}, false},
		{ratioAtMost(0.4), []float64{1}, nil, false}, // nothing to compare with is no proof
		{ownAtMost(0), []float64{0}, []float64{3}, true},
		{ownAtMost(0), []float64{1}, nil, false},
		{ownAtLeast(0.9), []float64{0.95}, []float64{0.1}, true},
	} {
		r := newRow("x", "ms", c.target, samples{ours: c.ours, theirs: c.theirs})
		if r.Met == nil || *r.Met != c.met {
			t.Errorf("%v / %v, %s: met is %v", c.ours, c.theirs, c.target, !c.met)
		}
	}
	if r := newRow("x", "ms", nil, samples{ours: {1}}); r.Met != nil || r.Target != "" {
		t.Error("a row without a target was judged")
	}
}

func TestResults_KeepWhatDidNotRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results", "x.json")
	a, b := newRow("a", "ms", nil, samples{ours: {1}, theirs: {2}}), newRow("b", "ms", ratioAtMost(1), samples{ours: {3}, theirs: {4}})
	if err := save(path, []row{a, b}, false); err != nil {
		t.Fatal(err)
	}
	a2, c := newRow("a", "ms", nil, samples{ours: {7}}), newRow("c", "", nil, samples{ours: {5}})
	if err := save(path, []row{a2, c}, true); err != nil {
		t.Fatal(err)
	}
	got, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]row{a2, b, c}, got); d != "" {
		t.Error(d)
	}
}
