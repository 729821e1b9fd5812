package store

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/test/bucket"
)

// provenFor is the window of invariant B7.
const provenFor = 10 * time.Second

// TestBucket_Replaced: another bucket in the place of this store's, while it runs,
// is written to for no longer than the window, and not at all once anything was
// missed in it; nothing is deleted from it.
func TestBucket_Replaced(t *testing.T) {
	for name, c := range map[string]struct {
		other bool   // it belongs to another store, else to nobody
		want  string // what is said of it
	}{
		"by an empty one":         {false, "is gone"},
		"by one of another store": {true, "belongs to store"},
	} {
		t.Run(name, func(t *testing.T) {
			server := bucket.Start(t)
			clock := time.Now()
			s, err := openOn(t, t.TempDir(), s3(t, server, nil), func() time.Time { return clock })
			if err != nil {
				t.Fatal(err)
			}
			defer closeStore(t, s)
			old, doomed := content(1, 100_000), content(2, 100_000)
			push(t, s, old)
			push(t, s, doomed)
			end(t, s, doomed)

			replace := func() (before []string) {
				t.Helper()
				if err := errors.Join(server.HideBucket(), server.MakeBucket()); err != nil {
					t.Fatal(err)
				}
				if c.other {
					other := mustOpenOn(t, t.TempDir(), s3(t, server, nil))
					push(t, other, doomed)
					closeStore(t, other)
				}
				return objects(t, server)
			}
			refused := func(what string, err error) {
				t.Helper()
				if u := away(t, err); !u.Refused || !strings.Contains(u.Cause, c.want) {
					t.Errorf("%s: %v", what, err)
				}
			}
			// A push that comes when the window has passed, and one within it after a miss.
			for i, notice := range []func(){
				func() { clock = clock.Add(provenFor) },
				func() { _, err := read(t, s, digest.FromBytes(old)); refused("a read", err) },
			} {
				before := replace()
				notice()
				var sessions []func()
				// In one request, with a list, and in parts.
				for j, size := range []int{100_000, 3 << 20, 12 << 20} {
					b := content(byte(10+10*i+j), size)
					u := upload(t, s)
					_, err := u.Finish(t.Context(), bytes.NewReader(b), digest.FromBytes(b), link)
					refused("a push", err)
					if u.Offset() != int64(size) {
						t.Errorf("the session is at %d of %d", u.Offset(), size)
					}
					if _, err := s.Stat(t.Context(), digest.FromBytes(b)); !errors.Is(err, ErrNotFound) {
						t.Errorf("a blob in another bucket is here: %v", err)
					}
					sessions = append(sessions, func() {
						if _, err := u.Commit(t.Context(), digest.FromBytes(b), link); err != nil {
							t.Fatal(err)
						}
						mustRead(t, s, b)
					})
				}
				if i == 1 {
					// Marked, and finished when the bucket is back.
					refused("a collection", s.Collect(t.Context(), digest.FromBytes(doomed)))
				}
				if after := objects(t, server); strings.Join(after, "\n") != strings.Join(before, "\n") {
					t.Errorf("the other bucket had %v and has %v", before, after)
				}
				if err := server.ShowBucket(); err != nil {
					t.Fatal(err)
				}
				for _, again := range sessions { // the end alone
					again()
				}
				mustRead(t, s, old)
			}
			s.Sweep(t.Context())
			d := digest.FromBytes(doomed)
			if _, err := os.Stat(server.Path("store/blobs/sha256/" + d.Encoded()[:2] + "/" + d.Encoded())); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a collected object: %v", err)
			}
		})
	}
}

// end makes a blob one that nothing needs.
func end(t *testing.T, s *Store, b []byte) {
	t.Helper()
	if err := s.Catalog().EndLease(t.Context(), digest.FromBytes(b), link.PID, link.Repo); err != nil {
		t.Fatal(err)
	}
}

// objects lists the files of a bucket.
func objects(t *testing.T, server *bucket.Server) (all []string) {
	t.Helper()
	err := filepath.WalkDir(server.Path(""), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestBucket_ProvenSeldom: what the proofs cost.
func TestBucket_ProvenSeldom(t *testing.T) {
	server := bucket.Start(t)
	clock := time.Now()
	s, err := openOn(t, t.TempDir(), s3(t, server, nil), func() time.Time { return clock })
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	server.Asked()
	seed := byte(0)
	pushes := func(what string, want map[string]int) {
		t.Helper()
		for range 3 {
			seed++
			push(t, s, content(seed, 50_000))
		}
		if got := server.Asked(); !maps.Equal(got, want) {
			t.Errorf("%s: the server was asked %v, want %v", what, got, want)
		}
	}
	pushes("after the start", map[string]int{"put": 3})
	clock = clock.Add(provenFor - 1)
	pushes("within the window", map[string]int{"put": 3})
	clock = clock.Add(1)
	pushes("after it", map[string]int{"put": 3, "get": 1})
	pushes("again", map[string]int{"put": 3})
	// An error of any kind: the next write asks.
	server.OnRequest(func(kind string, _ int, _ *http.Request) int {
		if kind == "get" {
			return http.StatusForbidden
		}
		return 0
	})
	_, err = read(t, s, digest.FromBytes(content(1, 50_000)))
	away(t, err)
	server.OnRequest(nil)
	server.Asked()
	pushes("after an error", map[string]int{"put": 3, "get": 1})
}
