package swarm

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// TestSchedule_EndsBehindOtherBlobs: what is on its way is asked for again only of a
// peer whose room no other blob wants, unless a client waits.
func TestSchedule_EndsBehindOtherBlobs(t *testing.T) {
	slow, quick := identity.NodeID{1}, identity.NodeID{2}
	at := time.Unix(1000, 0)
	for _, c := range []struct {
		name    string
		busy    bool
		readers []int
		want    bool
	}{
		{"nobody wants its room", false, nil, true},
		{"other blobs want its room", true, nil, false},
		{"they do, and a client waits", true, []int{0}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSchedule(digest.FromString("blob"), receiver{node: identity.NodeID{9}}, 1)
			s.holder(slow)
			s.holder(quick)
			if !s.fresh(quick) {
				t.Error("nothing was asked of anybody, and nothing is fresh")
			}
			if _, ok := s.next(slow, 1, at, c.readers); !ok {
				t.Fatal("nothing is asked of the first peer")
			}
			if s.fresh(quick) {
				t.Error("what is on its way is fresh")
			}
			s.wanted(quick, c.busy)
			if _, ok := s.next(quick, 1, at.Add(time.Minute), c.readers); ok != c.want {
				t.Errorf("asked again: %t", ok)
			}
		})
	}
}

func TestSchedule_Fresh(t *testing.T) {
	const n = 70 // the last word of bitmaps is not full
	s := newSchedule(digest.FromString("blob"), receiver{node: identity.NodeID{9}}, n)
	holder, other := identity.NodeID{1}, identity.NodeID{2}
	s.holder(holder)
	s.partial(other, newBitmap(n))
	if !s.fresh(holder) || s.fresh(other) || s.fresh(identity.NodeID{3}) {
		t.Error("the holder has all, the other one nothing, and nobody knows the third")
	}
	for i := range n - 1 {
		s.got(i, holder)
	}
	s.gained(other, []uint32{0, n - 1})
	if !s.fresh(holder) || !s.fresh(other) {
		t.Error("the last unit is missing")
	}
	s.refused(n-1, holder, time.Unix(1000, 0))
	if s.fresh(holder) || !s.fresh(other) {
		t.Error("another receiver was given the last unit: the holder has nothing fresh")
	}
	s.got(n-1, other)
	if s.fresh(holder) || s.fresh(other) {
		t.Error("all is here")
	}
}

// TestPipes_Wanted: who waits only to ask twice keeps nobody from doing the same.
func TestPipes_Wanted(t *testing.T) {
	node := identity.NodeID{1}
	ps := newPipes()
	waits := func() *waiter { return &waiter{wake: make(chan struct{}, 1)} }
	old, young, client := waits(), waits(), waits()
	ps.force(node, classReplication, maxPeerBytes) // no room
	ps.wanted(node, young, classReplication, false)
	if ps.reserve(node, young, classReplication, 1, 1) != 0 {
		t.Fatal("there is room")
	}
	if ps.wanted(node, old, classReplication, false) {
		t.Error("one that would ask twice wants the room")
	}
	ps.wanted(node, young, classReplication, true)
	if !ps.wanted(node, old, classReplication, false) {
		t.Error("nobody wants the room, although one could ask for more")
	}
	if ps.wanted(node, client, classClient, false) {
		t.Error("a client's flight stands back for replication")
	}
	ps.forget(node, young)
	if ps.wanted(node, old, classReplication, false) {
		t.Error("one that is gone wants the room")
	}
}

// TestFlight_PeerBusyWithOtherBlobs: a stream may be silent for as long as other
// streams of its peer are not.
func TestFlight_PeerBusyWithOtherBlobs(t *testing.T) {
	busy, other := identity.NodeID{1}, identity.NodeID{2}
	ps := &peerSessions{}
	f := &flight{
		s: &Swarm{
			cfg:      Config{Stall: time.Minute},
			sessions: &sessions{peers: map[identity.NodeID]*peerSessions{busy: ps}},
		},
		sched: newSchedule(digest.FromString("blob"), receiver{node: identity.NodeID{9}}, 1),
		lanes: map[identity.NodeID]*lane{busy: {asked: map[int]inRoom{0: {}}}, other: {}},
	}
	f.sched.holder(busy)
	f.sched.holder(other)
	giveUp := f.patience(candidate{node: busy}, nil)
	ps.heard.Store(time.Now().UnixNano())
	if giveUp() {
		t.Error("a peer is given up that sends other blobs")
	}
	ps.heard.Store(time.Now().Add(-quietFor - time.Second).UnixNano())
	if !giveUp() {
		t.Error("a peer is not given up that sends nothing at all")
	}
}
