package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

const odd = 8*mib + 12345 // nine units, the last one short

func TestFetch_BlobsOfAllSizes(t *testing.T) { onEachPlane(t, testBlobsOfAllSizes) }

func testBlobsOfAllSizes(t *testing.T, l *lab) {
	a, b := l.start(), l.start()
	l.held(a)
	for _, size := range []int{0, 1, 100, store.InlineMax, store.InlineMax + 1, mib - 1, mib, mib + 1, 3 * mib, odd} {
		t.Run(itoa(size), func(t *testing.T) {
			data := content(size)
			w := a.put(data)
			w.Class = catalog.Placed
			for _, known := range []bool{true, false} {
				if !known {
					w.Size = 0
				}
				if err := b.swarm.Fetch(t.Context(), w); err != nil {
					t.Fatal(err)
				}
			}
			b.has(data)
			row, err := b.store.Catalog().Blob(w.Digest)
			if err != nil || row.Class != catalog.Placed {
				t.Fatalf("class %v, %v", row.Class, err)
			}
		})
	}
}

func TestFetch_SizeNotKnown(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	for _, size := range []int{0, 10, odd} {
		data := content(size)
		w := a.put(data)
		w.Size = 0
		if err := b.swarm.Fetch(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		b.has(data)
	}
}

func TestFetch_PlacedMakesACachedCopyResponsible(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	w := a.put(content(2 * mib))
	for _, class := range []catalog.Class{catalog.Cached, catalog.Placed, catalog.Cached} {
		w.Class = class
		if err := b.swarm.Fetch(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	row, err := b.store.Catalog().Blob(w.Digest)
	if err != nil || row.Class != catalog.Placed {
		t.Fatalf("class %v, %v: want placed", row.Class, err)
	}
	if a.sent() != 2 {
		t.Fatalf("%d units sent, want 2", a.sent())
	}
}

func TestFetch_ManyAtOnceFromOneHolder(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	var wg sync.WaitGroup
	errs := make(chan error, 1)
	const n = 3 * maxActive
	for i := range n {
		w := a.put(content(40_000 + i))
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := b.swarm.Fetch(t.Context(), w); err != nil {
				select {
				case errs <- err:
				default:
				}
			}
		}()
	}
	wg.Wait()
	select {
	case err := <-errs:
		t.Fatal(err)
	default:
	}
	if b.got() != n {
		t.Fatalf("%d units, want %d", b.got(), n)
	}
	if got := b.swarm.active(); got != 0 {
		t.Fatalf("%d turns not given back", got)
	}
}

func TestFetch_UnknownIsNotFound(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	w := Want{Digest: digest.FromString("nowhere"), Size: 7, PID: project, Class: catalog.Cached}
	if err := b.swarm.Fetch(t.Context(), w); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("no holder: %v", err)
	}
	l.held(a) // a hint that is wrong
	if err := b.swarm.Fetch(t.Context(), w); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("wrong hint: %v", err)
	}
}

// A manifest may lie about a size: that is not its holder's fault.
func TestFetch_SizeThatIsNotTheBlobs(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	w := a.put(content(odd))
	for _, size := range []int64{1, odd - 1, odd + 3*mib} {
		w.Size = size
		if err := b.swarm.Fetch(t.Context(), w); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("got %v", err)
		}
	}
	if b.blamedList(a) != 0 || b.blamed(a) != 0 {
		t.Fatal("an honest holder was blamed")
	}
}

func TestFetch_HoldersThatAreDownAreNamed(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	w := a.put(content(odd))
	site := a.swarm.site(a.id.ID)
	a.stop()
	var u *store.Unreachable
	if err := b.swarm.Fetch(t.Context(), w); !errors.As(err, &u) || len(u.Sites) != 1 || u.Sites[0] != site || u.RetryAfter == 0 {
		t.Fatalf("got %v", err)
	}
	at := time.Now()
	if _, err := b.swarm.OpenBlob(t.Context(), w); !errors.As(err, &u) {
		t.Fatalf("got %v", err)
	}
	if d := time.Since(at); d > 10*time.Second {
		t.Fatalf("the client was told after %s", d)
	}
}

