package swarm

import (
	"bytes"
	"io"
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// A member that is removed while it sends gives nothing more; another holder goes on.
func TestFetch_AHolderIsRemovedWhileItSends(t *testing.T) {
	l := newLab(t)
	l.stall = time.Second
	a, b, c := l.start(), l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	l.held(a)
	g := newGate(5 * mib)
	a.bend(&faulty{read: g.read})
	done := b.fetching(w)
	<-g.reached
	c.put(data)
	l.held(a, c)
	l.remove(a)
	b.host.CutOff(a.id.ID)
	before := b.from(a)
	g.open(odd)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := b.from(a); n != before {
		t.Errorf("%d bytes came from a node that was removed, after %d", n-before, before)
	}
	if b.from(c) == 0 {
		t.Error("nothing came from the other holder")
	}
	r, err := b.store.Open(t.Context(), w.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A receiver that said what it has, and has it no more, is asked in vain once; it
// is no liar, and what it said of holds up nothing.
func TestFetch_AStaleBitmapHoldsUpNothing(t *testing.T) {
	l := newLab(t)
	a, b, stale := l.start(), l.start(), l.start()
	w := a.put(content(odd))
	l.held(a)
	g := newGate(2 * mib)
	a.bend(&faulty{read: g.read})
	done := b.fetching(w)
	<-g.reached
	b.swarm.mu.Lock()
	f := b.swarm.flights[w.Digest]
	b.swarm.mu.Unlock()
	f.watchHolder(stale.id.ID, project)
	all := bytes.Repeat([]byte{255}, (unitsOf(odd)+7)/8)
	all[len(all)-1] &= 1<<(unitsOf(odd)-8*(len(all)-1)) - 1
	if err := f.heard(stale.id.ID, &Have{Size: int64(odd), Bitmap: all}); err != nil {
		t.Fatal(err)
	}
	f.stir()
	eventually(t, "it was asked, and had nothing", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return !f.resting[stale.id.ID].IsZero()
	})
	g.open(odd)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if b.from(stale) != 0 || b.blamed(stale) != 0 {
		t.Errorf("%d bytes came of a stale word, and %d were blamed on it", b.from(stale), b.blamed(stale))
	}
}

// from is what came from a node, in bytes.
func (n *node) from(other *node) int64 {
	sum := int64(0)
	n.swarm.arrivals.each(time.Now(), func(id identity.NodeID, total int64, _ float64) {
		if id == other.id.ID {
			sum = total
		}
	})
	return sum
}
