package consensus

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portolan/portolan/node/identity"
)

func TestTrips(t *testing.T) {
	var tr trips
	near, far, new := identity.NodeID{1}, identity.NodeID{2}, identity.NodeID{3}
	for i := range 2 * tripsKept {
		tr.add(near, 10*time.Millisecond)
		d := 80 * time.Millisecond
		if i%20 == 0 {
			d = time.Second // a busy processor now and then
		}
		tr.add(far, d)
	}
	tr.add(new, time.Hour)
	for _, c := range []struct {
		of   []identity.NodeID
		want time.Duration
	}{{[]identity.NodeID{near}, 10 * time.Millisecond}, {[]identity.NodeID{near, far, new}, 80 * time.Millisecond}, {[]identity.NodeID{new}, 0}, {nil, 0}} {
		if got := tr.slowest(c.of); got != c.want {
			t.Errorf("%v: %s, want %s", c.of, got, c.want)
		}
	}
	if n := len(tr.of[near].took); n != tripsKept {
		t.Errorf("%d trips are kept", n)
	}
}

// TestTrips_Fresh: figures need some measurements, and are forgotten when no more
// come.
func TestTrips_Fresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tr trips
		self, near, far := identity.NodeID{9}, identity.NodeID{1}, identity.NodeID{2}
		said := func() []*Trip {
			return []*Trip{{NodeId: near[:], Microseconds: 70_000}, {NodeId: self[:], Microseconds: 80_000}}
		}
		tr.hear(far, said())
		tr.add(near, time.Second) // with a handshake
		tr.add(near, 10*time.Millisecond)
		if got := tr.links(self); len(got) != 2 || got[0] != (Link{far, near, 70 * time.Millisecond}) {
			t.Fatalf("%v", got)
		}
		tr.add(near, 12*time.Millisecond)
		if got := tr.usual(); len(got) != 1 || got[near] != 12*time.Millisecond {
			t.Fatalf("%v", got)
		}
		if got := tr.tell(); len(got) != 1 || got[0].GetMicroseconds() != 12_000 || !slices.Equal(got[0].GetNodeId(), near[:]) {
			t.Fatalf("%v", got)
		}
		if got := tr.links(self); len(got) != 3 {
			t.Fatalf("%v", got)
		}
		<-time.After(tripsFresh)
		tr.add(near, 12*time.Millisecond)
		<-time.After(time.Millisecond)
		if got := tr.links(self); len(got) != 1 || got[0].From != self {
			t.Fatalf("after a minute: %v", got)
		}
		<-time.After(tripsFresh)
		if got := tr.links(self); len(got) != 0 {
			t.Fatalf("after two minutes: %v", got)
		}
		tr.keep(func(id identity.NodeID) bool { return id == far })
		if len(tr.of) != 0 || len(tr.tables) != 1 {
			t.Fatalf("%v, %v", tr.of, tr.tables)
		}
	})
}

// TestTrips_Bounded: what another node says is believed within bounds.
func TestTrips_Bounded(t *testing.T) {
	var tr trips
	from, other := identity.NodeID{1}, identity.NodeID{2}
	tr.hear(from, []*Trip{{NodeId: other[:], Microseconds: 0}, {NodeId: []byte("short"), Microseconds: 5}, {NodeId: from[:], Microseconds: 5},
		{NodeId: other[:], Microseconds: uint32((2 * time.Minute).Microseconds())}})
	if got := tr.links(identity.NodeID{}); len(got) != 0 {
		t.Fatalf("%v", got)
	}
	many := make([]*Trip, maxTrips+1)
	for i := range many {
		id := identity.NodeID{3, byte(i)}
		many[i] = &Trip{NodeId: slices.Clone(id[:]), Microseconds: 5}
	}
	tr.hear(from, many)
	if got := tr.links(identity.NodeID{}); len(got) != 0 {
		t.Fatalf("more than there may be: %d", len(got))
	}
	for i := range 2 * maxTrips {
		tr.hear(identity.NodeID{4, byte(i)}, many[:1])
		tr.add(identity.NodeID{5, byte(i)}, time.Millisecond)
		tr.add(identity.NodeID{5, byte(i)}, time.Millisecond)
		tr.add(identity.NodeID{5, byte(i)}, time.Millisecond)
	}
	if len(tr.tables) != maxTrips || len(tr.tell()) != maxTrips {
		t.Fatalf("%d tables are kept, %d measurements told", len(tr.tables), len(tr.tell()))
	}
}
