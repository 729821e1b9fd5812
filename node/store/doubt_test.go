package store

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// rot changes a byte of a stored file behind the store's back: as a disk does, and
// unlike a program, which the file's times tell of.
func rot(t *testing.T, s *Store, d digest.Digest, off int64) {
	t.Helper()
	path := fileOf(s, "blobs", d)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[off] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	s.checks.passed(d, st)
}

// settled waits until nothing is read again.
func settled(s *Store) {
	s.doubts.worker.Wait()
}

func TestDoubt_FindsRotThatIsBelieved(t *testing.T) {
	for name, size := range map[string]int{"one unit": 100_000, "several": int(3*units.Unit) + 5} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			b := content(1, size)
			d := put(t, s, b)
			rot(t, s, d, int64(size)-1)
			if got, err := read(t, s, d); err != nil || digest.FromBytes(got) == d {
				t.Fatalf("the check is not believed, this test tests nothing: %v", err)
			}
			if !s.Doubt(d) {
				t.Fatal("the doubt was not heard")
			}
			settled(s)
			if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
				t.Fatalf("after the doubt: %v", err)
			}
			feed, err := s.Catalog().Feed(0, 10)
			if err != nil || len(feed) == 0 || feed[len(feed)-1].State != catalog.Gone {
				t.Fatalf("the other sites do not hear of it: %v, %v", feed, err)
			}
			if s.Damaged() != 1 {
				t.Errorf("%d blobs count as damaged", s.Damaged())
			}
		})
	}
}

func TestDoubt_AGoodBlobStays(t *testing.T) {
	now := time.Now()
	s := openAt(t, t.TempDir(), func() time.Time { return now })
	defer func() { _ = s.Close() }()
	b, small := content(1, int(units.Unit)+5), content(2, 100)
	for _, b := range [][]byte{b, small} {
		d := put(t, s, b)
		if !s.Doubt(d) {
			t.Fatal("the doubt was not heard")
		}
		settled(s)
		holds(t, s, b)
		if s.Doubt(d) {
			t.Error("a liar has the disk read it again and again")
		}
		now = now.Add(doubtRest)
		if !s.Doubt(d) {
			t.Error("no doubt is heard any more")
		}
		settled(s)
	}
	if s.Damaged() != 0 {
		t.Errorf("%d blobs count as damaged", s.Damaged())
	}
	if !s.Doubt(digest.FromString("not here")) {
		t.Error("that it is not here shows")
	}
	settled(s)
}

// More doubts than places are not lost: the blob is checked when it is read.
func TestDoubt_MoreThanPlaces(t *testing.T) {
	s := newStore(t)
	b := content(1, int(units.Unit)+5)
	d := put(t, s, b)
	rot(t, s, d, 3)
	s.doubts.mu.Lock()
	s.doubts.now = "somebody else's"
	for range maxDoubts {
		s.doubts.waiting = append(s.doubts.waiting, digest.FromString("another"))
	}
	s.doubts.mu.Unlock()
	if !s.Doubt(d) {
		t.Fatal("the doubt was not heard")
	}
	if _, err := read(t, s, d); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("it was served unchecked: %v", err)
	}
}

func TestDoubt_AfterClose(t *testing.T) {
	s := openAt(t, t.TempDir(), time.Now)
	d := put(t, s, content(1, 100_000))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Doubt(d) {
		t.Error("a closed store reads")
	}
}
