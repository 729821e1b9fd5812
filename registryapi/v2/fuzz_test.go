package v2

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
)

// serve answers a request in this process; user "" is anonymous.
func (s *site) serve(r *http.Request, user string) *httptest.ResponseRecorder {
	if user != "" {
		r.SetBasicAuth(user, "pw")
	}
	w := httptest.NewRecorder()
	s.v2.ServeHTTP(w, r)
	return w
}

// rawRequest makes one whose target may be anything that a client can write; nil
// where net/http would not have let it through.
func rawRequest(method, path, query string, body io.Reader) *http.Request {
	r := httptest.NewRequest(method, "/v2/", body)
	u, err := url.ParseRequestURI(path)
	if err != nil || !strings.HasPrefix(u.Path, "/v2/") {
		return nil
	}
	r.URL.Path, r.URL.RawPath, r.URL.RawQuery = u.Path, u.RawPath, query
	return r
}

// refusal checks what is true of every answer: no fault of the node's, and what
// refuses has the specification's form and a bounded length.
func refusal(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	if w.Code >= 500 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	for name, values := range w.Header() {
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n\x00") {
				t.Fatalf("header %s is %q", name, v)
			}
		}
	}
	if w.Code < 400 || w.Code == http.StatusRequestedRangeNotSatisfiable && w.Header().Get("Content-Range") != "" { // net/http's own words
		return
	}
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body.Errors) == 0 || body.Errors[0].Code == "" || body.Errors[0].Message == "" || w.Body.Len() > 4<<10 {
		t.Fatalf("%d with %d bytes: %.300s (%v)", w.Code, w.Body.Len(), w.Body, err)
	}
}

// seeded has a repository prod/app of 40 tags, of one image with referrers.
func seeded(f *testing.F) (s *site, tags []string, subject digest.Digest) {
	f.Helper()
	s = newSite(f)
	config := []byte("{}")
	s.push("prod/app", config)
	put := func(ref string, m []byte) {
		if w := s.serve(withType(httptest.NewRequest(http.MethodPut, "/v2/prod/app/manifests/"+ref, strings.NewReader(string(m)))), "admin"); w.Code != http.StatusCreated {
			f.Fatalf("%d %s", w.Code, w.Body)
		}
	}
	img := image(config)
	for i := range 40 {
		tags = append(tags, fmt.Sprintf("%c%d._-", "aAzZ_0"[i%6], i))
		put(tags[i], img)
	}
	slices.Sort(tags)
	for i := range 7 {
		ref := referrer(img, fmt.Sprintf("application/x.%d", i%2), config, strconv.Itoa(i))
		put(digest.FromBytes(ref).String(), ref)
	}
	return s, tags, digest.FromBytes(img)
}

func withType(r *http.Request) *http.Request {
	r.Header.Set("Content-Type", imageType)
	return r
}

// FuzzRequests sends any path, query and method as an administrator, to whom
// nothing is forbidden: nothing may be a fault of the node's.
func FuzzRequests(f *testing.F) {
	s, _, subject := seeded(f)
	none := "sha256:" + strings.Repeat("a", 64)
	for _, c := range [][3]string{
		{"GET", "/v2/prod/app/tags/list", "n=3&last=a"}, {"GET", "/v2/_catalog", "n=%zz"}, {"GET", "/v2/_catalog", "last=%00&n=00"},
		{"GET", "/v2/prod/app/referrers/" + subject.String(), "artifactType=application/x.1&n=1"}, {"GET", "/v2/prod/app/referrers/sha512:aa", "last=x"},
		{"POST", "/v2/prod/app/blobs/uploads/", "mount=" + none + "&from=library/x"}, {"POST", "/v2/prod/app/blobs/uploads/", "digest=" + none},
		{"POST", "/v2/prod/app/blobs/uploads/", "digest=" + none + "&digest=x&mount=%20"}, {"PUT", "/v2/prod/app/blobs/uploads/x.y", "digest=" + none},
		{"PUT", "/v2/prod/app/manifests/" + subject.String(), "tag=a&tag=%0a"}, {"HEAD", "/v2/prod/app/blobs/" + none, "x;y"},
		{"DELETE", "/v2/prod/app/manifests/..%2f..", ""}, {"GET", "/v2/a%2fb/manifests/%00", ""}, {"PATCH", "/v2/x/blobs/uploads/", "\xff"},
		{"GET", "/v2/reg.example:5000/prod/app/tags/list", ""}, {"GET", "/v2/-/blobs/uploads/uploads/blobs", ""},
	} {
		f.Add(c[0], c[1], c[2], "body")
	}
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		switch method {
		case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE":
		default:
			return
		}
		r := rawRequest(method, path, query, strings.NewReader(body))
		if r == nil {
			return
		}
		w := s.serve(r, "admin")
		if method == http.MethodHead {
			if w.Code >= 500 || w.Body.Len() > 0 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			return
		}
		refusal(t, w)
		if w.Code == http.StatusAccepted && method == http.MethodPost {
			// As a client that changes its mind: the share is not what is tested.
			u, err := url.Parse(w.Header().Get("Location"))
			if err != nil {
				t.Fatal(err)
			}
			if end := s.serve(rawRequest(http.MethodDelete, u.EscapedPath(), u.RawQuery, nil), "admin"); end.Code != http.StatusNoContent {
				t.Fatalf("cancel at %s: %d %s", u, end.Code, end.Body)
			}
		}
	})
}