// A holder that takes the connection and says nothing, and that gossip thinks is
// down: the client hears within a second.
func TestFetch_HolderKilledMidway(t *testing.T) {
	l := newLab(t)
	a, b, c := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	b.put(data)
	l.held(a, b)
	g := newGate(4 * mib)
	a.bend(&faulty{read: g.read})
	done := make(chan error, 1)
	go func() { done <- c.swarm.Fetch(t.Context(), w) }()
	<-g.reached
	eventually(t, "what was sent is here", func() bool { return c.got() == 4 })
	a.stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c.has(data)
	if n := unitsOf(odd); a.sent()+b.sent() > n+1 {
		t.Fatalf("%d+%d units sent for a blob of %d", a.sent(), b.sent(), n)
	}
	if a.sent() == 0 || b.sent() == 0 {
		t.Fatalf("%d+%d units sent: want some from both", a.sent(), b.sent())
	}
}

func TestFetch_LyingHolderIsReplacedAndNamed(t *testing.T) {
	l := newLab(t)
	a, b, c := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	b.put(data)
	l.held(a, b)
	a.bend(&faulty{read: flipAt(2 * mib)})
	r, err := c.swarm.OpenBlob(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if c.blamed(a) != maxStrikes || c.blamed(b) != 0 {
		t.Fatalf("blamed: liar %d, other %d", c.blamed(a), c.blamed(b))
	}
}

func TestFetch_OneFlippedBitDoesNotCostTheHolder(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	l.held(a)
	var once sync.Once
	a.bend(&faulty{read: func(_ context.Context, off int64, p []byte) error {
		if off >= 3*mib {
			once.Do(func() { p[0] ^= 0x80 })
		}
		return nil
	}})
	if err := b.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	b.has(data)
	if b.blamed(a) != 1 {
		t.Fatalf("blamed %d times", b.blamed(a))
	}
}

func TestFetch_OnlyLiars(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	for _, size := range []int{1000, odd} {
		w := a.put(content(size))
		l.held(a)
		a.bend(&faulty{read: flipAt(0)})
		if err := b.swarm.Fetch(t.Context(), w); !errors.Is(err, ErrBadHolders) {
			t.Fatalf("got %v", err)
		}
		if _, err := b.store.Stat(t.Context(), w.Digest); !errors.Is(err, store.ErrNotFound) {
			t.Fatalf("stored: %v", err)
		}
	}
}

// A member signs a list made from other bytes, whose links hold in order until
// the last: no reader gets a whole body, the signer is named, and afterwards the
// blob comes from the honest holder.
func TestFetch_FalseListSignedByAMember(t *testing.T) {
	l := newLab(t)
	liar, honest, c := l.start(), l.start(), l.start()
	data := content(odd)
	w := honest.put(data)
	liar.put(data)
	wrong := content(odd)
	wrong[0] ^= 1
	liar.forges(w, wrong, nil)
	l.held(liar, honest)
	r, err := c.swarm.OpenBlob(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	_ = r.Close()
	if err == nil || len(got) >= odd {
		t.Fatalf("a false list gave a whole body: %d bytes, %v", len(got), err)
	}
	eventually(t, "the flight ends", func() bool { return len(c.swarm.Progress()) == 0 })
	if len(c.suspects(liar)) == 0 || len(c.suspects(honest)) > 0 {
		t.Fatalf("suspects %+v", c.swarm.Suspects())
	}
	if err := c.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	c.has(data)
	if c.blamedList(liar) == 0 {
		t.Fatal("the signer is not named")
	}
}

func TestFetch_RecordsThatAreRefused(t *testing.T) {
	for name, bend := range map[string]func(l *lab, a *node, r units.Record, li *units.List) (units.Record, *units.List){
		"signed by a stranger": func(l *lab, _ *node, _ units.Record, li *units.List) (units.Record, *units.List) {
			dir := l.t.TempDir()
			id, _, err := identity.LoadOrCreate(dir)
			l.check(err)
			r, err := units.Sign(li, id.ID, id)
			l.check(err)
			return r, li
		},
		"wrong signature": func(_ *lab, _ *node, r units.Record, li *units.List) (units.Record, *units.List) {
			r.Signature[0] ^= 1
			return r, li
		},
		"list of other bytes": func(l *lab, _ *node, r units.Record, _ *units.List) (units.Record, *units.List) {
			h := units.NewHasher(digest.SHA256)
			_, _ = h.Write(make([]byte, odd))
			li, err := h.List()
			l.check(err)
			return r, li
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			a, b, c := l.start(), l.start(), l.start()
			data := content(odd)
			w := a.put(data)
			b.put(data)
			l.held(a, b)
			f := &faulty{record: func(r units.Record, li *units.List) (units.Record, *units.List, error) {
				r, li = bend(l, a, r, li)
				return r, li, nil
			}}
			f.source = supply{a.swarm}
			cfg := a.config(a.swarm.log)
			cfg.KnownSigner = func(identity.NodeID) bool { return true } // does not sign anew
			srv := newServer(cfg, f, a.swarm.metrics)
			a.host.Handle(Protocol, srv.serve)
			if err := c.swarm.Fetch(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			c.has(data)
			if c.blamedList(a) != 1 || c.blamed(b) != 0 {
				t.Fatalf("blamed: %d and %d", c.blamedList(a), c.blamed(b))
			}
		})
	}
}

// The node that took a blob in was removed: holders sign for it.
func TestFetch_RecordOfARemovedNode(t *testing.T) {
	l := newLab(t)
	a, b, c := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	l.held(a)
	if err := b.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	l.remove(a)
	b.host.CutOff(a.id.ID)
	l.held(b)
	if err := c.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	rec, _, err := c.store.Record(t.Context(), w.Digest)
	if err != nil || rec.Signer != b.id.ID {
		t.Fatalf("signed by %s, %v", rec.Signer, err)
	}
}

func TestFetch_ResumesAfterARestart(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	l.held(a)
	g := newGate(6 * mib)
	a.bend(&faulty{read: g.read})
	done := b.fetching(w)
	<-g.reached
	eventually(t, "six units are here", func() bool { return b.got() == 6 })
	b.stop()
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Fatalf("got %v", err)
	}
	g.open(odd)
	before := a.sent()
	b = l.startIn(b.dir)
	if err := b.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	b.has(data)
	// The one that was under way may have been counted as sent before the end.
	if again := a.sent() - before; again > unitsOf(odd)-6+1 {
		t.Fatalf("%d units sent again", again)
	}
	if b.got() != unitsOf(odd)-6 {
		t.Fatalf("%d units received again", b.got())
	}
}

func TestFetch_RemovedMemberIsCutOffMidway(t *testing.T) {
	l := newLab(t)
	l.stall = time.Second
	a, b := l.start(), l.start()
	w := a.put(content(odd))
	l.held(a)
	g := newGate(5 * mib)
	a.bend(&faulty{read: g.read})
	done := b.fetching(w)
	<-g.reached
	l.remove(b)
	a.host.CutOff(b.id.ID)
	g.open(odd)
	if err := <-done; err == nil {
		t.Fatal("a removed member got the rest")
	}
	if _, err := b.store.Stat(t.Context(), w.Digest); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("stored: %v", err)
	}
}

