package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

func fileOf(s *Store, kind string, d digest.Digest) string {
	return filepath.Join(storeDir(s), kind, d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

func put(t testing.TB, s *Store, b []byte) digest.Digest {
	t.Helper()
	desc, err := s.PutBytes(t.Context(), b, link)
	if err != nil {
		t.Fatal(err)
	}
	return desc.Digest
}

func TestDamagedFile_IsNeverServed_AndCanComeAgain(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"truncated": func(p string) error { return os.Truncate(p, 10) },
		"gone":      os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			b := content(1, 100_000)
			d := put(t, s, b)
			if err := damage(fileOf(s, "blobs", d)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("first read: %v", err)
			}
			if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
				t.Fatalf("second read: %v", err)
			}
			if _, err := s.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
				t.Fatalf("stat: %v", err)
			}
			feed, err := s.Catalog().Feed(0, 10)
			if err != nil || len(feed) == 0 || feed[len(feed)-1].State != catalog.Gone {
				t.Fatalf("the other sites do not hear of it: %v, %v", feed, err)
			}
			put(t, s, b)
			holds(t, s, b)
		})
	}
}

// A push repairs a file whose row still says that it is fine.
func TestDamagedFile_PushRepairs(t *testing.T) {
	s := newStore(t)
	b := content(1, 100_000)
	if err := os.Truncate(fileOf(s, "blobs", put(t, s, b)), 10); err != nil {
		t.Fatal(err)
	}
	put(t, s, b)
	holds(t, s, b)
}

func TestLostList_IsMadeAnew(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"gone":    os.Remove,
		"torn":    func(p string) error { return os.Truncate(p, 20) },
		"flipped": func(p string) error { return os.WriteFile(p, make([]byte, 33), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			b := content(1, int(units.Unit)+1)
			d := put(t, s, b)
			if err := damage(fileOf(s, "units", d)); err != nil {
				t.Fatal(err)
			}
			holds(t, s, b)
			if _, err := os.Stat(fileOf(s, "units", d)); err != nil {
				t.Fatal("it was not kept")
			}
		})
	}
}

func TestRottenBytes_AreNotSignedAnew(t *testing.T) {
	s := newStore(t)
	b := content(1, int(units.Unit)+1)
	d := put(t, s, b)
	rotten := bytes.Clone(b)
	rotten[5] ^= 1
	if err := errors.Join(os.WriteFile(fileOf(s, "blobs", d), rotten, 0o600), os.Remove(fileOf(s, "units", d))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Record(t.Context(), d); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
}

// Whoever read a damaged file for long must not put aside the good copy that has
// its name since.
func TestRottenBytes_AGoodCopyStays(t *testing.T) {
	s := newStore(t)
	b := content(4, 3<<20)
	d := put(t, s, b)
	row, err := s.row(d)
	if err != nil {
		t.Fatal(err)
	}
	rotten := bytes.Clone(b)
	rotten[5] ^= 1
	if err := os.WriteFile(fileOf(s, "blobs", d), rotten, 0o600); err != nil {
		t.Fatal(err)
	}
	slow, err := s.openUnchecked(t.Context(), row)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = slow.Close() }()
	if _, err := read(t, s, d); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	put(t, s, b)
	if _, _, err := s.relistFrom(t.Context(), row, slow); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	holds(t, s, b)
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	s := openAt(t, dir, func() time.Time { return now })
	defer func() { _ = s.Close() }()
	big, small := content(1, 100_000), content(2, 100)
	for _, b := range [][]byte{big, small} {
		d := put(t, s, b)
		if err := s.Collect(t.Context(), d); !errors.Is(err, catalog.ErrInUse) {
			t.Fatalf("leased: %v", err)
		}
		holds(t, s, b)
	}
	now = now.Add(LeaseFor + time.Hour)
	for _, b := range [][]byte{big, small} {
		d := digest.FromBytes(b)
		if err := s.Collect(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if _, err := os.Stat(fileOf(s, "blobs", d)); err == nil {
			t.Fatal("the file is still there")
		}
	}

	// A crash between the mark and the unlink: the blob can come again.
	d := put(t, s, big)
	now = now.Add(LeaseFor + time.Hour)
	if err := s.Catalog().MarkDeleting(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
		t.Fatalf("being deleted: %v", err)
	}
	put(t, s, big)
	holds(t, s, big)
}

// A client that leaves between its last byte and the answer leaves no half.
func TestCommit_ClientHasLeft(t *testing.T) {
	s := newStore(t)
	for i, size := range sizes {
		b := content(byte(i), size)
		u := upload(t, s)
		if _, err := u.Append(t.Context(), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := u.Commit(ctx, digest.FromBytes(b), link); err != nil {
			t.Fatal(err)
		}
		holds(t, s, b)
	}
	tidy(t, s)
}

// The catalogue refuses the row: nothing is visible, no file is left, and an
// upload that can go on does.
func TestCommit_RowIsRefused(t *testing.T) {
	s := newStore(t)
	bad := Link{PID: link.PID, Repo: ""}
	for i, size := range sizes {
		b := content(byte(i), size)
		d := digest.FromBytes(b)
		u := upload(t, s)
		if _, err := u.Finish(t.Context(), bytes.NewReader(b), d, bad); err == nil {
			t.Fatal("a lease to no repository was given")
		}
		if _, err := s.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if _, err := os.Stat(fileOf(s, "blobs", d)); err == nil {
			t.Fatal("a file without a row is left")
		}
		if size <= InlineMax {
			if _, err := u.Finish(t.Context(), bytes.NewReader(b[u.Offset():]), d, link); err != nil {
				t.Fatal(err)
			}
			holds(t, s, b)
		}
	}
	tidy(t, s)
}

func TestReadUnits_Bounds(t *testing.T) {
	s := newStore(t)
	b := content(1, int(2*units.Unit)+10)
	d := put(t, s, b)
	for _, tc := range []struct{ first, n, want int }{
		{0, 1, int(units.Unit)}, {1, 2, int(units.Unit) + 10}, {2, 100, 10}, {0, 3, len(b)},
	} {
		r, n, err := s.ReadUnits(t.Context(), d, tc.first, tc.n)
		if err != nil || n != int64(tc.want) {
			t.Fatalf("%+v: %d, %v", tc, n, err)
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, b[tc.first*int(units.Unit):][:tc.want]) {
			t.Fatalf("%+v: %v", tc, err)
		}
	}
	for _, tc := range [][2]int{{-1, 1}, {0, 0}, {0, -1}, {3, 1}, {1 << 60, 1}, {0, 1 << 60}} {
		if _, _, err := s.ReadUnits(t.Context(), d, tc[0], tc[1]); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v: %v", tc, err)
		}
	}
}

func TestRun_SweepsAndEnds(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	s := openAt(t, dir, func() time.Time { return now })
	u := upload(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	now = now.Add(DefaultUploadsKeptFor + time.Hour)
	s = openAt(t, dir, func() time.Time { return now })
	defer func() { _ = s.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.Sweep(t.Context()) // Run may have been cut short
	if _, err := s.Upload(t.Context(), u.ID()); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
}