var linkForm = regexp.MustCompile(`^<([^>]*)>; rel="next"$`)

// walk follows the Link headers from a path on, as clients do (resolve against
// the request's URL, ask again), and gives what pick finds on each page.
func (s *site) walk(t *testing.T, path, query string, n int, pick func([]byte) []string) (all []string) {
	t.Helper()
	at := &url.URL{Path: path, RawQuery: query}
	for range 100 {
		w := s.serve(rawRequest(http.MethodGet, at.EscapedPath(), at.RawQuery, nil), "admin")
		refusal(t, w)
		if w.Code != http.StatusOK {
			return nil
		}
		page := pick(w.Body.Bytes())
		if n > 0 && len(page) > n {
			t.Fatalf("%s: %d entries, asked for %d", at, len(page), n)
		}
		all = append(all, page...)
		link := w.Header().Get("Link")
		if link == "" {
			return all
		}
		m := linkForm.FindStringSubmatch(link)
		if m == nil {
			t.Fatalf("link %q", link)
		}
		next, err := url.Parse(m[1])
		if err != nil || len(page) == 0 {
			t.Fatalf("link %q after %d entries: %v", link, len(page), err)
		}
		at = at.ResolveReference(next)
	}
	t.Fatalf("%s?%s: pages without end", path, query)
	return nil
}

// FuzzPages walks lists from any n and last: the pages together are what comes
// after last, once each, in order.
func FuzzPages(f *testing.F) {
	s, tags, subject := seeded(f)
	for _, c := range []struct{ n, last, artifactType string }{
		{"3", "", ""}, {"1", "a0._-", "application/x.1"}, {"", "zzz", ""}, {"007", "Z", "application/x.0"}, {"40", "\x00", "x"}, {"39", "~", "a b&c"}, {"0", "", ""}, {"-1", "", ""},
	} {
		f.Add(c.n, c.last, c.artifactType)
	}
	f.Fuzz(func(t *testing.T, n, last, artifactType string) {
		count, err := strconv.Atoi(n)
		if n == "" {
			count, err = 1000, nil
		}
		if err != nil || count < 1 || strings.HasPrefix(n, "+") {
			count = 0
		}
		query := url.Values{"n": {n}, "last": {last}}.Encode()
		got := s.walk(t, "/v2/prod/app/tags/list", query, count, func(b []byte) []string {
			var page struct{ Tags []string }
			if err := json.Unmarshal(b, &page); err != nil {
				t.Fatal(err)
			}
			return page.Tags
		})
		if count > 0 {
			i, found := slices.BinarySearch(tags, last)
			if found {
				i++
			}
			if !slices.Equal(got, tags[i:]) && len(got)+len(tags[i:]) > 0 {
				t.Fatalf("n=%q last=%q: %q, want %q", n, last, got, tags[i:])
			}
		}
		// Referrers: whatever the type is, the pages are what one page would be.
		list := func(b []byte) (out []string) {
			var index struct {
				Manifests []struct{ Digest, ArtifactType string }
			}
			if err := json.Unmarshal(b, &index); err != nil {
				t.Fatal(err)
			}
			for _, d := range index.Manifests {
				if artifactType != "" && d.ArtifactType != artifactType {
					t.Fatalf("asked for %q, got %q", artifactType, d.ArtifactType)
				}
				out = append(out, d.Digest)
			}
			return out
		}
		path, filter := "/v2/prod/app/referrers/"+subject.String(), url.Values{"artifactType": {artifactType}}
		whole := s.walk(t, path, filter.Encode(), 0, list)
		if count > 0 {
			filter.Set("n", n)
			if pages := s.walk(t, path, filter.Encode(), count, list); !slices.Equal(pages, whole) {
				t.Fatalf("referrers of type %q by %q: %q, in one page %q", artifactType, n, pages, whole)
			}
		}
	})
}

