package transfer

import (
	"strconv"
	"testing"

	"github.com/portolan/portolan/node/identity"
)

// TestShares_OneNodeLeavesRoomForOthers: whoever asks for the most has its share of what
// may be on its way, and what has left the queue counts no more.
func TestShares_OneNodeLeavesRoomForOthers(t *testing.T) {
	s := newShares()
	greedy, other := identity.NodeID{1}, identity.NodeID{2}
	name := func(i int) key { return key{kind: kept, repo: strconv.Itoa(i)} }
	for i := range keptEach {
		if !s.take(name(i), greedy) {
			t.Fatalf("the share ends at %d, want %d", i, keptEach)
		}
	}
	if s.take(name(keptEach), greedy) {
		t.Error("a node has more than its share")
	}
	if !s.take(name(0), greedy) {
		t.Error("what is on its way is refused")
	}
	if !s.take(name(keptEach), other) {
		t.Error("another node has no room")
	}
	s.end(name(0))
	s.end(name(0))
	if !s.take(name(keptEach+1), greedy) {
		t.Error("what has left counts")
	}
	for i := range keptEach + 2 {
		s.end(name(i))
	}
	if len(s.of)+len(s.n) != 0 {
		t.Errorf("%d tasks and %d nodes are left", len(s.of), len(s.n))
	}
}
