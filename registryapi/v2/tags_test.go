package v2

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// spoken is a Tags that says what the test wants, and writes what it lets pass.
type spoken struct {
	local
	err      error
	cond     Condition
	caughtUp int
}

func (s *spoken) Put(ctx context.Context, put catalog.Put, cond Condition) error {
	s.cond = cond
	if s.err != nil {
		return s.err
	}
	return s.local.Put(ctx, put, Condition{})
}

func (s *spoken) DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag string, match []digest.Digest, actor string, acl uint64) error {
	s.cond = Condition{Match: match}
	if s.err != nil {
		return s.err
	}
	return s.local.DeleteTag(ctx, pid, repo, tag, nil, actor, acl)
}

func (s *spoken) CatchUp(context.Context, identity.ProjectID) error {
	s.caughtUp++
	return s.err
}

// TestTags_Answers is what clients hear when the mesh says no, or cannot say.
func TestTags_Answers(t *testing.T) {
	tags := &spoken{}
	s := newSite(t, func(c *Config) { tags.local = local{c.Store.Catalog()}; c.Tags = tags })
	layer, config := []byte("a layer"), []byte(`{"os":"linux"}`)
	img := image(config, layer)
	s.push("prod/app", layer)
	s.push("prod/app", config)
	if r := s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(img), "Content-Type", imageType); r.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", r.StatusCode, string(r.body))
	}
	lost := &command.Unavailable{Reason: "the majority of the voting sites cannot be reached from here", Sites: []string{"nyc", "sgp"}, RetryAfter: 1500 * time.Millisecond}
	for name, c := range map[string]struct {
		err    error
		status int
		code   string
		says   []string
		retry  string
	}{
		"no majority": {lost, 503, "UNAVAILABLE", []string{"cannot reach nyc, sgp", "nothing was changed", `"sites":["nyc","sgp"]`}, "2"},
		"perhaps":     {&command.Unavailable{Reason: "leadership was lost", Indeterminate: true}, 503, "UNAVAILABLE", []string{"is not known"}, "5"},
		"lost race":   {&command.Error{Code: command.CodeConflict, Message: "the tag 1 was set meanwhile"}, 409, "DENIED", []string{"the tag 1 was set meanwhile"}, ""},
		"too many":    {&command.Error{Code: command.CodeDenied, Message: "100000 are possible"}, 403, "DENIED", []string{"100000 are possible"}, ""},
		"gone":        {&command.Error{Code: command.CodeNotFound, Message: "the project was deleted"}, 404, "NAME_UNKNOWN", []string{"the project was deleted"}, ""},
		"condition":   {&Refused{412, "the tag 1 says something else"}, 412, "DENIED", []string{"something else"}, ""},
		"few sites":   {&Unavailable{Reason: "stored at 1 of 2", RetryAfter: 7 * time.Second}, 503, "UNAVAILABLE", []string{"stored at 1 of 2"}, "7"},
	} {
		tags.err = c.err
		for _, r := range []exchange{
			s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(img), "Content-Type", imageType),
			s.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil),
			s.do("dev", "GET", "/v2/prod/app/manifests/1", nil, consistencyHeader, "strict"),
			s.do("dev", "GET", "/v2/prod/app/tags/list", nil, consistencyHeader, "strict"),
		} {
			if r.StatusCode != c.status || !strings.Contains(string(r.body), fmt.Sprintf("%q", c.code)) || r.Header.Get("Retry-After") != c.retry {
				t.Errorf("%s: %d %q %s", name, r.StatusCode, r.Header.Get("Retry-After"), string(r.body))
			}
			for _, w := range c.says {
				if !strings.Contains(string(r.body), w) {
					t.Errorf("%s: no %q in %s", name, w, string(r.body))
				}
			}
		}
	}
	tags.err = nil

	// Conditions of a push.
	d := digest.FromBytes(img)
	for header, want := range map[[2]string]Condition{
		{"If-None-Match", "*"}:                   {New: true},
		{"If-Match", `"` + d.String() + `"`}:     {Match: []digest.Digest{d}},
		{"If-Match", fmt.Sprintf("%q,%q", d, d)}: {Match: []digest.Digest{d, d}},
	} {
		r := s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(img), "Content-Type", imageType, header[0], header[1])
		if r.StatusCode != http.StatusCreated || tags.cond.New != want.New || len(tags.cond.Match) != len(want.Match) {
			t.Errorf("%v: %d %s, %+v", header, r.StatusCode, string(r.body), tags.cond)
		}
	}
	for _, header := range [][2]string{{"If-None-Match", `"x"`}, {"If-Match", "*"}, {"If-Match", d.String()}, {"If-Match", `"` + d.String()}} {
		if r := s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(img), "Content-Type", imageType, header[0], header[1]); r.StatusCode != http.StatusBadRequest {
			t.Errorf("%v: %d %s", header, r.StatusCode, string(r.body))
		}
	}

	// And of a deletion.
	for _, header := range [][2]string{{"If-None-Match", "*"}, {"If-Match", "*"}, {"If-Match", d.String()}, {"If-Match", "\"x\""}} {
		if r := s.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil, header[0], header[1]); r.StatusCode != http.StatusBadRequest {
			t.Errorf("DELETE with %v: %d %s", header, r.StatusCode, string(r.body))
		}
	}
	other := digest.FromString("another")
	if r := s.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil, "If-Match", fmt.Sprintf("%q, %q", other, d)); r.StatusCode != http.StatusAccepted || !slices.Equal(tags.cond.Match, []digest.Digest{other, d}) {
		t.Errorf("DELETE with If-Match: %d %s, %+v", r.StatusCode, string(r.body), tags.cond)
	}
	if r := s.do("admin", "DELETE", "/v2/prod/app/manifests/"+d.String(), nil, "If-Match", fmt.Sprintf("%q", other)); r.StatusCode != http.StatusPreconditionFailed {
		t.Errorf("DELETE by digest with another in If-Match: %d %s", r.StatusCode, string(r.body))
	}
	s.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(img), "Content-Type", imageType).want(t, http.StatusCreated)

	// A strict read needs a login, says that it was one, and is one by tag alone.
	tags.caughtUp = 0
	if r := s.do("dev", "HEAD", "/v2/prod/app/manifests/1", nil, consistencyHeader, "strict"); r.StatusCode != 200 || r.Header.Get(consistencyHeader) != "strict" || tags.caughtUp != 1 {
		t.Errorf("%d %q, caught up %d times", r.StatusCode, r.Header.Get(consistencyHeader), tags.caughtUp)
	}
	if r := s.do("dev", "GET", "/v2/prod/app/manifests/"+d.String(), nil, consistencyHeader, "strict"); r.StatusCode != 200 || tags.caughtUp != 1 {
		t.Errorf("by digest: %d, caught up %d times", r.StatusCode, tags.caughtUp)
	}
	if r := s.do("", "GET", "/v2/library/app/manifests/1", nil, consistencyHeader, "strict"); r.StatusCode != http.StatusUnauthorized || tags.caughtUp != 1 {
		t.Errorf("nobody: %d, caught up %d times", r.StatusCode, tags.caughtUp)
	}
	if r := s.do("dev", "GET", "/v2/prod/app/manifests/1", nil, consistencyHeader, "sometimes"); r.StatusCode != http.StatusBadRequest {
		t.Errorf("an unknown word: %d", r.StatusCode)
	}
	// Without a mesh there is neither.
	alone := newSite(t)
	alone.push("prod/app", layer)
	alone.push("prod/app", config)
	for _, header := range []string{"If-None-Match", consistencyHeader} {
		method, body := "PUT", img
		if header == consistencyHeader {
			method, body = "GET", nil
		}
		if r := alone.do("dev", method, "/v2/prod/app/manifests/1", bytes.NewReader(body), "Content-Type", imageType, header, map[string]string{"If-None-Match": "*", consistencyHeader: "strict"}[header]); r.StatusCode != http.StatusBadRequest {
			t.Errorf("%s at a site alone: %d %s", header, r.StatusCode, string(r.body))
		}
	}
	alone.do("dev", "PUT", "/v2/prod/app/manifests/1", bytes.NewReader(img), "Content-Type", imageType).want(t, http.StatusCreated)
	alone.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil, "If-Match", fmt.Sprintf("%q", d)).want(t, http.StatusBadRequest)
	alone.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil).want(t, http.StatusAccepted)
}
