package v2

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestClosed: a site that takes no changes any more serves what it has, and says
// why it takes nothing; to those alone who might have pushed.
func TestClosed(t *testing.T) {
	var shut atomic.Bool
	s := newSite(t, func(c *Config) {
		c.Closed = func() string {
			if shut.Load() {
				return "this node was removed"
			}
			return ""
		}
	})
	config, layer := []byte("{}"), []byte("layer")
	s.push("prod/app", config)
	d := s.push("prod/app", layer)
	m := image(config, layer)
	s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(m), "Content-Type", imageType).want(t, http.StatusCreated)
	shut.Store(true)
	s.do("guest", "GET", "/v2/prod/app/manifests/1", nil).want(t, http.StatusOK)
	s.do("guest", "GET", "/v2/prod/app/blobs/"+d.String(), nil).want(t, http.StatusOK)
	s.do("guest", "GET", "/v2/prod/app/tags/list", nil).want(t, http.StatusOK)
	for _, c := range [][2]string{
		{"POST", "/v2/prod/app/blobs/uploads/"},
		{"POST", "/v2/prod/app/blobs/uploads/?digest=" + digest.FromString("x").String()},
		{"PUT", "/v2/prod/app/manifests/2"},
		{"DELETE", "/v2/prod/app/manifests/1"},
		{"DELETE", "/v2/prod/app/blobs/" + d.String()},
	} {
		if e := s.do("admin", c[0], c[1], bytes.NewReader(m), "Content-Type", imageType).want(t, http.StatusForbidden); !strings.Contains(string(e.body), "this node was removed") {
			t.Errorf("%s %s: %s", c[0], c[1], e.body)
		}
	}
	if e := s.do("stranger", "PUT", "/v2/prod/app/manifests/2", bytes.NewReader(m), "Content-Type", imageType).want(t, http.StatusForbidden); strings.Contains(string(e.body), "removed") {
		t.Errorf("a stranger learns: %s", e.body)
	}
}

// TestPushing: a site that is about to be removed takes no manifests, and says for
// how long; what is under way is counted until its answer.
func TestPushing(t *testing.T) {
	var shut atomic.Bool
	var underWay atomic.Int64
	s := newSite(t, func(c *Config) {
		c.Pushing = func() (func(), time.Duration) {
			if shut.Load() {
				return nil, 90 * time.Second
			}
			underWay.Add(1)
			return func() { underWay.Add(-1) }, 0
		}
	})
	config, layer := []byte("{}"), []byte("layer")
	s.push("prod/app", config)
	s.push("prod/app", layer)
	m := image(config, layer)
	put := func(tag string) exchange {
		return s.do("dev", "PUT", "/v2/prod/app/manifests/"+tag, bytes.NewReader(m), "Content-Type", imageType)
	}
	put("1").want(t, http.StatusCreated)
	s.do("dev", "PUT", "/v2/prod/app/manifests/2", strings.NewReader("no manifest"), "Content-Type", imageType).want(t, http.StatusBadRequest)
	if n := underWay.Load(); n != 0 {
		t.Errorf("%d pushes are said to be under way", n)
	}
	// One that still sends is not under way.
	body, sends := io.Pipe()
	slow := make(chan exchange, 1)
	go func() {
		// The body is sent once the server asks for it.
		e, err := s.try("dev", "PUT", "/v2/prod/app/manifests/slow", body, "Content-Type", imageType, "Expect", "100-continue")
		if err != nil {
			t.Error(err)
		}
		slow <- e
	}()
	if _, err := sends.Write(m[:1]); err != nil { // the server waits for it by now
		t.Fatal(err)
	}
	if n := underWay.Load(); n != 0 {
		t.Errorf("%d pushes are said to be under way while a client sends", n)
	}
	if _, err := sends.Write(m[1:]); err != nil {
		t.Fatal(err)
	}
	_ = sends.Close()
	(<-slow).want(t, http.StatusCreated)
	shut.Store(true)
	e := put("2").want(t, http.StatusServiceUnavailable)
	if e.Header.Get("Retry-After") != "90" || !strings.Contains(string(e.body), "push to another site") {
		t.Errorf("%v %s", e.Header, e.body)
	}
	s.do("dev", "GET", "/v2/prod/app/manifests/1", nil).want(t, http.StatusOK)
	s.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil).want(t, http.StatusAccepted)
}
