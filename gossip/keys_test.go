package gossip

import (
	"slices"
	"testing"
)

// TestSetKeys_NodesStayTogether goes through a rotation step by step, at one node
// after the other: no node is lost, and announcements arrive between any two steps.
func TestSetKeys_NodesStayTogether(t *testing.T) {
	w := newWorld(t)
	a, b := w.start(w.config("ams")), w.start(w.config("fra"))
	eventually(t, "both in sight", func() bool { return sees(a, b)() && sees(b, a)() })
	old, fresh := w.keys[0], newKey()
	for _, step := range []struct {
		on   *node
		keys [][]byte
	}{
		{a, [][]byte{old, fresh}}, {b, [][]byte{old, fresh}},
		{b, [][]byte{fresh, old}}, {a, [][]byte{fresh, old}},
		{a, [][]byte{fresh}}, {b, [][]byte{fresh}},
	} {
		if err := step.on.SetKeys(step.keys); err != nil {
			t.Fatal(err)
		}
		if got := step.on.ring.GetKeys(); !slices.EqualFunc(got, step.keys, slices.Equal) {
			t.Fatalf("%d keys, not the %d that were set, in their order", len(got), len(step.keys))
		}
		a.mustReach(t, b)
		b.mustReach(t, a)
	}
	if !a.Alive(b.cfg.Self) || !b.Alive(a.cfg.Self) {
		t.Error("a node was lost on the way")
	}
}

// TestSetKeys_WhoWasAwayComesBack: a node that slept through a rotation is not
// heard, until it is given the new keys.
func TestSetKeys_WhoWasAwayComesBack(t *testing.T) {
	w := newWorld(t)
	old := w.keys
	a := w.start(w.config("ams"))
	if err := a.SetKeys([][]byte{newKey(), newKey()}); err != nil { // two rotations went by, the second is not finished
		t.Fatal(err)
	}
	fresh := slices.Clone(a.ring.GetKeys())
	cfg := w.config("fra")
	cfg.Keys = [][]byte{old[0], newKey()}
	b := w.start(cfg)
	if err := b.rejoin(t.Context()); err == nil {
		t.Fatal("a node with an old key is let in")
	}
	if a.Alive(b.cfg.Self) || b.Alive(a.cfg.Self) {
		t.Fatal("a node with an old key is seen")
	}
	if err := b.SetKeys(fresh); err != nil {
		t.Fatal(err)
	}
	if got := b.ring.GetKeys(); !slices.EqualFunc(got, fresh, slices.Equal) {
		t.Fatalf("%d keys, not the %d that were set, in their order", len(got), len(fresh))
	}
	eventually(t, "both in sight", func() bool { return sees(a, b)() && sees(b, a)() })
	a.mustReach(t, b)
	b.mustReach(t, a)
}

func TestSetKeys_RefusesWhatIsNone(t *testing.T) {
	w := newWorld(t)
	a := w.start(w.config("ams"))
	for _, keys := range [][][]byte{nil, {}, {make([]byte, 16)}, {newKey(), nil}} {
		if err := a.SetKeys(keys); err == nil {
			t.Errorf("%d keys are taken", len(keys))
		}
	}
	if got := a.ring.GetKeys(); !slices.EqualFunc(got, w.keys, slices.Equal) {
		t.Error("a refused call changed the keys")
	}
}

// mustReach announces until the other has heard: a packet may get lost.
func (n *node) mustReach(t *testing.T, to *node) {
	t.Helper()
	for len(to.hints) > 0 {
		<-to.hints // of the step before
	}
	n.Announce(7, []byte("now"))
	eventually(t, "an announcement", func() bool {
		if len(to.hints) == 0 {
			n.Announce(7, []byte("now"))
			return false
		}
		return true
	})
}
