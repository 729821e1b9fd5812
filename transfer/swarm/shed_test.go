package swarm

import (
	"errors"
	"testing"

	"github.com/portolan/portolan/node/store/catalog"
)

// A stream that this node ends for others, again and again, tells nothing of the holder:
// whoever asked on it asks on another one.
func TestFetch_WhatWasTakenAwaySaysNothingOfTheHolder(t *testing.T) {
	for _, size := range []int{100, 5*mib + 17} { // in a batch, and on its own
		for _, after := range []int{0, 50, 5 * mib / 2} {
			if after >= size {
				continue
			}
			l := newLab(t)
			a, b := l.start(), l.start()
			h := &fulls{Host: b.swarm.sessions.host, after: after, why: endedFull{errors.New("it was lent")}}
			h.left.Store(3)
			b.swarm.sessions.host = h
			data := content(size)
			w := a.put(data)
			w.Class = catalog.Placed
			l.held(a)
			if err := b.swarm.Fetch(within(t), w); err != nil {
				t.Errorf("%d bytes, taken away after %d: %v", size, after, err)
				continue
			}
			b.has(data)
			if h.left.Load() > 0 {
				t.Errorf("%d bytes: %d streams were not asked for", size, h.left.Load())
			}
			for _, reason := range []string{"silent", "unreachable", "bad", "refused"} {
				if n := b.failovers(reason); n != 0 {
					t.Errorf("%d bytes, taken away after %d: %d failovers: %s", size, after, n, reason)
				}
			}
			b.swarm.sessions.mu.Lock()
			s := &b.swarm.sessions.of(a.id.ID).inUse
			b.swarm.sessions.mu.Unlock()
			s.mu.Lock()
			if !s.part.IsZero() {
				t.Errorf("%d bytes, taken away after %d: the holder has its part alone", size, after)
			}
			s.mu.Unlock()
			b.swarm.batches.mu.Lock()
			if m := b.swarm.batches.m[a.id.ID]; m != nil && !m.rest.IsZero() {
				t.Errorf("%d bytes, taken away after %d: small blobs come one by one", size, after)
			}
			b.swarm.batches.mu.Unlock()
		}
	}
}

// A lent stream is taken away from who has it, not from who has it next; and one that was
// taken away is nobody's next.
func TestSessions_WhatIsTakenAwayIsNotTheNextOnes(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	s := b.swarm.sessions
	s.host = evenly{s.host, 1 + batchSessions}
	rules := need{at: func() (class, rank, <-chan struct{}) { return classReplication, rank{}, nil }}
	open := func() (*session, bool, func(bool)) {
		t.Helper()
		ss, fresh, release, err := s.get(t.Context(), a.id.ID, rules)
		if err != nil {
			t.Fatal(err)
		}
		return ss, fresh, release
	}
	_, _, first := open()
	ss, _, second := open()
	s.mu.Lock()
	slots := &s.of(a.id.ID).inUse
	s.mu.Unlock()
	sheds := slots.takeBack() // either of the two: the part is one
	if len(sheds) != 1 {
		t.Fatalf("%d streams are taken away, want the one that was lent", len(sheds))
	}
	// Both go back first.
	second(true)
	first(true)
	for _, shed := range sheds {
		shed()
	}
	next, fresh, release := open()
	if fresh || next.st.(*ownedStream).full.Load() {
		t.Error("the pool's stream was taken away")
	}
	release(true)
	if ss.st.(*ownedStream).full.Load() {
		t.Error("what went back was taken away")
	}
	// And the other way round.
	next, _, release = open()
	slots.mu.Lock()
	var taken func()
	for w := range slots.used {
		taken = w.shed
	}
	slots.mu.Unlock()
	taken()
	release(true)
	if again, _, release := open(); again == next {
		t.Error("what was taken away is in the pool")
		release(false)
	} else {
		release(true)
	}
}