// FuzzDigest compares with the specification's grammar and go-digest.
func FuzzDigest(f *testing.F) {
	known := regexp.MustCompile(`^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$`)
	for _, s := range []string{"sha256:" + strings.Repeat("a", 64), "sha256:" + strings.Repeat("A", 64), "sha512:" + strings.Repeat("0", 128), "sha256:", "", "sha256:" + strings.Repeat("a", 64) + "\n", "sha256+b64:aaaa", "md5:" + strings.Repeat("a", 32)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := parseDigest(s)
		if err == nil && (!known.MatchString(s) || digest.Digest(s).Validate() != nil || d.String() != s) {
			t.Fatalf("%q is taken as %q", s, d)
		}
		if err != nil && known.MatchString(s) && strings.HasPrefix(s, "sha256:") {
			t.Fatalf("%q: %v", s, err)
		}
	})
}

// FuzzSession tries names of upload sessions: only the one that was given out
// is one.
func FuzzSession(f *testing.F) {
	s := newSite(f)
	w := s.serve(httptest.NewRequest(http.MethodPost, "/v2/prod/app/blobs/uploads/", nil), "dev")
	given := strings.TrimPrefix(w.Header().Get("Location"), "/v2/prod/app/blobs/uploads/")
	if w.Code != http.StatusAccepted || given == "" {
		f.Fatalf("%d %s", w.Code, w.Body)
	}
	id, code, _ := strings.Cut(given, ".")
	for _, try := range []string{given, id, code, id + ".", "." + code, strings.ToUpper(given), given + "0", given[:len(given)-1], id + "." + strings.Repeat("0", len(code)), given + "." + code, "..", strings.Repeat("a", 200)} {
		f.Add(try)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r := rawRequest(http.MethodGet, "/v2/prod/app/blobs/uploads/"+url.PathEscape(name), "", nil)
		if r == nil || name == "" || strings.Contains(name, "/") {
			return
		}
		w := s.serve(r, "dev")
		refusal(t, w)
		if (w.Code == http.StatusNoContent) != (name == given) {
			t.Fatalf("%q: %d %s", name, w.Code, w.Body)
		}
	})
}

// FuzzRange_LikeServeContent: ranges and conditions are answered as net/http
// answers them for the same bytes, but that too many ranges are as none.
func FuzzRange_LikeServeContent(f *testing.F) {
	s := newSite(f)
	content := strings.Repeat("0123456789", 10)
	d := s.push("prod/app", []byte(content))
	for _, c := range [][2]string{{"bytes=0-0", ""}, {"bytes=-5", `"x"`}, {"bytes=5-", `"` + d.String() + `"`}, {"bytes=0-1,8-9", ""}, {"bytes=" + strings.Repeat("0-0,", 500), ""}, {"bytes=99-100", ""}, {"bytes=100-", ""}, {"bytes=--1", ""}} {
		f.Add(c[0], c[1])
	}
	boundary := regexp.MustCompile(`boundary=([0-9a-f]+)`)
	f.Fuzz(func(t *testing.T, ranges, ifRange string) {
		ask := func() *http.Request {
			r := httptest.NewRequest(http.MethodGet, "/v2/prod/app/blobs/"+d.String(), nil)
			r.Header["Range"] = []string{ranges}
			if ifRange != "" {
				r.Header["If-Range"] = []string{ifRange}
			}
			return r
		}
		got := s.serve(ask(), "dev")
		want := httptest.NewRecorder()
		want.Header().Set("Content-Type", "application/octet-stream")
		setDigest(want.Header(), d)
		r := ask()
		if strings.Count(ranges, ",") >= mostRanges {
			r.Header.Del("Range")
		}
		http.ServeContent(want, r, "", time.Time{}, strings.NewReader(content))
		plain := func(w *httptest.ResponseRecorder) string { // without the boundary, which is random
			text := w.Body.String()
			if m := boundary.FindStringSubmatch(w.Header().Get("Content-Type")); m != nil {
				text = strings.ReplaceAll(text, m[1], "boundary")
			}
			return fmt.Sprint(w.Code, w.Header().Get("Content-Range"), w.Header().Get("Content-Length"), text)
		}
		if plain(got) != plain(want) {
			t.Fatalf("%q, if %q: %s, net/http says %s", ranges, ifRange, plain(got), plain(want))
		}
	})
}

