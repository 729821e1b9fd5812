package v2

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// long is the sha512 digest of b.
func long(b []byte) digest.Digest { return digest.SHA512.FromBytes(b) }

// byLong names these parts of a manifest by sha512 instead of sha256.
func byLong(manifest []byte, parts ...[]byte) []byte {
	for _, p := range parts {
		manifest = bytes.ReplaceAll(manifest, []byte(digest.FromBytes(p)), []byte(long(p)))
	}
	return manifest
}

// Every way to push a blob ends under sha512, also those that name it only with
// the last request; the answer names the digest that was asked for.
func TestSHA512_Blobs(t *testing.T) {
	s := newSite(t)
	const uploads = "/v2/prod/app/blobs/uploads/"
	begin := func(query string) string {
		t.Helper()
		return location(t, s.do("dev", "POST", uploads+query, nil).want(t, 202))
	}
	for name, push := range map[string]func(b []byte, d string) exchange{
		"one request": func(b []byte, d string) exchange {
			return s.do("dev", "POST", uploads+"?digest="+d, bytes.NewReader(b))
		},
		"one request without a length": func(b []byte, d string) exchange {
			return s.do("dev", "POST", uploads+"?digest="+d, io.MultiReader(bytes.NewReader(b)))
		},
		"two requests": func(b []byte, d string) exchange {
			return s.do("dev", "PUT", begin("")+"?digest="+d, bytes.NewReader(b))
		},
		"two requests, the algorithm first": func(b []byte, d string) exchange {
			return s.do("dev", "PUT", begin("?digest-algorithm=sha512")+"?digest="+d, bytes.NewReader(b))
		},
		"a mount that comes to nothing": func(b []byte, d string) exchange {
			return s.do("dev", "PUT", begin("?mount="+d+"&from=prod/other")+"?digest="+d, bytes.NewReader(b))
		},
		"chunks": func(b []byte, d string) exchange {
			at := begin("")
			s.do("dev", "PATCH", at, bytes.NewReader(b[:len(b)/3])).want(t, 202)
			return s.do("dev", "PUT", at+"?digest="+d, bytes.NewReader(b[len(b)/3:]), "Content-Range", fmt.Sprintf("%d-%d", len(b)/3, len(b)-1))
		},
		"chunks, the algorithm first": func(b []byte, d string) exchange {
			at := begin("?digest-algorithm=sha512")
			s.do("dev", "PATCH", at, bytes.NewReader(b[:len(b)/3])).want(t, 202)
			s.do("dev", "PATCH", at, bytes.NewReader(b[len(b)/3:])).want(t, 202)
			return s.do("dev", "PUT", at+"?digest="+d, nil)
		},
		"another algorithm first": func(b []byte, d string) exchange {
			at := begin("?digest-algorithm=sha256")
			s.do("dev", "PATCH", at, bytes.NewReader(b)).want(t, 202)
			return s.do("dev", "PUT", at+"?digest="+d, nil)
		},
	} {
		for _, size := range []int{10, 40_000, 3<<20 + 5} {
			t.Run(fmt.Sprint(name, " ", size), func(t *testing.T) {
				b := make([]byte, size)
				_, _ = rand.Read(b)
				d := long(b).String()
				e := push(b, d).want(t, 201)
				if got := e.Header.Get("Docker-Content-Digest"); got != d || !strings.HasSuffix(location(t, e), "/v2/prod/app/blobs/"+d) {
					t.Errorf("pushed as %s, at %s", got, location(t, e))
				}
				e = s.do("guest", "GET", "/v2/prod/app/blobs/"+d, nil).want(t, 200)
				if !bytes.Equal(e.body, b) || e.Header.Get("Docker-Content-Digest") != d || e.Header.Get("Etag") != `"`+d+`"` {
					t.Errorf("%d bytes, %v", len(e.body), e.Header)
				}
				e = s.do("guest", "HEAD", "/v2/prod/app/blobs/"+d, nil).want(t, 200)
				if e.ContentLength != int64(size) || e.Header.Get("Docker-Content-Digest") != d {
					t.Errorf("head: %v", e.Header)
				}
				e = s.do("guest", "GET", "/v2/prod/app/blobs/"+d, nil, "Range", "bytes=3-6").want(t, 206)
				if !bytes.Equal(e.body, b[3:7]) {
					t.Errorf("range: %x", e.body)
				}
				s.do("guest", "GET", "/v2/prod/app/blobs/"+digest.FromBytes(b).String(), nil).want(t, 404)

				e = s.do("dev", "POST", "/v2/closed/copy/blobs/uploads/?mount="+d+"&from=prod/app", nil).want(t, 201)
				if e.Header.Get("Docker-Content-Digest") != d {
					t.Errorf("mounted as %s", e.Header.Get("Docker-Content-Digest"))
				}
				s.do("guest", "HEAD", "/v2/closed/copy/blobs/"+d, nil).want(t, 200)
				s.do("admin", "DELETE", "/v2/prod/app/blobs/"+d, nil).want(t, 202)
				s.do("guest", "HEAD", "/v2/prod/app/blobs/"+d, nil).want(t, 404)
			})
		}
	}
}

