package store

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/test/bucket"
)

// TestBucket_Gone: a bucket that was deleted, or made anew, says nothing about
// blobs.
func TestBucket_Gone(t *testing.T) {
	server := bucket.Start(t)
	s := mustOpenOn(t, t.TempDir(), s3(t, server, nil))
	defer closeStore(t, s)
	b, inline := content(1, 5<<20), content(2, 1000)
	d := push(t, s, b)
	push(t, s, inline)
	if err := server.HideBucket(); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"no bucket", "an empty one"} {
		_, err := read(t, s, d)
		if u := away(t, err); !u.Refused {
			t.Errorf("%s: %v", what, err)
		}
		_, err = upload(t, s).Finish(t.Context(), bytes.NewReader(b), d, link)
		away(t, err)
		rowStays(t, s, d)
		mustRead(t, s, inline)
		if what == "no bucket" {
			if err := server.MakeBucket(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := server.ShowBucket(); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, b)
}

// TestBucket_Hangs: a server that takes the connection and never answers.
func TestBucket_Hangs(t *testing.T) {
	server := bucket.Start(t)
	backend := s3(t, server, nil)
	backend.Stall = 2 * time.Second
	s := mustOpenOn(t, t.TempDir(), backend)
	defer closeStore(t, s)
	b, more := content(1, 64<<20), content(2, 100_000)
	d := push(t, s, b)
	open, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 1000)
	if _, err := io.ReadFull(open, head); err != nil {
		t.Fatal(err)
	}
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, open)
	away(t, err)
	_ = open.Close()
	_, err = read(t, s, d)
	if u := away(t, err); !strings.Contains(u.Cause, "no progress") {
		t.Error(err)
	}
	u := upload(t, s)
	_, err = u.Finish(t.Context(), bytes.NewReader(more), digest.FromBytes(more), link)
	away(t, err)
	rowStays(t, s, d)
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	mustRead(t, s, b)
	await(t, func() error { _, err := u.Commit(t.Context(), digest.FromBytes(more), link); return err })
	mustRead(t, s, more)
}

// TestBucket_Overloaded: a server that answers 503 is asked again by the SDK, and
// in the end is unavailable.
func TestBucket_Overloaded(t *testing.T) {
	server := bucket.Start(t)
	s := mustOpenOn(t, t.TempDir(), s3(t, server, nil))
	defer closeStore(t, s)
	d := push(t, s, content(1, 100_000))
	server.OnRequest(func(string, int, *http.Request) int { return http.StatusServiceUnavailable })
	_, err := read(t, s, d)
	if u := away(t, err); u.Refused {
		t.Error(err)
	}
	rowStays(t, s, d)
	server.OnRequest(func(kind string, n int, _ *http.Request) int {
		if n == 1 {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	mustRead(t, s, content(1, 100_000))
}

// TestBucket_StreamBreaks: a connection that ends in the middle is taken up where
// it broke.
func TestBucket_StreamBreaks(t *testing.T) {
	server := bucket.Start(t)
	s := mustOpenOn(t, t.TempDir(), s3(t, server, nil))
	defer closeStore(t, s)
	b := content(1, 20<<20)
	d := push(t, s, b)
	open, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	got := make([]byte, 1<<20)
	if _, err := io.ReadFull(open, got); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(open)
	if err != nil || !bytes.Equal(append(got, rest...), b) {
		t.Fatalf("%d of %d bytes: %v", len(got)+len(rest), len(b), err)
	}
}

// TestBucket_Damage: an object that is gone, short or wrong is what a file would
// be; a good copy takes its place.
func TestBucket_Damage(t *testing.T) {
	server := bucket.Start(t)
	for name, harm := range map[string]func(path string) error{
		"gone":  os.Remove,
		"short": func(path string) error { return os.Truncate(path, 3<<20) },
		"wrong": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("rot"), 2<<20+5)
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, change := t.TempDir(), map[string]string{"rootdirectory": "/" + name}
			clock := time.Now()
			s, err := openOn(t, dir, s3(t, server, change), func() time.Time { return clock })
			if err != nil {
				t.Fatal(err)
			}
			defer func() { closeStore(t, s) }()
			b := content(1, 4<<20)
			d := push(t, s, b)
			path := server.Path(name + "/blobs/sha256/" + d.Encoded()[:2] + "/" + d.Encoded())
			if err := harm(path); err != nil {
				t.Fatal(err)
			}
			closeStore(t, s) // what was checked is forgotten
			if s, err = openOn(t, dir, s3(t, server, change), func() time.Time { return clock }); err != nil {
				t.Fatal(err)
			}
			got, err := read(t, s, d)
			if !errors.Is(err, ErrCorrupt) || !bytes.HasPrefix(b, got) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
			push(t, s, b)
			mustRead(t, s, b)
			clock = clock.Add(QuarantineKeptFor + time.Hour)
			s.Sweep(t.Context())
			mustRead(t, s, b)
			if left, _ := os.ReadDir(filepath.Join(dir, "store", "quarantine")); len(left) > 0 {
				t.Fatalf("notes are left: %v", left)
			}
		})
	}
}

// TestBucket_CollectionsAskOnce: of collections that a bucket cut short the sweep
// asks for one while it is away, and finishes all when it is back.
func TestBucket_CollectionsAskOnce(t *testing.T) {
	server := bucket.Start(t)
	s := mustOpenOn(t, t.TempDir(), s3(t, server, nil))
	defer closeStore(t, s)
	var all [][]byte
	for i := range 4 {
		all = append(all, content(byte(i), 100_000))
		push(t, s, all[i])
		end(t, s, all[i])
	}
	server.Kill()
	for _, b := range all {
		away(t, s.Collect(t.Context(), digest.FromBytes(b)))
	}
	err := s.finishCollections(t.Context())
	away(t, err)
	var each interface{ Unwrap() []error }
	if !errors.As(err, &each) || len(each.Unwrap()) != 1 {
		t.Errorf("an absent bucket was asked more than once: %v", err)
	}
	if left, err := s.Catalog().Deletings(100); err != nil || len(left) != len(all) {
		t.Errorf("%d are marked, %v", len(left), err)
	}
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	if err := s.finishCollections(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		d := digest.FromBytes(b)
		if _, err := os.Stat(server.Path("store/blobs/sha256/" + d.Encoded()[:2] + "/" + d.Encoded())); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("an object is left: %v", err)
		}
	}
	if left, err := s.Catalog().Deletings(100); err != nil || len(left) != 0 {
		t.Errorf("%v are still marked, %v", left, err)
	}
}
