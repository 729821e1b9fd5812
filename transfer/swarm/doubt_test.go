package swarm

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// doubted tells of the doubts that a holder hears.
type doubted struct {
	source
	heard chan digest.Digest
}

func (d doubted) Doubt(of digest.Digest) bool {
	d.heard <- of
	return d.source.Doubt(of)
}

// Who is sent wrong bytes says so to the holder, which may be honest and have a bad
// disk.
func TestDoubt_TheHolderHearsOfIt(t *testing.T) {
	l := newLab(t)
	bad, good, to := l.start(), l.start(), l.start()
	data := content(6 * mib)
	w := bad.put(data)
	good.put(data)
	f := &faulty{read: flipAt(3 * mib)}
	bad.bend(f)
	heard := make(chan digest.Digest, 100)
	f.source = doubted{f.source, heard}
	l.held(bad)
	// Alone first: else the other may send all that is flipped.
	if err := to.swarm.Fetch(t.Context(), w); err == nil {
		t.Fatal("wrong bytes were taken")
	}
	select {
	case d := <-heard:
		if d != w.Digest {
			t.Errorf("%s is doubted", d)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the holder heard of no doubt")
	}
	eventually(t, "no doubt is on its way", func() bool {
		to.swarm.doubting.mu.Lock()
		defer to.swarm.doubting.mu.Unlock()
		return len(to.swarm.doubting.now) == 0
	})
	bad.has(data) // its disk is good: it stays
	l.held(bad, good)
	if err := to.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	to.has(data)
}

// A doubt is no way to ask whether a blob is here.
func TestDoubt_AccessFirst(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	w := a.put(content(2 * mib))
	f := &faulty{}
	a.bend(f)
	heard := make(chan digest.Digest, 100)
	f.source = doubted{f.source, heard}
	l.mu.Lock()
	l.denied[b.id.ID] = true
	l.mu.Unlock()
	if err := b.swarm.tellDoubt(candidate{node: a.id.ID, pid: project}, w.Digest); err != nil {
		t.Fatal(err)
	}
	if len(heard) > 0 {
		t.Error("a node that may not have the project had a blob of it read")
	}
}