// FuzzAuthorization: a header that is not somebody's name and password, or a
// token of ours, is nobody; and it never is a fault of the node's.
func FuzzAuthorization(f *testing.F) {
	s := newSite(f)
	for _, v := range []string{"Basic ZGV2OnB3", "basic  ZGV2OnB3", "Basic", "Bearer", "Bearer a.b.c", "Basic ZGV2OnB3Cg==", "Bearer eyJhbGciOiJub25lIn0.e30.", "Digest x", " ", "Basic Og=="} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest(http.MethodGet, "/v2/prod/app/blobs/sha256:"+strings.Repeat("a", 64), nil)
		r.Header["Authorization"] = []string{header}
		w := httptest.NewRecorder()
		s.v2.ServeHTTP(w, r)
		refusal(t, w)
		switch w.Code {
		case http.StatusUnauthorized:
			if w.Header().Get("WWW-Authenticate") == "" {
				t.Fatalf("%q: 401 without a challenge", header)
			}
		case http.StatusTooManyRequests:
		default: // then it was dev, by name and password
			if name, password, ok := r.BasicAuth(); !ok || password != "pw" || name == "" {
				t.Fatalf("%q: %d %s", header, w.Code, w.Body)
			}
		}
	})
}

// FuzzManifest pushes any body under any content type: taken means that it comes
// back as it was, under one media type, and that all it names is here.
func FuzzManifest(f *testing.F) {
	s := newSite(f)
	config, layer := []byte("{}"), []byte("layer")
	s.push("prod/app", config)
	s.push("prod/app", layer)
	pid := s.project("prod").PID
	for _, m := range []string{string(image(config, layer)), string(image(config)), string(index()), `{"schemaVersion":2,"manifests":null}`, `x`, `{"mediaType":"` + indexType + `"}`} {
		f.Add(imageType, m)
		f.Add(indexType, m)
		f.Add("application/vnd.example; a=b", m)
	}
	f.Fuzz(func(t *testing.T, contentType, body string) {
		r := httptest.NewRequest(http.MethodPut, "/v2/prod/app/manifests/fuzz", strings.NewReader(body))
		r.Header["Content-Type"] = []string{contentType}
		w := s.serve(r, "dev")
		refusal(t, w)
		if w.Code != http.StatusCreated {
			return
		}
		d := digest.FromString(body)
		back := s.serve(httptest.NewRequest(http.MethodGet, "/v2/prod/app/manifests/fuzz", nil), "dev")
		if back.Code != http.StatusOK || back.Body.String() != body || back.Header().Get("Docker-Content-Digest") != d.String() {
			t.Fatalf("%q came back as %d %v %q", body, back.Code, back.Header(), back.Body)
		}
		if got, _, _ := strings.Cut(contentType, ";"); strings.Contains(got, "/") && !strings.EqualFold(strings.TrimSpace(got), back.Header().Get("Content-Type")) && back.Header().Get("Content-Type") != imageType && back.Header().Get("Content-Type") != indexType {
			t.Fatalf("sent as %q, served as %q", contentType, back.Header().Get("Content-Type"))
		}
		info, err := s.store.Catalog().Manifest(pid, "app", d)
		if err != nil || info.Size != int64(len(body)) {
			t.Fatalf("%+v, %v", info, err)
		}
		if err := s.store.Catalog().DeleteManifest(t.Context(), pid, "app", d, "user:admin", 0); err != nil && !strings.Contains(err.Error(), catalog.ErrNotFound.Error()) {
			t.Fatal(err)
		}
	})
}
