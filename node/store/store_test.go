package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/test/faultfs"
)

func TestMain(m *testing.M) {
	faultfs.ServeWorker(servePower)
	if dir := os.Getenv(crashDir); dir != "" {
		crashChild(dir) // until it is killed
	}
	goleak.VerifyTestMain(m)
}

func newIdentity(t testing.TB, dir string) *identity.Identity {
	t.Helper()
	id, _, err := identity.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func openAt(t testing.TB, dir string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{
		Dir: filepath.Join(dir, "store"), Identity: newIdentity(t, dir),
		Logger: slog.New(slog.DiscardHandler), Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newStore(t testing.TB) *Store {
	t.Helper()
	s := openAt(t, t.TempDir(), time.Now)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func content(seed byte, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

var link = Link{PID: identity.NewProjectID(), Repo: "alpine"}

func upload(t testing.TB, s *Store) *Upload {
	t.Helper()
	id, err := s.CreateUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u, err := s.Upload(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// holds checks that the store has want, by every way to read it.
func holds(t testing.TB, s *Store, want []byte) {
	t.Helper()
	holdsAs(t, s, digest.SHA256, want)
}

func holdsAs(t testing.TB, s *Store, alg digest.Algorithm, want []byte) {
	t.Helper()
	d := alg.FromBytes(want)
	size, err := s.Stat(t.Context(), d)
	if err != nil || size != int64(len(want)) {
		t.Fatalf("stat: %d, %v", size, err)
	}
	b, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %d bytes: %v", len(got), err)
	}
	// Once all of it was read it needs no further check.
	again, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if inline := again.File() == nil; inline != (len(want) <= InlineMax) {
		t.Fatalf("%d bytes, inline %v", len(want), inline)
	}
	rec, list, err := s.Record(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if err := rec.Verify(); err != nil {
		t.Fatal(err)
	}
	for i := range list.Units() {
		r, n, err := s.ReadUnits(t.Context(), d, i, 1)
		if err != nil {
			t.Fatal(err)
		}
		unit, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || int64(len(unit)) != n {
			t.Fatalf("unit %d: %d of %d bytes, %v", i, len(unit), n, err)
		}
		if err := list.Verify(i, unit); err != nil {
			t.Fatal(err)
		}
	}
}

var sizes = []int{0, 1, InlineMax, InlineMax + 1, int(units.Unit), int(units.Unit) + 1, int(3*units.Unit) - 7}

func TestUpload_EverySize_EveryWay(t *testing.T) {
	for name, push := range map[string]func(u *Upload, b []byte) (Descriptor, error){
		"in one": func(u *Upload, b []byte) (Descriptor, error) {
			return u.Finish(t.Context(), bytes.NewReader(b), digest.FromBytes(b), link)
		},
		"append, then commit": func(u *Upload, b []byte) (Descriptor, error) {
			if _, err := u.Append(t.Context(), bytes.NewReader(b)); err != nil {
				return Descriptor{}, err
			}
			return u.Commit(t.Context(), digest.FromBytes(b), link)
		},
		"half and half": func(u *Upload, b []byte) (Descriptor, error) {
			if _, err := u.Append(t.Context(), bytes.NewReader(b[:len(b)/2])); err != nil {
				return Descriptor{}, err
			}
			return u.Finish(t.Context(), bytes.NewReader(b[len(b)/2:]), digest.FromBytes(b), link)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			for i, size := range sizes {
				b := content(byte(i), size)
				u := upload(t, s)
				desc, err := push(u, b)
				if err != nil {
					t.Fatal(err)
				}
				if desc != (Descriptor{digest.FromBytes(b), int64(size)}) {
					t.Fatalf("got %+v", desc)
				}
				holds(t, s, b)
				if _, ok, err := s.Catalog().Linked(link.PID, link.Repo, desc.Digest); !ok || err != nil {
					t.Fatalf("not leased to its repository: %v", err)
				}
				if _, err := s.Upload(t.Context(), u.ID()); !errors.Is(err, ErrNotFound) {
					t.Fatalf("a finished upload: %v", err)
				}
				// The same again, as a client that lost the answer does.
				if _, err := push(upload(t, s), b); err != nil {
					t.Fatal(err)
				}
			}
			tidy(t, s)
		})
	}
}

// tidy checks that nothing half-done lies about.
func tidy(t testing.TB, s *Store) {
	t.Helper()
	for _, dir := range []string{"uploads", "partial", "quarantine"} {
		e, err := os.ReadDir(filepath.Join(storeDir(s), dir))
		if err != nil || len(e) > 0 {
			t.Fatalf("left in %s: %v, %v", dir, e, err)
		}
	}
}

func storeDir(s *Store) string { return s.files.Dir() }

func TestUpload_Refusals(t *testing.T) {
	s := newStore(t)
	b := content(1, 100_000)
	u := upload(t, s)
	for _, d := range []digest.Digest{"", "sha256:12", "md5:d41d8cd98f00b204e9800998ecf8427e", digest.SHA384.FromBytes(b)} {
		if _, err := u.Finish(t.Context(), bytes.NewReader(b), d, link); !errors.Is(err, ErrUnsupportedDigest) {
			t.Errorf("%q: %v", d, err)
		}
	}
	if u.Offset() != 0 {
		t.Fatal("a refused digest cost the client its bytes")
	}
	if _, err := u.Finish(t.Context(), bytes.NewReader(b), digest.FromString("other"), link); !errors.Is(err, ErrDigestMismatch) {
		t.Fatalf("wrong digest: %v", err)
	}
	if _, err := u.Append(t.Context(), bytes.NewReader(b)); !errors.Is(err, ErrNotFound) {
		t.Fatalf("after a mismatch: %v", err)
	}
	for _, d := range []digest.Digest{digest.FromBytes(b), digest.FromString("other")} {
		if _, err := s.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Fatalf("visible: %v", err)
		}
		if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Fatalf("visible: %v", err)
		}
	}
	u = upload(t, s)
	if _, err := u.Append(t.Context(), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := u.Cancel(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Upload(t.Context(), u.ID()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("after a cancel: %v", err)
	}
	tidy(t, s)
}

// blocked gives its bytes when it is let go.
type blocked struct {
	begun, free chan struct{}
	r           io.Reader
}

func (b *blocked) Read(p []byte) (int, error) {
	select {
	case <-b.begun:
	default:
		close(b.begun)
	}
	<-b.free
	return b.r.Read(p)
}

func TestUpload_SecondWriterIsBusy(t *testing.T) {
	s := newStore(t)
	want := content(1, 50_000)
	u := upload(t, s)
	r := &blocked{begun: make(chan struct{}), free: make(chan struct{}), r: bytes.NewReader(want)}
	done := make(chan error)
	go func() { _, err := u.Append(context.Background(), r); done <- err }()
	<-r.begun
	second, err := s.Upload(t.Context(), u.ID())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := second.Append(t.Context(), bytes.NewReader(want)); !errors.Is(err, ErrUploadBusy) {
		t.Errorf("second append: %v", err)
	}
	if err := second.Cancel(); !errors.Is(err, ErrUploadBusy) {
		t.Errorf("cancel: %v", err)
	}
	if second.Offset() != 0 {
		t.Errorf("offset %d before anything is durable", second.Offset())
	}
	close(r.free)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if _, err := second.Commit(t.Context(), digest.FromBytes(want), link); err != nil {
		t.Fatal(err)
	}
	holds(t, s, want)
}

func TestUpload_At(t *testing.T) {
	s := newStore(t)
	b := content(1, 50_000)
	u := upload(t, s)
	if _, err := u.At(0).Append(t.Context(), bytes.NewReader(b[:20_000])); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 19_999, 20_001} {
		if _, err := u.At(off).Append(t.Context(), bytes.NewReader(b[off:])); !errors.Is(err, ErrWrongOffset) {
			t.Errorf("append at %d: %v", off, err)
		}
		if _, err := u.At(off).Finish(t.Context(), bytes.NewReader(b[off:]), digest.FromBytes(b), link); !errors.Is(err, ErrWrongOffset) {
			t.Errorf("finish at %d: %v", off, err)
		}
	}
	if _, err := u.At(20_000).Finish(t.Context(), bytes.NewReader(b[20_000:]), digest.FromBytes(b), link); err != nil {
		t.Fatal(err)
	}
	holds(t, s, b)
}

func TestPutContent_And_PutFetched(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		s := newStore(t)
		for i, size := range sizes {
			b := content(byte(i), size)
			if i%2 == 0 {
				if _, err := s.PutContent(t.Context(), alg.FromString("x"), b, link); !errors.Is(err, ErrDigestMismatch) {
					t.Fatal(err)
				}
				if _, err := s.PutContent(t.Context(), alg.FromBytes(b), b, link); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := s.PutFetched(t.Context(), identity.ProjectID{}, alg.FromString("x"), b, Cached); !errors.Is(err, ErrDigestMismatch) {
					t.Fatal(err)
				}
				if err := s.PutFetched(t.Context(), identity.ProjectID{}, alg.FromBytes(b), b, Cached); err != nil {
					t.Fatal(err)
				}
			}
			holdsAs(t, s, alg, b)
		}
		tidy(t, s)
	})
}

// Bytes go from one store to another as a peer would take them.
func TestFetch_FromAnotherStore(t *testing.T) { each(t, testFetchFromAnotherStore) }

func testFetchFromAnotherStore(t *testing.T, alg digest.Algorithm) {
	from, to := newStore(t), newStore(t)
	for i, size := range sizes {
		b := content(byte(i), size)
		d := alg.FromBytes(b)
		if _, err := from.PutContent(t.Context(), d, b, link); err != nil {
			t.Fatal(err)
		}
		rec, list, err := from.Record(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		p, err := to.BeginFetch(t.Context(), rec, list)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Commit(t.Context(), Placed); !errors.Is(err, ErrIncomplete) {
			t.Fatalf("nothing has come: %v", err)
		}
		if _, err := to.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Fatalf("visible before it is here: %v", err)
		}
		for i := range list.Units() {
			r, _, err := from.ReadUnits(t.Context(), d, i, 1)
			if err != nil {
				t.Fatal(err)
			}
			unit, err := io.ReadAll(r)
			if err := errors.Join(err, r.Close(), p.Put(i, unit)); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.Commit(t.Context(), Placed); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		holdsAs(t, to, alg, b)
		if row, err := to.Catalog().Blob(d); err != nil || row.Class != Placed {
			t.Fatalf("row %+v, %v", row, err)
		}
		// The record that it came under is served on, signer and all.
		if size > InlineMax {
			if on, _, err := to.Record(t.Context(), d); err != nil || on != rec {
				t.Fatalf("another record: %v", err)
			}
		}
		// A cached copy does not make a placed one evictable.
		if err := to.PutFetched(t.Context(), identity.ProjectID{}, d, b, Cached); err != nil {
			t.Fatal(err)
		}
		if row, err := to.Catalog().Blob(d); err != nil || row.Class != Placed {
			t.Fatalf("row %+v, %v", row, err)
		}
	}
	tidy(t, to)
}

func TestBeginFetch_RefusesUnsignedRecords(t *testing.T) {
	from, to := newStore(t), newStore(t)
	b := content(1, int(2*units.Unit))
	if _, err := from.PutBytes(t.Context(), b, link); err != nil {
		t.Fatal(err)
	}
	rec, list, err := from.Record(t.Context(), digest.FromBytes(b))
	if err != nil {
		t.Fatal(err)
	}
	rec.Signature[0] ^= 1
	if _, err := to.BeginFetch(t.Context(), rec, list); !errors.Is(err, units.ErrBadRecord) {
		t.Fatal(err)
	}
	tidy(t, to)
}

func TestRestart_KeepsIDBlobsUploadsAndPartials(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir, time.Now)
	id := s.ID()
	small, big, half := content(1, 10), content(2, 300_000), content(3, int(2*units.Unit))
	for _, b := range [][]byte{small, big} {
		if _, err := s.PutBytes(t.Context(), b, link); err != nil {
			t.Fatal(err)
		}
	}
	u := upload(t, s)
	if _, err := u.Append(t.Context(), bytes.NewReader(half[:1000])); err != nil {
		t.Fatal(err)
	}
	h := units.NewHasher(digest.SHA256)
	_, _ = h.Write(half)
	list, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	rec, err := units.Sign(list, s.node.ID, s.node)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.BeginFetch(t.Context(), rec, list)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Put(1, half[units.Unit:]), p.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}

	s = openAt(t, dir, time.Now)
	defer func() { _ = s.Close() }()
	if s.ID() != id {
		t.Fatal("another store ID after a restart")
	}
	holds(t, s, small)
	holds(t, s, big)
	if u, err = s.Upload(t.Context(), u.ID()); err != nil || u.Offset() != 1000 {
		t.Fatalf("upload: %v", err)
	}
	if _, err := u.Finish(t.Context(), bytes.NewReader(half[1000:]), rec.Digest, link); err != nil {
		t.Fatal(err)
	}
	if p, err = s.BeginFetch(t.Context(), rec, list); err != nil || !p.Has(1) || p.Has(0) {
		t.Fatalf("partial: %v", err)
	}
	if err := p.Put(0, half[:units.Unit]); err != nil {
		t.Fatal(err)
	}
	// It came by an upload meanwhile: committing it is no harm, and it stays home.
	if err := errors.Join(p.Commit(t.Context(), Cached), p.Abandon()); err != nil {
		t.Fatal(err)
	}
	if row, err := s.Catalog().Blob(rec.Digest); err != nil || row.Class != catalog.Home {
		t.Fatalf("row %+v, %v", row, err)
	}
	holds(t, s, half)
	tidy(t, s)
}

func TestOpen_OtherStores(t *testing.T) {
	dir := t.TempDir()
	s := openAt(t, dir, time.Now)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "store", idFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		strings.Replace(string(good), idHeader, idPrefix+"3", 1):   "newer version",
		strings.Replace(string(good), idHeader, idHeaderBucket, 1): "damaged",
		"": "damaged",
		strings.Replace(string(good), "-", "", 2) + "x": "not a store ID",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), Config{Dir: filepath.Dir(path), Identity: newIdentity(t, dir)})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: filepath.Dir(path), Identity: newIdentity(t, dir)}); err == nil {
		t.Error("a store that lost its ID became a new one")
	}
}
