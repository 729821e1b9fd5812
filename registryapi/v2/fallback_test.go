package v2

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
)

// What cannot be read now is left out of the referrers list with a warning, and
// not passed off as nothing.
func TestReferrers_WhileTheirSitesCannotBeReached(t *testing.T) {
	mesh := &elsewhere{content: map[digest.Digest][]byte{}}
	s := newSite(t, func(c *Config) { c.Source, c.Claimer, c.Refresher = mesh, mesh, mesh })
	config := []byte("{}")
	s.push("prod/app", config)
	subject := image(config)
	put := func(ref string, m []byte, mediaType string) {
		t.Helper()
		s.do("dev", "PUT", "/v2/prod/app/manifests/"+ref, bytes.NewReader(m), "Content-Type", mediaType).want(t, 201)
	}
	// Manifests that are too large for a row of the catalogue, and so are blobs.
	large := bytes.Replace(referrer(subject, "x/y", config, "large"), []byte(`"note"`), fmt.Appendf(nil, `"filler":%q,"note"`, strings.Repeat("a", catalog.MaxInlineManifest)), 1)
	bare := image(config)
	bare = bytes.Replace(bare, []byte("{"), []byte(`{"artifactType":"a/b",`), 1)
	list := index(bare)
	list = bytes.Replace(list, []byte("{"), fmt.Appendf(nil, `{"annotations":{"filler":%q},`, strings.Repeat("a", catalog.MaxInlineManifest)), 1)
	put("image", subject, imageType)
	put(digest.FromBytes(large).String(), large, imageType)
	put(digest.FromBytes(bare).String(), bare, imageType)
	put(referrersTag(digest.FromBytes(subject)), list, indexType)

	path := "/v2/prod/app/referrers/" + digest.FromBytes(subject).String()
	e := s.do("guest", "GET", path, nil).want(t, 200)
	for _, want := range []string{digest.FromBytes(bare).String(), `"artifactType":"a/b"`, `"note":"large"`} {
		if !strings.Contains(string(e.body), want) {
			t.Errorf("the list lacks %s: %s", want, clip(string(e.body)))
		}
	}
	if w := e.Header.Values("Warning"); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}

	mesh.down = []string{"sgp"}
	for _, m := range [][]byte{large, list} {
		if err := s.store.Catalog().LostBlob(t.Context(), digest.FromBytes(m)); err != nil {
			t.Fatal(err)
		}
	}
	e = s.do("guest", "GET", path, nil).want(t, 200)
	if !strings.Contains(string(e.body), digest.FromBytes(large).String()) || strings.Contains(string(e.body), digest.FromBytes(bare).String()) {
		t.Errorf("the list while sgp is away: %s", clip(string(e.body)))
	}
	w := strings.Join(e.Header.Values("Warning"), "\n")
	for _, want := range []string{`299 - "what clients list under tag sha256-`, `299 - "` + digest.FromBytes(large).String() + " cannot be read now"} {
		if !strings.Contains(w, want) {
			t.Errorf("no warning %q: %q", want, w)
		}
	}
	// An old client that needs the index to be read is told to come again.
	e = s.do("guest", "GET", "/v2/prod/app/manifests/"+referrersTag(digest.FromBytes(subject)), nil, "Accept", imageType).want(t, 503)
	if e.Header.Get("Retry-After") == "" {
		t.Errorf("no Retry-After: %v", e.Header)
	}
}

func TestReferrersTag(t *testing.T) {
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		d := a.FromString("x")
		tag := referrersTag(d)
		if want := a.String() + "-" + d.Encoded()[:64]; tag != want || !isReferrersTag(tag) || !tagRegexp.MatchString(tag) {
			t.Errorf("%s: %s, want %s", d, tag, want)
		}
	}
	hex := strings.Repeat("0", 64)
	for _, tag := range []string{"", "sha256", "sha256-", "sha256-" + hex[1:], "sha256-" + hex + "0", "sha256-" + hex[1:] + "g", "sha1-" + hex, hex, "sha256-" + hex + ".sig"} {
		if isReferrersTag(tag) {
			t.Errorf("%q is taken for a referrers tag", tag)
		}
	}
}

// Warnings keep the specification's form and bound whatever is in them.
func TestWarn(t *testing.T) {
	w := httptest.NewRecorder()
	q := &request{w: w}
	q.warn("tag %s", "a\"b\\c\r\nSet-Cookie: x\x00é")
	if got, want := w.Header().Get("Warning"), `299 - "tag a?b?c??Set-Cookie: x??"`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for range 100 {
		q.warn("%s", strings.Repeat("x", 100))
	}
	size := 0
	for _, v := range w.Header().Values("Warning") {
		size += len(v)
	}
	if size > warningBytes || size < warningBytes-200 {
		t.Errorf("%d bytes of warnings, %d are allowed", size, warningBytes)
	}
}

func TestAccepts(t *testing.T) {
	for _, c := range []struct {
		accept []string
		want   bool
	}{
		{nil, true},
		{[]string{indexType}, true},
		{[]string{imageType + ", " + indexType}, true},
		{[]string{imageType, indexType}, true},
		{[]string{strings.ToUpper(indexType) + " ; q=0.3"}, true},
		{[]string{"*/*"}, true},
		{[]string{"text/html,application/*;q=0.1"}, true},
		{[]string{imageType}, false},
		{[]string{""}, false},
		{[]string{",;,"}, false},
		{[]string{indexType + ";q=0"}, false},
		{[]string{indexType + ";v=1; Q=0.000"}, false},
		{[]string{"*/*;q=0," + imageType}, false},
		{[]string{indexType + "x"}, false},
	} {
		if got := accepts(http.Header{"Accept": c.accept}, indexType); got != c.want {
			t.Errorf("%q: %v, want %v", c.accept, got, c.want)
		}
	}
}
