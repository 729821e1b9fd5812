package swarm

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

func TestSwarm_AHurriedFetchTakesNoTurn(t *testing.T) {
	s := newLab(t).start().swarm
	overs := filled(s)
	w := Want{Digest: digest.FromString("x"), Class: catalog.Placed}
	f := newFlight(s, w)
	defer f.cancel()
	begun := make(chan error, 1)
	f.joined(w, false)
	go func() { begun <- s.turn(f) }()
	eventually(t, "it waits", func() bool { return s.turns.Waiting() == 1 })
	w.Hurry = true
	s.mu.Lock()
	f.joined(w, false)
	s.mu.Unlock()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	if n := s.turns.Taken(); n != maxActive {
		t.Errorf("%d places are taken: one that is waited for takes none", n)
	}
	s.mu.Lock()
	f.wanted(w, -1) // the push is over, and a rule still wants it
	s.count(f)
	s.mu.Unlock()
	if n := s.turns.Taken(); n != maxActive+1 {
		t.Errorf("%d places are taken: nobody waits for it any more", n)
	}
	s.over(f)
	for _, over := range overs {
		over()
	}
	if s.turns.Taken() != 0 || s.active() != 0 {
		t.Errorf("%d places are taken in the end, %d under way", s.turns.Taken(), s.active())
	}
}

// TestSwarm_CameIn_CountsPartsOfUnits: who waits for a blob sees it move long before a unit
// is whole, and only who it comes for.
func TestSwarm_CameIn_CountsPartsOfUnits(t *testing.T) {
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	data := content(odd)
	w := a.put(data)
	tp := newTap(t, piece+16<<10)
	a.turn(&faulty{}, tp, nil)
	r := b.eager(t.Context(), w)
	r.takes(t, data[:piece])
	if came := b.swarm.CameIn(w.Digest, project); came < piece || came >= units.UnitSizeFor(odd) || b.swarm.Done(w.Digest) != 0 {
		t.Errorf("%d bytes came, %d are checked: want a piece, and none", came, b.swarm.Done(w.Digest))
	}
	if came := b.swarm.CameIn(w.Digest, identity.NewProjectID()); came != 0 {
		t.Errorf("another project sees %d bytes", came)
	}
	tp.open()
	r.takes(t, data[piece:])
	if err := r.Proven(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is stored", func() bool { return b.swarm.CameIn(w.Digest, project) == 0 })
}
