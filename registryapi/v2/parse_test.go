package v2

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	dist "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/gorilla/mux"
)

// fileSpy is a ResponseWriter that says in what form its body came.
type fileSpy struct {
	header        http.Header
	n             int64
	files, others int
}

func (w *fileSpy) Header() http.Header { return w.header }
func (w *fileSpy) WriteHeader(int)     {}
func (w *fileSpy) Write(b []byte) (int, error) {
	w.others++
	w.n += int64(len(b))
	return len(b), nil
}

func (w *fileSpy) ReadFrom(r io.Reader) (int64, error) {
	if lr, ok := r.(*io.LimitedReader); ok {
		if _, ok := lr.R.(*os.File); ok {
			w.files++
		} else {
			w.others++
		}
	}
	n, err := io.Copy(io.Discard, r)
	w.n += n
	return n, err
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"0-0", "0-99", "bytes 5-9/10", "bytes=1-2", "9-5", "", "-", "9223372036854775807-9223372036854775807", "0-9223372036854775807", "00000000000000000000-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, n, err := parseContentRange(s)
		if err != nil {
			return
		}
		if start < 0 || n <= 0 || start+(n-1) < start {
			t.Fatalf("%q is %d bytes from %d", s, n, start)
		}
		if again, m, err := parseContentRange(fmt.Sprintf("%d-%d", start, start+(n-1))); err != nil || again != start || m != n {
			t.Fatalf("%q: %d %d became %d %d %v", s, start, n, again, m, err)
		}
	})
}

// FuzzRoute compares with distribution's router: where that one finds a route,
// ours finds the same.
func FuzzRoute(f *testing.F) {
	for _, s := range []string{
		"/v2/", "/v2/_catalog", "/v2/a/b/tags/list", "/v2/a/manifests/1", "/v2/a/b/c/blobs/sha256:" + strings.Repeat("a", 64),
		"/v2/a/blobs/uploads/", "/v2/a/blobs/uploads/x", "/v2/a/manifests/b/manifests/c", "/v2/tags/list/tags/list", "/v2/a/blobs/uploads/blobs/uploads/u",
		"/v2/blobs/uploads/blobs/uploads/", "/v2/a/tags/list/manifests/x", "/v2/manifests/manifests/manifests",
	} {
		f.Add(s)
	}
	router := dist.Router()
	f.Fuzz(func(t *testing.T, path string) {
		if !strings.HasPrefix(path, "/v2/") || strings.ContainsAny(path, "?#%") || strings.Contains(path, "//") || strings.Contains(path, "/.") {
			return // not a plain path
		}
		if strings.HasSuffix(path, "/") && path != "/v2/" && !strings.HasSuffix(path, "/blobs/uploads/") {
			return // distribution redirects these; no client sends them
		}
		for _, c := range path {
			if c <= ' ' || c > '~' {
				return
			}
		}
		got, ok := parseRoute(path)
		var m mux.RouteMatch
		r := httptest.NewRequest(http.MethodGet, "http://example.com/", nil)
		r.URL.Path = path
		if !router.Match(r, &m) || m.Route == nil || m.MatchErr != nil || m.Route.GetName() == "" {
			return
		}
		if p := m.Vars["name"]; strings.ContainsAny(p, ":ABCDEFGHIJKLMNOPQRSTUVWXYZ") {
			return // a host: taken off later
		}
		ref := m.Vars["reference"] + m.Vars["digest"] + m.Vars["uuid"]
		if !ok || got.name != m.Route.GetName() || got.repo != m.Vars["name"] || got.ref != ref {
			t.Fatalf("%s: %+v %v, distribution says %s %v", path, got, ok, m.Route.GetName(), m.Vars)
		}
	})
}

// FuzzRange asks for ranges of a small blob and of one in a file.
func FuzzRange(f *testing.F) {
	s := newSite(f)
	big := strings.Repeat("0123456789", 10_000)
	d := s.push("prod/app", []byte(big))
	for _, r := range []string{"bytes=0-0", "bytes=-1", "bytes=99999-", "bytes=5-2", "bytes=0-1,3-4", "bytes=", "items=1-2", "bytes=99999999999999999999-"} {
		f.Add(r)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest(http.MethodGet, "/v2/prod/app/blobs/"+d.String(), nil)
		r.SetBasicAuth("dev", "pw")
		r.Header["Range"] = []string{header}
		w := httptest.NewRecorder()
		s.v2.ServeHTTP(w, r)
		switch w.Code {
		case http.StatusOK:
			if w.Body.String() != big {
				t.Fatalf("range %q: 200 with %d bytes", header, w.Body.Len())
			}
		case http.StatusPartialContent:
			var from, to, size int
			cr := w.Header().Get("Content-Range")
			if cr == "" && strings.HasPrefix(w.Header().Get("Content-Type"), "multipart/byteranges") {
				return
			}
			if _, err := fmt.Sscanf(cr, "bytes %d-%d/%d", &from, &to, &size); err != nil || size != len(big) || w.Body.String() != big[from:to+1] {
				t.Fatalf("range %q: %q with %d bytes", header, cr, w.Body.Len())
			}
		case http.StatusRequestedRangeNotSatisfiable:
		default:
			t.Fatalf("range %q: %d", header, w.Code)
		}
	})
}
