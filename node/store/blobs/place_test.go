package blobs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// eachPlace runs the conformance suite: what package store relies on is the same
// on a disk and in a bucket. That of a real S3 server is in package store.
func eachPlace(t *testing.T, f func(t *testing.T, reopen func() *Store)) {
	t.Helper()
	for name, backend := range map[string]func(t *testing.T) *Backend{
		"disk":     func(*testing.T) *Backend { return nil },
		"inmemory": func(*testing.T) *Backend { return &Backend{Driver: inmemory.New(), Part: 1 << 20} },
		"filesystem": func(t *testing.T) *Backend {
			d, err := filesystem.FromParameters(map[string]any{"rootdirectory": t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			return &Backend{Driver: d, Part: 1 << 20}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, b, made := t.TempDir(), backend(t), false
			f(t, func() *Store {
				t.Helper()
				s, err := Open(Config{
					Dir: dir, Logger: slog.New(slog.DiscardHandler), Now: time.Now,
					MaxUpload: 32 << 20, MaxUploads: 4, SmallMax: testSmall, Backend: b, StoreID: "one",
				})
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Prove(t.Context(), !made); err != nil {
					t.Fatal(err)
				}
				made = true
				return s
			})
		})
	}
}

// readBack reads a blob from off as package store does.
func readBack(t testing.TB, s *Store, d digest.Digest, size, off int64) []byte {
	t.Helper()
	var r io.ReadCloser
	var err error
	if s.Remote() {
		r, err = s.OpenAt(t.Context(), d, off)
	} else if f, ferr := s.Open(d, size); ferr == nil {
		r = f
		_, err = f.Seek(off, io.SeekStart)
	} else {
		err = ferr
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return b
}

func is(t testing.TB, s *Store, d digest.Digest, size int64, want bool) {
	t.Helper()
	if got, err := s.Has(t.Context(), d, size); err != nil || got != want {
		t.Fatalf("has %s with %d bytes: %v, %v", d, size, got, err)
	}
}

func TestPlace_UploadsAndFetches(t *testing.T) {
	eachPlace(t, func(t *testing.T, reopen func() *Store) {
		s := reopen()
		for i, alg := range units.Algorithms() {
			for j, size := range []int{40_000, 1 << 20, 3<<20 + 7, 7 << 20} {
				b := content(byte(10*i+j), size)
				d := alg.FromBytes(b)
				rec, list := listedAs(t, alg, b)
				is(t, s, d, int64(size), false)
				if j%2 == 0 {
					u := begin(t, s)
					add(t, u, b)
					if err := u.Acquire(); err != nil {
						t.Fatal(err)
					}
					if err := u.Install(t.Context(), d, list); err != nil {
						t.Fatal(err)
					}
					if err := u.Discard(); err != nil {
						t.Fatal(err)
					}
					u.Release()
				} else {
					p := fetchAs(t, s, alg, b)
					for i := range list.Units() {
						if err := p.Put(i, unitOf(list, b, i)); err != nil {
							t.Fatal(err)
						}
					}
					if err := p.Install(t.Context()); err != nil {
						t.Fatal(err)
					}
					got := make([]byte, 100)
					if _, err := p.ReadAt(got, 77); err != nil || !bytes.Equal(got, b[77:177]) {
						t.Fatalf("reading on after the install: %v", err)
					}
					p.Drop()
					if err := p.Close(); err != nil {
						t.Fatal(err)
					}
				}
				s.Settled(d)
				for _, s := range []*Store{s, reopen()} {
					is(t, s, d, int64(size), true)
					is(t, s, d, int64(size)-1, false)
					is(t, s, d, int64(size)+1, false)
					for _, off := range []int64{0, 1, 39_999} {
						if got := readBack(t, s, d, int64(size), off); !bytes.Equal(got, b[off:]) {
							t.Fatalf("%d bytes from %d differ", len(got), off)
						}
					}
					back, err := s.List(t.Context(), rec)
					if err != nil || back.Root() != list.Root() {
						t.Fatalf("list: %v", err)
					}
				}
				noLeftovers(t, s)
			}
		}
	})
}

func TestPlace_Removes(t *testing.T) {
	eachPlace(t, func(t *testing.T, reopen func() *Store) {
		s := reopen()
		b := content(1, 2<<20)
		d := digest.FromBytes(b)
		rec, list := listedAs(t, digest.SHA256, b)
		for _, remove := range []func(){
			func() {
				if err := s.Remove(t.Context(), d); err != nil {
					t.Fatal(err)
				}
			},
			func() { // what has no row goes at once, or by a sweep
				if err := s.Drop(t.Context(), d); err != nil {
					t.Fatal(err)
				}
				s.cfg.Now = func() time.Time { return time.Now().Add(2 * doubtFor) }
				if s.objects != nil {
					s.objects.notes.now = s.cfg.Now
				}
				if _, err := s.Sweep(t.Context(), Keep{}, func(d digest.Digest, also func() error) error {
					if err := s.Remove(t.Context(), d); err != nil || also == nil {
						return err
					}
					return also()
				}); err != nil {
					t.Fatal(err)
				}
			},
		} {
			u := begin(t, s)
			add(t, u, b)
			if err := u.Acquire(); err != nil {
				t.Fatal(err)
			}
			if err := u.Install(t.Context(), d, list); err != nil {
				t.Fatal(err)
			}
			if err := u.Discard(); err != nil {
				t.Fatal(err)
			}
			is(t, s, d, int64(len(b)), true)
			remove()
			is(t, s, d, int64(len(b)), false)
			if _, err := s.List(t.Context(), rec); err == nil {
				t.Fatal("its list is there")
			}
			if err := s.Remove(t.Context(), d); err != nil {
				t.Fatalf("removed twice: %v", err)
			}
		}
		if s.objects != nil {
			if left, err := readNames(filepath.Join(s.Dir(), dirDoubtful)); err != nil || len(left) > 0 {
				t.Fatalf("notes are left: %v, %v", left, err)
			}
		}
	})
}

// TestGuard: the clock runs while the bucket is waited for, and not while a
// client is.
func TestGuard(t *testing.T) {
	g := newGuard(context.Background(), time.Millisecond)
	defer g.end()
	<-g.ctx.Done()
	if err := g.explain(io.ErrUnexpectedEOF); !errors.Is(err, errStalled) {
		t.Fatal(err)
	}
	g = newGuard(context.Background(), time.Hour)
	g.rest()
	if g.timer.Stop() {
		t.Error("the clock runs at rest")
	}
	g.arm()
	if !g.timer.Stop() {
		t.Error("the clock does not run")
	}
	g.end()
	if err := g.explain(io.EOF); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestLists_AreBounded(t *testing.T) {
	var c listCache
	for i := range 100 {
		d := digest.FromBytes([]byte{byte(i)})
		c.put(d, make([]byte, 1<<20))
		c.put(d, make([]byte, 1<<20))
		if c.get(d) == nil || c.bytes > maxListBytes {
			t.Fatalf("list %d: %d bytes are kept", i, c.bytes)
		}
	}
	if c.lru.Len() != maxListBytes>>20 || c.bytes != maxListBytes {
		t.Fatalf("%d lists, %d bytes", c.lru.Len(), c.bytes)
	}
	last := digest.FromBytes([]byte{99})
	c.forget(last)
	if c.get(last) != nil || c.bytes != maxListBytes-1<<20 {
		t.Fatalf("%d bytes", c.bytes)
	}
	c.put(last, make([]byte, maxListBytes))
	if c.get(last) != nil {
		t.Fatal("one list takes the place of all")
	}
}
