package v2

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// FuzzAccept: whatever a client says that it takes, a tag of an index is that
// index or its linux/amd64 image, HEAD and GET agree, and a digest gets its bytes.
func FuzzAccept(f *testing.F) {
	s := newSite(f)
	config := []byte("{}")
	s.push("prod/app", config)
	img := image(config)
	idx := bytes.Replace(index(img), []byte(`"size"`), []byte(`"platform":{"os":"linux","architecture":"amd64"},"size"`), 1)
	stored := map[digest.Digest][]byte{}
	for _, m := range []struct {
		body      []byte
		mediaType string
	}{{img, imageType}, {idx, indexType}} {
		d := digest.FromBytes(m.body)
		stored[d] = m.body
		s.do("dev", "PUT", "/v2/prod/app/manifests/"+d.String()+"?tag=1", bytes.NewReader(m.body), "Content-Type", m.mediaType).want(f, 201)
	}
	for _, a := range []string{"", "*/*", imageType, indexType, imageType + "," + indexType + ";q=0", imageType + "\n" + indexType,
		imageType + ";q=0.0001," + indexType + ";q=0.000", "application/*;q=0", ",;=,", imageType + ";q", " " + strings.ToUpper(imageType) + " ; v=\"a,b\"", strings.Repeat(",", 9999)} {
		f.Add(a)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		ask := func(method, ref string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, "/v2/prod/app/manifests/"+ref, nil)
			r.Header["Accept"] = strings.Split(accept, "\n")
			w := s.serve(r, "guest")
			if w.Code != http.StatusOK {
				t.Fatalf("%s %s: %d %s", method, ref, w.Code, w.Body)
			}
			return w
		}
		got, head := ask("GET", "1"), ask("HEAD", "1")
		d := digest.Digest(got.Header().Get("Docker-Content-Digest"))
		if !bytes.Equal(got.Body.Bytes(), stored[d]) || len(stored[d]) == 0 {
			t.Fatalf("%s is %s", d, got.Body)
		}
		for _, name := range []string{"Docker-Content-Digest", "Content-Type", "Content-Length", "Etag", "Vary", "Warning"} {
			if got.Header().Get(name) != head.Header().Get(name) {
				t.Fatalf("%s of GET is %q, of HEAD %q", name, got.Header().Get(name), head.Header().Get(name))
			}
		}
		if wantsIndex := d == digest.FromBytes(idx); !wantsIndex && (!strings.Contains(strings.ToLower(accept), imageType) && !strings.Contains(accept, "*")) {
			t.Fatalf("an image for a client that takes %q", accept)
		}
		for d, b := range stored {
			if w := ask("GET", d.String()); !bytes.Equal(w.Body.Bytes(), b) {
				t.Fatalf("%s is %s", d, w.Body)
			}
		}
	})
}