// Bytes that are not those of the digest leave nothing, by whatever algorithm
// they were hashed as they came.
func TestSHA512_WrongDigest(t *testing.T) {
	s := newSite(t)
	wrong := long([]byte("other")).String()
	for _, query := range []string{"", "?digest-algorithm=sha512"} {
		at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/"+query, nil).want(t, 202))
		s.do("dev", "PATCH", at, strings.NewReader("some")).want(t, 202)
		e := s.do("dev", "PUT", at+"?digest="+wrong, nil).want(t, 400)
		if !strings.Contains(string(e.body), "DIGEST_INVALID") {
			t.Errorf("%s", e.body)
		}
		s.do("dev", "GET", at, nil).want(t, 404)
		s.do("dev", "HEAD", "/v2/prod/app/blobs/"+wrong, nil).want(t, 404)
	}
}

// Manifests by either algorithm, which name parts by either.
func TestSHA512_Manifests(t *testing.T) {
	s := newSite(t)
	config, layer := []byte(`{"os":"linux"}`), bytes.Repeat([]byte("layer"), 20_000)
	s.push("prod/app", config)
	s.do("dev", "POST", "/v2/prod/app/blobs/uploads/?digest="+long(layer).String(), bytes.NewReader(layer)).want(t, 201)

	const at = "/v2/prod/app/manifests/"
	put := func(ref, mediaType string, m []byte) exchange {
		t.Helper()
		return s.do("dev", "PUT", at+ref, bytes.NewReader(m), "Content-Type", mediaType)
	}
	says := func(ref string, d digest.Digest, m []byte) {
		t.Helper()
		for _, method := range []string{"GET", "HEAD"} {
			e := s.do("guest", method, at+ref, nil).want(t, 200)
			if e.Header.Get("Docker-Content-Digest") != d.String() || (method == "GET" && !bytes.Equal(e.body, m)) {
				t.Errorf("%s %s: %s, %d bytes", method, ref, e.Header.Get("Docker-Content-Digest"), len(e.body))
			}
		}
	}

	// The layer is in the repository by sha512 only.
	if e := put("1", imageType, image(config, layer)).want(t, 400); !strings.Contains(string(e.body), digest.FromBytes(layer).String()) {
		t.Errorf("%s", e.body)
	}
	img := byLong(image(config, layer), layer)
	wrongSize := bytes.Replace(img, []byte(`"size":100000`), []byte(`"size":99999`), 1)
	put(long(wrongSize).String(), imageType, wrongSize).want(t, 400)

	// By digest, with tags: the tags say the digest that was given.
	e := put(long(img).String()+"?tag=long&tag=latest", imageType, img).want(t, 201)
	if e.Header.Get("Docker-Content-Digest") != long(img).String() || !strings.HasSuffix(location(t, e), long(img).String()) {
		t.Errorf("%v", e.Header)
	}
	for _, ref := range []string{long(img).String(), "long", "latest"} {
		says(ref, long(img), img)
	}
	s.do("guest", "GET", at+digest.FromBytes(img).String(), nil).want(t, 404)
	// By tag it is canonical, and another manifest.
	if e := put("short", imageType, img).want(t, 201); e.Header.Get("Docker-Content-Digest") != digest.FromBytes(img).String() {
		t.Errorf("%v", e.Header)
	}
	says("short", digest.FromBytes(img), img)
	says("long", long(img), img)

	// An index names children by either.
	idx := byLong(index(img, []byte("child")), img)
	if e := put(long(idx).String(), indexType, idx).want(t, 400); !strings.Contains(string(e.body), digest.FromString("child").String()) || strings.Contains(string(e.body), "has no "+long(img).String()) {
		t.Errorf("%s", e.body)
	}
	other := image(config)
	put("other", imageType, other).want(t, 201)
	idx = byLong(index(img, other), img)
	put(long(idx).String()+"?tag=multi", indexType, idx).want(t, 201)
	says("multi", long(idx), idx)

	// Too large for a row of the catalogue.
	big := byLong(image(config, layer), layer)
	big = bytes.Replace(big, []byte(`"layers":`), fmt.Appendf(nil, `"annotations":{"x":%q},"layers":`, strings.Repeat("x", 100_000)), 1)
	put(long(big).String()+"?tag=big", imageType, big).want(t, 201)
	says("big", long(big), big)

	// Deleting one leaves the other, and what both name.
	s.do("admin", "DELETE", at+long(img).String(), nil).want(t, 202)
	for _, ref := range []string{long(img).String(), "long", "latest"} {
		s.do("guest", "GET", at+ref, nil).want(t, 404)
	}
	says("short", digest.FromBytes(img), img)
	s.do("guest", "GET", "/v2/prod/app/blobs/"+long(layer).String(), nil).want(t, 200)
	s.do("admin", "DELETE", "/v2/prod/app/blobs/"+long(layer).String(), nil).want(t, http.StatusMethodNotAllowed)
}

