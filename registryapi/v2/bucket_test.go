package v2

import (
	"bytes"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/blobs/drivers"
	"github.com/portolan/portolan/test/bucket"
)

// onBucket makes a site whose blobs are in server, and whose store has the time
// from now.
func onBucket(t *testing.T, server *bucket.Server, redirect string, now func() time.Time, edit ...func(*Config)) *site {
	t.Helper()
	parameters := server.Parameters()
	if redirect != "" {
		parameters["redirectendpoint"] = redirect
	}
	var st *store.Store
	s := newSite(t, append(edit, func(c *Config) {
		b, err := drivers.New(t.Context(), "s3", parameters)
		if err != nil {
			t.Fatal(err)
		}
		id, _, err := identity.LoadOrCreate(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if st, err = store.Open(t.Context(), store.Config{Dir: t.TempDir(), Identity: id, Logger: slog.New(slog.DiscardHandler), Bucket: b, Now: now}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = st.Close() })
		c.Store, c.Redirect = st, redirect != ""
	})...)
	s.store = st
	return s
}

func TestBucket_Unavailable(t *testing.T) {
	server := bucket.Start(t)
	var log bytes.Buffer
	s := onBucket(t, server, "", time.Now, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	b, small, next := make([]byte, 3<<20), []byte("small"), make([]byte, 6<<20)
	_, _ = rand.Read(b)
	_, _ = rand.Read(next)
	d, inline := s.push("prod/app", b), s.push("prod/app", small)
	if got := s.do("dev", "GET", "/v2/prod/app/blobs/"+d.String(), nil, "Range", "bytes=1048570-2097160").want(t, 206); !bytes.Equal(got.body, b[1048570:2097161]) {
		t.Error("a range differs")
	}
	at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
	at = location(t, s.do("dev", "PATCH", at, bytes.NewReader(next)).want(t, 202))

	server.Kill()
	unavailable := func(e exchange) {
		t.Helper()
		e.want(t, http.StatusServiceUnavailable)
		away(t, e, "does not answer as it should", server)
		if e.Header.Get("Docker-Content-Digest") != "" || e.Header.Get("Content-Range") != "" {
			t.Errorf("%v %s", e.Header, e.body)
		}
	}
	unavailable(s.do("dev", "GET", "/v2/prod/app/blobs/"+d.String(), nil))
	unavailable(s.do("dev", "GET", "/v2/prod/app/blobs/"+d.String(), nil, "Range", "bytes=100-200"))
	nd := digest.FromBytes(next)
	unavailable(s.do("dev", "PUT", at+"?digest="+nd.String(), nil))
	if e := s.do("dev", "GET", at, nil).want(t, 204); e.Header.Get("Range") != "0-6291455" {
		t.Errorf("the session is at %q", e.Header.Get("Range"))
	}
	// The cause is for the operator.
	if text := log.String(); !strings.Contains(text, strings.TrimPrefix(server.Endpoint(), "http://")) || !strings.Contains(text, "connection refused") && !strings.Contains(text, "EOF") {
		t.Errorf("the log does not say what happened: %s", text)
	}
	// What needs no bucket goes on.
	s.do("dev", "HEAD", "/v2/prod/app/blobs/"+d.String(), nil).want(t, 200)
	s.do("dev", "GET", "/v2/prod/app/blobs/"+inline.String(), nil).want(t, 200)

	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	s.do("dev", "PUT", at+"?digest="+nd.String(), nil).want(t, 201)
	for d, want := range map[digest.Digest][]byte{d: b, nd: next} {
		if got := s.do("dev", "GET", "/v2/prod/app/blobs/"+d.String(), nil).want(t, 200); !bytes.Equal(got.body, want) {
			t.Errorf("%s differs", d)
		}
	}
}

// away checks what a client hears of a bucket: its name and what it does, and
// nothing of where it is, what is in it and what it said.
func away(t *testing.T, e exchange, want string, server *bucket.Server) {
	t.Helper()
	e.want(t, http.StatusServiceUnavailable)
	body := string(e.body)
	if e.Header.Get("Retry-After") == "" || !strings.Contains(body, "UNAVAILABLE") || !strings.Contains(body, `S3 bucket \"layers\"`) || !strings.Contains(body, want) {
		t.Errorf("%v %s", e.Header, body)
	}
	for _, internal := range []string{
		"127.0.0.1", "localhost", "http", strings.TrimPrefix(server.Endpoint(), "http://127.0.0.1"), "dial", "connection", "EOF",
		"blobs/", "units/", "sha256", "owner", server.Parameters()["accesskey"], server.Parameters()["secretkey"], "request", "s3aws",
	} {
		if strings.Contains(body, internal) {
			t.Errorf("%q shows %q", body, internal)
		}
	}
}

// TestBucket_Replaced: a push is not acknowledged while another bucket is in the
// place of the site's, and goes on when that is back.
func TestBucket_Replaced(t *testing.T) {
	server := bucket.Start(t)
	clock := time.Now()
	s := onBucket(t, server, "", func() time.Time { return clock })
	first, second := make([]byte, 3<<20), make([]byte, 6<<20)
	_, _ = rand.Read(first)
	_, _ = rand.Read(second)
	d, nd := s.push("prod/app", first), digest.FromBytes(second)
	at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
	at = location(t, s.do("dev", "PATCH", at, bytes.NewReader(second)).want(t, 202))
	if err := errors.Join(server.HideBucket(), server.MakeBucket()); err != nil {
		t.Fatal(err)
	}
	clock = clock.Add(10 * time.Second) // the window of invariant B7 of the store
	refused := "refuses what the site asks of it"
	away(t, s.do("dev", "PUT", at+"?digest="+nd.String(), nil), refused, server)
	away(t, s.do("dev", "GET", "/v2/prod/app/blobs/"+d.String(), nil), refused, server)
	away(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/?digest="+nd.String(), bytes.NewReader(second)), refused, server)
	s.do("dev", "HEAD", "/v2/prod/app/blobs/"+nd.String(), nil).want(t, 404)
	if left, err := os.ReadDir(server.Path("")); err != nil || len(left) > 0 {
		t.Errorf("the other bucket has %v, %v", left, err)
	}
	if err := server.ShowBucket(); err != nil {
		t.Fatal(err)
	}
	s.do("dev", "PUT", at+"?digest="+nd.String(), nil).want(t, 201)
	for d, want := range map[digest.Digest][]byte{d: first, nd: second} {
		if got := s.do("dev", "GET", "/v2/prod/app/blobs/"+d.String(), nil).want(t, 200); !bytes.Equal(got.body, want) {
			t.Errorf("%s differs", d)
		}
	}
}

func TestBucket_Redirect(t *testing.T) {
	server := bucket.Start(t)
	// Another host than the registry's, as in life: clients keep their password.
	public := strings.Replace(server.Endpoint(), "127.0.0.1", "localhost", 1)
	s := onBucket(t, server, public, time.Now)
	b, small := make([]byte, 3<<20), []byte("small")
	_, _ = rand.Read(b)
	d, inline := s.push("prod/app", b), s.push("prod/app", small)
	path := "/v2/prod/app/blobs/" + d.String()
	server.Asked()

	// A client follows, and leaves its password behind.
	server.OnRequest(func(_ string, _ int, r *http.Request) int {
		if r.Header.Get("Authorization") != "" {
			t.Error("the bucket was sent credentials")
		}
		return 0
	})
	got := s.do("dev", "GET", path, nil).want(t, 200)
	if !bytes.Equal(got.body, b) || !strings.HasPrefix(got.Request.URL.String(), public) {
		t.Errorf("%d bytes from %s", len(got.body), got.Request.URL)
	}
	if got := s.do("dev", "GET", path, nil, "Range", "bytes=5-9").want(t, 206); !bytes.Equal(got.body, b[5:10]) {
		t.Error("a range differs")
	}
	server.OnRequest(nil)
	if asked := server.Asked(); asked["get"] != 2 || len(asked) != 1 {
		t.Errorf("the server was asked %v", asked)
	}
	r, err := http.NewRequestWithContext(t.Context(), "GET", s.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("dev", "pw")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusTemporaryRedirect || resp.Header.Get("Docker-Content-Digest") != d.String() || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v", resp.StatusCode, resp.Header)
	}
	// Access is decided before, and the rest is as ever.
	s.do("stranger", "GET", path, nil).want(t, 403)
	s.do("", "GET", path, nil).want(t, 401)
	s.do("dev", "GET", "/v2/prod/other/blobs/"+d.String(), nil).want(t, 404)
	if e := s.do("dev", "HEAD", path, nil).want(t, 200); !strings.HasPrefix(e.Request.URL.String(), s.url) {
		t.Error("a HEAD was redirected")
	}
	s.do("dev", "GET", path, nil, "If-None-Match", `"`+d.String()+`"`).want(t, 304)
	if e := s.do("dev", "GET", "/v2/prod/app/blobs/"+inline.String(), nil).want(t, 200); !strings.HasPrefix(e.Request.URL.String(), s.url) {
		t.Error("a small blob was redirected")
	}
}

// TestBucket_NothingLists: no request of a client makes the driver enumerate,
// copy or delete, and what needs no content does not ask the bucket at all.
func TestBucket_NothingLists(t *testing.T) {
	server := bucket.Start(t)
	began := time.Now() // stands: the bucket is not proven again meanwhile
	s := onBucket(t, server, "", func() time.Time { return began })
	server.Asked() // of the start
	layer := make([]byte, 12<<20)
	_, _ = rand.Read(layer)
	asked := func(what string, want map[string]int) {
		t.Helper()
		if got := server.Asked(); !maps.Equal(got, want) {
			t.Errorf("%s: the bucket was asked %v, want %v", what, got, want)
		}
	}
	d := s.push("prod/app", layer)
	asked("POST of a blob", map[string]int{"put": 1, "create": 1, "part": 2, "complete": 1})
	path := "/v2/prod/app/blobs/" + d.String()
	s.do("dev", "HEAD", path, nil).want(t, 200)
	s.do("dev", "POST", "/v2/prod/other/blobs/uploads/?from=prod/app&mount="+d.String(), nil).want(t, 201)
	config := []byte("{}")
	s.push("prod/app", config)
	manifest := image(config, layer)
	s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(manifest), "Content-Type", imageType).want(t, 201)
	s.do("dev", "GET", "/v2/prod/app/manifests/1", nil).want(t, 200)
	s.do("dev", "HEAD", "/v2/prod/app/manifests/1", nil).want(t, 200)
	s.do("dev", "GET", "/v2/prod/app/tags/list", nil).want(t, 200)
	s.do("dev", "GET", "/v2/prod/app/referrers/"+digest.FromBytes(manifest).String(), nil).want(t, 200)
	at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
	at = location(t, s.do("dev", "PATCH", at, bytes.NewReader(layer[:1<<20])).want(t, 202))
	s.do("dev", "GET", at, nil).want(t, 204)
	s.do("dev", "DELETE", at, nil).want(t, 204)
	s.do("dev", "GET", "/v2/prod/app/blobs/"+digest.FromString("none").String(), nil).want(t, 404)
	s.do("dev", "GET", path, nil, "If-None-Match", `"`+d.String()+`"`).want(t, 304)
	asked("what needs no content", map[string]int{})
	s.do("dev", "GET", path, nil).want(t, 200)
	s.do("dev", "GET", path, nil, "Range", "bytes=1000000-1000010").want(t, 206)
	asked("two GETs", map[string]int{"get": 2})
	s.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil).want(t, 202)
	s.do("admin", "DELETE", path, nil)
	asked("deletes", map[string]int{})
	// A manifest too large for the catalogue is a blob.
	large := bytes.Replace(manifest, []byte("{"), []byte(`{"annotations":{"a":"`+strings.Repeat("x", 100_000)+`"},`), 1)
	s.do("dev", "PUT", "/v2/prod/app/manifests/2", bytes.NewReader(large), "Content-Type", imageType).want(t, 201)
	asked("a large manifest", map[string]int{"put": 1})
	if got := s.do("dev", "GET", "/v2/prod/app/manifests/2", nil).want(t, 200); !bytes.Equal(got.body, large) {
		t.Error("a large manifest differs")
	}
	asked("its GET", map[string]int{"get": 1})
}
