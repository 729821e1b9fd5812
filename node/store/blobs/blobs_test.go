package blobs

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"flag"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
)

func TestMain(m *testing.M) {
	// Each check syncs files many times; -rapid.checks asks for more.
	if err := flag.Set("rapid.checks", "25"); err != nil {
		panic(err)
	}
	flag.Parse()
	goleak.VerifyTestMain(m)
}

const testSmall = 1000

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(Config{
		Dir: dir, Logger: slog.New(slog.DiscardHandler), Now: time.Now,
		MaxUpload: 32 << 20, MaxUploads: 4, SmallMax: testSmall,
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func content(seed byte, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func begin(t testing.TB, s *Store) *Upload {
	t.Helper()
	u, err := s.CreateUpload()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// add appends b as one request does.
func add(t testing.TB, u *Upload, b []byte) {
	t.Helper()
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	n, err := u.Append(context.Background(), bytes.NewReader(b), false)
	if err != nil || n != int64(len(b)) {
		t.Fatalf("appended %d of %d: %v", n, len(b), err)
	}
}

func install(t testing.TB, s *Store, u *Upload, want []byte) {
	t.Helper()
	installAs(t, s, u, digest.SHA256, want)
}

// installAs commits u as the facade does and checks what is there then.
func installAs(t testing.TB, s *Store, u *Upload, alg digest.Algorithm, want []byte) {
	t.Helper()
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	d := alg.FromBytes(want)
	h, err := u.Hashed(t.Context(), alg)
	if err != nil {
		t.Fatal(err)
	}
	if h.Digest() != d {
		t.Fatalf("digest %s of %d bytes, want %s of %d", h.Digest(), u.Size(), d, len(want))
	}
	list, err := h.List()
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Install(t.Context(), d, list); err != nil {
		t.Fatal(err)
	}
	if err := u.Discard(); err != nil {
		t.Fatal(err)
	}
	f, err := s.Open(d, int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("stored blob differs: %v", err)
	}
	back, err := s.List(t.Context(), record(t, list))
	if err != nil || back.Root() != list.Root() {
		t.Fatalf("stored list: %v", err)
	}
	noLeftovers(t, s)
}

func noLeftovers(t testing.TB, s *Store) {
	t.Helper()
	for _, dir := range []string{"uploads", "partial"} {
		names, err := readNames(s.path(dir))
		if err != nil || len(names) > 0 {
			t.Fatalf("left in %s: %v, %v", dir, names, err)
		}
	}
}

type key struct{ ed25519.PrivateKey }

func (k key) Sign(msg []byte) []byte { return ed25519.Sign(k.PrivateKey, msg) }

func record(t testing.TB, l *units.List) units.Record {
	t.Helper()
	k := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	rec, err := units.Sign(l, identity.NodeID(k.Public().(ed25519.PublicKey)), key{k})
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func TestUpload_InPieces_SurvivesRestartsAtEveryPiece(t *testing.T) {
	each(t, func(t *testing.T, alg digest.Algorithm) {
		dir := t.TempDir()
		want := content(1, int(3*units.Unit)+777)
		s := open(t, dir)
		u := begin(t, s)
		if err := u.Keep(); err != nil {
			t.Fatal(err)
		}
		expect(t, u, alg)
		restart := func() {
			t.Helper()
			s = open(t, dir)
			back, err := s.Upload(u.ID())
			if err != nil {
				t.Fatal(err)
			}
			if back.Offset() != u.Offset() || back.Algorithm() != alg {
				t.Fatalf("offset %d of %s after a restart, was %d of %s", back.Offset(), back.Algorithm(), u.Offset(), alg)
			}
			u = back
		}
		restart() // also before the first byte
		for rest, i := want, 0; len(rest) > 0; i++ {
			n := min(len(rest), []int{100, int(units.Unit), 1, 700_000}[i%4])
			add(t, u, rest[:n])
			rest = rest[n:]
			if off := u.Offset(); off != int64(len(want)-len(rest)) {
				t.Fatalf("offset %d after %d bytes", off, len(want)-len(rest))
			}
			restart()
		}
		installAs(t, s, u, alg, want)
		if _, err := s.Upload(u.ID()); !errors.Is(err, ErrNotFound) {
			t.Fatalf("a finished upload: %v", err)
		}
	})
}

// What a kill leaves behind the last checkpoint, in data and notes, is cut off.
func TestUpload_Resume_TrustsOnlyWholeCheckpoints(t *testing.T) {
	want := content(2, int(2*units.Unit)+500)
	half := int(units.Unit) + 300
	for name, damage := range map[string]func(t *testing.T, data, ckpt string) (offset int){
		"data beyond the checkpoint": func(t *testing.T, data, _ string) int {
			appendTo(t, data, content(9, 5000))
			return half
		},
		"torn last entry": func(t *testing.T, _, ckpt string) int {
			st, err := os.Stat(ckpt)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(ckpt, st.Size()-1); err != nil {
				t.Fatal(err)
			}
			return 200
		},
		"zeros behind the entries": func(t *testing.T, _, ckpt string) int {
			appendTo(t, ckpt, make([]byte, 4096))
			return half
		},
		"a form of nobody's": func(t *testing.T, _, ckpt string) int {
			b, err := os.ReadFile(ckpt)
			if err != nil {
				t.Fatal(err)
			}
			b[0] = 0
			if err := os.WriteFile(ckpt, b, filePerm); err != nil {
				t.Fatal(err)
			}
			return 0
		},
		"no checkpoint": func(t *testing.T, _, ckpt string) int {
			if err := os.Remove(ckpt); err != nil {
				t.Fatal(err)
			}
			return 0
		},
		"data shorter than the checkpoint": func(t *testing.T, data, _ string) int {
			if err := os.Truncate(data, 10); err != nil {
				t.Fatal(err)
			}
			return 0
		},
	} {
		for _, alg := range units.Algorithms() {
			t.Run(name+" "+alg.String(), func(t *testing.T) {
				dir := t.TempDir()
				s := open(t, dir)
				u := begin(t, s)
				expect(t, u, alg)
				add(t, u, want[:200])
				add(t, u, want[200:half])
				off := damage(t, u.path(extData), u.path(extCkpt))
				for range 2 { // a resume must not spoil the next one
					s = open(t, dir)
					var err error
					if u, err = s.Upload(u.ID()); err != nil {
						t.Fatal(err)
					}
					if u.Offset() != int64(off) {
						t.Fatalf("offset %d, want %d", u.Offset(), off)
					}
					add(t, u, want[off:off+150])
					off += 150
				}
				add(t, u, want[off:])
				installAs(t, s, u, alg, want)
			})
		}
	}
}

func appendTo(t *testing.T, path string, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestUpload_ReaderFails_WhatCameIsKept(t *testing.T) {
	want := content(3, 100_000)
	for _, last := range []bool{false, true} {
		for _, cut := range []int{0, 10, testSmall + 1, 60_000} {
			s := open(t, t.TempDir())
			u := begin(t, s)
			if err := u.Acquire(); err != nil {
				t.Fatal(err)
			}
			broken := io.MultiReader(bytes.NewReader(want[:cut]), iotest.ErrReader(io.ErrUnexpectedEOF))
			_, err := u.Append(context.Background(), broken, last)
			u.Release()
			if err == nil {
				t.Fatalf("last %v, cut %d: no error", last, cut)
			}
			if u.Offset() != int64(cut) {
				t.Fatalf("last %v, cut %d: offset %d", last, cut, u.Offset())
			}
			add(t, u, want[cut:])
			install(t, s, u, want)
		}
	}
}

func TestUpload_OneWriter(t *testing.T) {
	s := open(t, t.TempDir())
	u := begin(t, s)
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	if err := u.Acquire(); !errors.Is(err, ErrUploadBusy) {
		t.Fatalf("second writer: %v", err)
	}
	if err := u.Discard(); err != nil {
		t.Fatal(err)
	}
	u.Release()
	if err := u.Acquire(); !errors.Is(err, ErrNotFound) {
		t.Fatalf("after the end: %v", err)
	}
}

func TestUpload_Bounds(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for range 4 {
		if err := begin(t, s).Keep(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.CreateUpload(); !errors.Is(err, ErrTooManyUploads) {
		t.Fatalf("fifth upload: %v", err)
	}
	s = open(t, dir) // counted again
	if _, err := s.CreateUpload(); !errors.Is(err, ErrTooManyUploads) {
		t.Fatalf("fifth upload after a restart: %v", err)
	}
	for _, id := range []string{"", "x", "../../etc/passwd", "{4a3f39f6-5f8a-4b1c-9d57-9d2a5fd5a1c4}", "4A3F39F6-5F8A-4B1C-9D57-9D2A5FD5A1C4", "4a3f39f6-5f8a-4b1c-9d57-9d2a5fd5a1c4"} {
		if _, err := s.Upload(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("upload %q: %v", id, err)
		}
	}

	s = open(t, t.TempDir())
	u := begin(t, s)
	add(t, u, content(1, 5000))
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	_, err := u.Append(context.Background(), io.LimitReader(zeros{}, 33<<20), false)
	u.Release()
	if !errors.Is(err, ErrTooLarge) || u.Offset() != 5000 {
		t.Fatalf("too large: %v, offset %d", err, u.Offset())
	}
	add(t, u, content(2, 100))
	install(t, s, u, append(content(1, 5000), content(2, 100)...))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// /dev/full stands for the disk: writes to it fail with ENOSPC.
func TestUpload_NoSpace_KeepsWhatWasAcknowledged(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full on this system")
	}
	s := open(t, t.TempDir())
	want := content(4, 50_000)
	u := begin(t, s)
	add(t, u, want[:20_000])
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	u.data = full
	_, err = u.Append(context.Background(), bytes.NewReader(want[20_000:]), false)
	u.Release()
	if !errors.Is(err, ErrNoSpace) {
		t.Fatalf("full disk: %v", err)
	}
	if u.Offset() != 20_000 {
		t.Fatalf("offset %d", u.Offset())
	}
	add(t, u, want[20_000:])
	install(t, s, u, want)
}

// A sync that failed once is never believed later.
func TestSyncFails_NothingIsKept(t *testing.T) {
	s := open(t, t.TempDir())
	b := content(4, 50_000)
	once := func() {
		s.sync = func(*os.File) error { s.sync = syncData; return syscall.EIO }
	}
	u := begin(t, s)
	add(t, u, b[:1000])
	once()
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	_, err := u.Append(t.Context(), bytes.NewReader(b), false)
	u.Release()
	if !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if _, err := s.Upload(u.ID()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("the upload goes on: %v", err)
	}

	u = begin(t, s)
	if err := u.Acquire(); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Append(t.Context(), bytes.NewReader(b), true); err != nil {
		t.Fatal(err)
	}
	once()
	if err := u.Install(t.Context(), digest.FromBytes(b), nil); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := u.Settle(); err != nil {
		t.Fatal(err)
	}
	u.Release()
	if here, err := s.Has(t.Context(), digest.FromBytes(b), int64(len(b))); err != nil || here {
		t.Fatal("the blob is there")
	}

	p := fetch(t, s, b)
	if err := p.Put(0, b); err != nil {
		t.Fatal(err)
	}
	once()
	for range 2 {
		if err := p.Install(t.Context()); !errors.Is(err, errUnsyncedPartial) {
			t.Fatal(err)
		}
	}
	if err := p.Close(); !errors.Is(err, errUnsyncedPartial) {
		t.Fatal(err)
	}
	noLeftovers(t, s)
}

func TestOpen_WrongSizeOrGone_IsCorrupt(t *testing.T) {
	s := open(t, t.TempDir())
	b := content(5, 4000)
	d := digest.FromBytes(b)
	u := begin(t, s)
	add(t, u, b)
	install(t, s, u, b)
	if err := os.Truncate(s.disk.blobPath(d), 3999); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(d, 4000); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("truncated: %v", err)
	}
	if err := s.Quarantine(d); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(d, 4000); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("gone: %v", err)
	}
	if names, _ := filepath.Glob(s.path("quarantine", "sha256-"+d.Encoded()+".*")); len(names) != 1 {
		t.Fatalf("in quarantine: %v", names)
	}
}