// Referrers by the subject's digest as they name it.
func TestSHA512_Referrers(t *testing.T) {
	s := newSite(t)
	config := []byte(`{}`)
	s.push("prod/app", config)
	img := image(config)
	sig := byLong(referrer(img, "application/vnd.example.signature", config, "signed"), img)
	sbom := referrer(img, "application/vnd.example.sbom", config, "listed")
	for _, m := range [][]byte{img, sig} {
		e := s.do("dev", "PUT", "/v2/prod/app/manifests/"+long(m).String(), bytes.NewReader(m), "Content-Type", imageType).want(t, 201)
		if bytes.Equal(m, sig) && e.Header.Get("Oci-Subject") != long(img).String() {
			t.Errorf("subject %s", e.Header.Get("Oci-Subject"))
		}
	}
	s.do("dev", "PUT", "/v2/prod/app/manifests/sbom", bytes.NewReader(sbom), "Content-Type", imageType).want(t, 201)

	at := "/v2/prod/app/referrers/"
	if e := s.do("guest", "GET", at+long(img).String(), nil).want(t, 200); !strings.Contains(string(e.body), long(sig).String()) || strings.Contains(string(e.body), "sbom") {
		t.Errorf("%s", e.body)
	}
	if e := s.do("guest", "GET", at+digest.FromBytes(img).String(), nil).want(t, 200); !strings.Contains(string(e.body), digest.FromBytes(sbom).String()) || strings.Contains(string(e.body), "signature") {
		t.Errorf("%s", e.body)
	}
	e := s.do("guest", "GET", at+long(img).String()+"?artifactType=application/vnd.example.signature", nil).want(t, 200)
	if !strings.Contains(string(e.body), long(sig).String()) || e.Header.Get("Oci-Filters-Applied") != "artifactType" {
		t.Errorf("%v %s", e.Header, e.body)
	}
	s.do("guest", "GET", at+digest.SHA384.FromBytes(img).String(), nil).want(t, 400)
	s.do("admin", "DELETE", "/v2/prod/app/manifests/"+long(sig).String(), nil).want(t, 202)
	if e := s.do("guest", "GET", at+long(img).String(), nil).want(t, 200); !strings.Contains(string(e.body), `"manifests":[]`) {
		t.Errorf("%s", e.body)
	}
}
