package v2

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// A file that rotted: whoever pulls it gets the right bytes, from the store up to
// the damage and from another site from there on, in one answer.
func TestBlob_ARottenFileIsServedFromAnotherSite(t *testing.T) {
	e := &elsewhere{content: map[digest.Digest][]byte{}}
	s := newSite(t, func(c *Config) { c.Source = e })
	b := make([]byte, 3<<20+7)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(b)
	rot := func(at int64) digest.Digest {
		t.Helper()
		d := s.push("library/app", b)
		path := filepath.Join(s.dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte{^b[at]}, at); err != nil {
			t.Fatal(err)
		}
		// Two writes within a tick of the clock leave one time: it would look unchanged.
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := rot(2<<20 + 5)
	get := "/v2/library/app/blobs/" + d.String()
	// Nobody else has it: cut off, never completed.
	if x, err := s.try("admin", "GET", get, nil); err == nil && x.StatusCode == http.StatusOK {
		t.Fatalf("%d bytes of a damaged blob were served as a whole", len(x.body))
	}
	for _, at := range []int64{0, 2<<20 + 5, 3<<20 + 6} {
		rot(at)
		e.content[d] = b
		if x := s.do("admin", "GET", get, nil).want(t, http.StatusOK); !bytes.Equal(x.body, b) {
			t.Fatalf("damaged at %d: other bytes", at)
		}
		rot(at)
		if x := s.do("admin", "GET", get, nil, "Range", "bytes=2097000-3145730").want(t, http.StatusPartialContent); !bytes.Equal(x.body, b[2097000:3145731]) {
			t.Fatalf("damaged at %d: other bytes in a range", at)
		}
	}
}
