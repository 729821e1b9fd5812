package v2

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// heard is what Siblings are told, in order.
type heard chan string

func (h heard) Served(_ identity.ProjectID, repo string, d digest.Digest) {
	h <- fmt.Sprintf("served %s %s", repo, d)
}

func (h heard) Asked(w Want, missing bool) func() {
	h <- fmt.Sprintf("asked %s %s by %s, missing %v", w.Repo, w.Digest, w.Subject, missing)
	return func() { h <- "end " + w.Digest.String() }
}

// next gives the next n of what is said, and what is said beyond them already.
func (h heard) next(t *testing.T, n int) (out []string) {
	t.Helper()
	for len(out) < n || len(h) > 0 {
		select {
		case what := <-h:
			out = append(out, what)
		case <-time.After(20 * time.Second):
			t.Fatalf("heard %q and no more", out)
		}
	}
	return out
}

// TestSiblings_HearOfPullsThatWereAllowed: of GETs that a client may do, and of nothing else.
func TestSiblings_HearOfPullsThatWereAllowed(t *testing.T) {
	layer, config := []byte("far away"), []byte("{}")
	mesh := &elsewhere{content: map[digest.Digest][]byte{digest.FromBytes(layer): layer}}
	h := make(heard, 16)
	s := newSite(t, func(c *Config) { c.Source, c.Claimer, c.Refresher, c.Siblings = mesh, mesh, mesh, h })
	d := s.push("prod/app", config)
	m := image(config, layer)
	s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(m), "Content-Type", imageType).want(t, 201)
	far, image := digest.FromBytes(layer), digest.FromBytes(m)
	if got := h.next(t, 0); len(got) != 0 {
		t.Fatalf("a push says %q", got)
	}
	for name, c := range map[string]struct {
		user, method, path string
		header             []string
		status             int
		want               []string
	}{
		"a manifest by tag":          {"guest", "GET", "manifests/1", nil, 200, []string{"served app " + image.String()}},
		"and by digest":              {"guest", "GET", "manifests/" + image.String(), nil, 200, []string{"served app " + image.String()}},
		"its head":                   {"guest", "HEAD", "manifests/1", nil, 200, nil},
		"who has it already":         {"guest", "GET", "manifests/1", []string{"If-None-Match", image.String()}, 304, nil},
		"who may not read it":        {"stranger", "GET", "manifests/1", nil, 403, nil},
		"a blob that is missing":     {"guest", "GET", "blobs/" + far.String(), nil, 200, []string{"asked app " + far.String() + " by user:guest, missing true", "end " + far.String()}},
		"its head, too":              {"guest", "HEAD", "blobs/" + far.String(), nil, 200, nil},
		"a part of it":               {"guest", "GET", "blobs/" + far.String(), []string{"Range", "bytes=0-1"}, 206, []string{"asked app " + far.String() + " by user:guest, missing false", "end " + far.String()}},
		"a blob that is here":        {"guest", "GET", "blobs/" + d.String(), nil, 200, []string{"asked app " + d.String() + " by user:guest, missing false", "end " + d.String()}},
		"a blob that nobody has":     {"guest", "GET", "blobs/" + digest.FromString("x").String(), nil, 404, nil},
		"a blob for who may not":     {"stranger", "GET", "blobs/" + far.String(), nil, 403, nil},
		"a manifest that nobody has": {"guest", "GET", "manifests/2", nil, 404, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s.do(c.user, c.method, "/v2/prod/app/"+c.path, nil, c.header...).want(t, c.status)
			got := h.next(t, len(c.want)) // the end may come after the answer
			if !slices.Equal(got, c.want) {
				t.Errorf("heard %q, want %q", got, c.want)
			}
		})
	}
}