func TestFetch_DeniedProject(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	w := a.put(content(100))
	l.held(a)
	l.mu.Lock()
	l.denied[b.id.ID] = true
	l.mu.Unlock()
	var u *store.Unreachable
	if err := b.swarm.Fetch(t.Context(), w); !errors.As(err, &u) {
		t.Fatalf("got %v", err)
	}
	if a.sent() != 0 {
		t.Fatal("a denied node got bytes")
	}
}

// A stream from the pool whose other end is gone costs no failover.
func TestFetch_HolderThatRestarted(t *testing.T) {
	l := newLab(t)
	l.stall = time.Second
	a, b := l.start(), l.start()
	w1, data := a.put(content(mib)), content(2*mib)
	l.held(a)
	if err := b.swarm.Fetch(t.Context(), w1); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a = l.startIn(a.dir)
	w2 := a.put(data)
	eventually(t, "fetched from the restarted node", func() bool { return b.swarm.Fetch(t.Context(), w2) == nil })
	b.has(data)
}

func TestFetch_FullDisk(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	w := a.put(content(odd))
	l.held(a)
	b.swarm.keep = fullDisk
	if err := b.swarm.Fetch(t.Context(), w); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("got %v", err)
	}
}

func fullDisk(context.Context, units.Record, *units.List) (*store.Partial, error) {
	return nil, store.ErrNoSpace
}
