package swarm

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/places"
)

// backfill has a node fetch n blobs of two units as a rule would, and gives how many
// are done, and the function that ends it.
func (n *node) backfill(from *node, blobs int, o places.Order) (done *atomic.Int32, end func()) {
	n.lab.t.Helper()
	ctx, cancel := context.WithCancel(n.lab.t.Context())
	var ws []Want
	for i := range blobs {
		w := from.put(content(mib + 200<<10 + i))
		w.Class, w.Order = catalog.Placed, o
		ws = append(ws, w)
	}
	var wg sync.WaitGroup
	done = new(atomic.Int32)
	for _, w := range ws {
		wg.Go(func() {
			if err := n.swarm.Fetch(ctx, w); err == nil {
				done.Add(1)
			} else if ctx.Err() == nil {
				n.lab.t.Errorf("backfill: %v", err)
			}
		})
	}
	return done, func() { cancel(); wg.Wait() }
}

// A durable push is never behind a backfill, however much of that was asked for
// before it, over a link that is slow.
func TestFetch_AHurriedOnePassesABackfill(t *testing.T) {
	const backfill = 64
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	a.uplinkOf(16 * mib)
	push := content(4*mib + 1)
	w := a.put(push)
	w.Class, w.Hurry = catalog.Placed, true
	done, end := b.backfill(a, backfill, places.Order{})
	defer end()
	eventually(t, "the backfill is under way", func() bool { return b.got() >= 4 })
	if err := b.swarm.Fetch(within(t), w); err != nil {
		t.Fatal(err)
	}
	if n := done.Load(); n > backfill/2 {
		t.Errorf("%d of %d blobs of the backfill came first", n, backfill)
	}
	b.has(push)
}

// The same blob may be on its way for a rule when a push comes to want it.
func TestFetch_OneThatBecomesHurriedPasses(t *testing.T) {
	const backfill = 64
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	a.uplinkOf(16 * mib)
	w := a.put(content(4*mib + 1))
	w.Class = catalog.Placed
	done, end := b.backfill(a, backfill, places.Order{})
	defer end()
	eventually(t, "the backfill is under way", func() bool { return b.got() >= 4 })
	slow := b.fetching(w)
	eventually(t, "the rule wants it as well", func() bool { return len(b.swarm.Progress()) > 0 && b.swarm.flight(w) != nil })
	w.Hurry = true
	if err := b.swarm.Fetch(within(t), w); err != nil {
		t.Fatal(err)
	}
	if err := <-slow; err != nil {
		t.Fatal(err)
	}
	if n := done.Load(); n > backfill/2 {
		t.Errorf("%d of %d blobs of the backfill came first", n, backfill)
	}
}

// What is of an older artifact, or of a rule with a higher priority, passes what was
// asked for before.
func TestFetch_InOrder(t *testing.T) {
	const backfill = 48
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	a.uplinkOf(16 * mib)
	done, end := b.backfill(a, backfill, places.Order{Priority: 3, At: 1000})
	defer end()
	eventually(t, "the backfill is under way", func() bool { return b.got() >= 4 })
	for i, o := range []places.Order{{Priority: 3, At: 999}, {Priority: 4, At: 2000}} {
		w := a.put(content(2*mib + i))
		w.Class, w.Order = catalog.Placed, o
		if err := b.swarm.Fetch(within(t), w); err != nil {
			t.Fatal(err)
		}
		if n := done.Load(); n > backfill/2 {
			t.Errorf("%v: %d of %d blobs of the backfill came first", o, n, backfill)
		}
	}
}

// flight is the one of a blob, if it is on its way.
func (s *Swarm) flight(w Want) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flights[w.Digest]
}

// However many clients wait, what a rule wants begins, and so does a push.
func TestFetch_ClientsDoNotKeepRulesOut(t *testing.T) {
	const clients = 70
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	g := newGate(mib)
	a.bend(&faulty{read: g.read})
	var wg sync.WaitGroup
	for i := range clients {
		w := a.put(content(mib + 100<<10 + i))
		wg.Go(func() {
			r, err := b.swarm.OpenBlob(t.Context(), w)
			if err == nil {
				defer func() { _ = r.Close() }()
				_, err = io.Copy(io.Discard, r)
			}
			if err != nil && t.Context().Err() == nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "all clients wait", func() bool { return b.swarm.active() == clients })
	for i, hurry := range []bool{false, true} {
		w := a.put(content(400<<10 + i))
		w.Class, w.Hurry = catalog.Placed, hurry
		if err := b.swarm.Fetch(within(t), w); err != nil {
			t.Fatal(err)
		}
	}
	g.open(1 << 40)
	wg.Wait()
}

// within is a context for what should take a few seconds.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
