package swarm

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/transfer/peer"
)

// hung is a member that says that it has all of a blob, takes requests, and
// never answers them. It receives the blob, as the node that it watches is told.
func (l *lab) hung(w Want, watches *node) identity.NodeID {
	l.t.Helper()
	h := l.bare()
	h.Handle(Protocol, func(_ context.Context, _ identity.NodeID, st *peer.Stream) {
		st.SetIdle(0)
		_, _ = io.Copy(io.Discard, st)
	})
	h.Handle(HaveProtocol, func(_ context.Context, _ identity.NodeID, st *peer.Stream) {
		st.SetIdle(0)
		n := unitsOf(int(w.Size))
		all := newBitmap(n)
		for i := range n {
			all.set(i)
		}
		for {
			var m Watch
			if peer.ReadMsg(st, &m, maxMessage) != nil {
				return
			}
			if !m.Stop && peer.WriteMsg(st, &Haves{Haves: []*Have{{Id: m.Id, Size: w.Size, Bitmap: all.marshal(n)}}}, maxHaves) != nil {
				return
			}
		}
	})
	st, err := h.Open(l.t.Context(), watches.id.ID, HaveProtocol)
	l.check(err)
	st.SetIdle(0)
	l.check(peer.WriteMsg(st, &Watch{Id: 1, Digest: w.Digest.String(), Project: project[:]}, maxMessage))
	eventually(l.t, "it is in the crowd", func() bool { return len(watches.swarm.crowds.receivers(w.Digest, project)) == 1 })
	return h.ID()
}

func (n *node) flight(d digest.Digest) *flight {
	n.swarm.mu.Lock()
	defer n.swarm.mu.Unlock()
	return n.swarm.flights[d]
}

// A holder blips, and a receiver promises everything and sends nothing: the
// holder is asked again. Invariant T6.
func TestFetch_AHungReceiverHidesNoHolder(t *testing.T) {
	l := newLab(t)
	l.stall = 5 * time.Second
	a, b := l.start(), l.start()
	data := content(odd)
	w := a.put(data)
	l.held(a)
	g := newGate(4 * mib)
	a.bend(&faulty{read: g.read})
	hung := l.hung(w, a)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- b.swarm.Fetch(ctx, w) }()
	<-g.reached
	eventually(t, "what it promises is heard", func() bool {
		f := b.flight(w.Digest)
		if f == nil {
			return false
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.sched != nil && f.sched.peers[hung] != nil
	})
	a.host.CutOff(b.id.ID)
	g.open(odd)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.has(data)
}

// A hint names a node that receives the blob itself, and gets nothing more: who
// follows it is told so. Invariant T6.
func TestFetch_AStaleHintIsNotWaitedForEndlessly(t *testing.T) {
	l := newLab(t)
	source, stale := l.start(), l.start()
	data := content(odd)
	w := source.put(data)
	l.held(source)
	g := newGate(4 * mib)
	source.bend(&faulty{read: g.read})
	first := make(chan error, 1)
	go func() { first <- stale.swarm.Fetch(t.Context(), w) }()
	<-g.reached
	eventually(t, "four units are here", func() bool { return stale.got() == 4 })
	l.held(stale)
	l.stall = 500 * time.Millisecond // of those that start from now on
	c := l.start()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := c.swarm.Fetch(ctx, w)
	var u *store.Unreachable
	if !errors.As(err, &u) || len(u.Sites) != 1 || u.Sites[0] != "site-"+stale.id.ID.Short() {
		t.Errorf("got %v", err)
	}
	if c.got() != 4 {
		t.Errorf("%d units came", c.got())
	}
	g.open(odd)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	// Now the hint is right, and what came before is kept.
	if err := c.swarm.Fetch(ctx, w); err != nil || c.got() != unitsOf(odd) {
		t.Errorf("%d units, %v", c.got(), err)
	}
}

// A node is asked on one lane at a time, whatever hints say of it meanwhile.
func TestFlight_OneLaneToANode(t *testing.T) {
	l := newLab(t)
	f := l.start().flightOf(3 * mib)
	n := nodeOf(1)
	q := &field{seen: map[candidate]bool{}, out: map[identity.NodeID]bool{}, busy: map[identity.NodeID]bool{}}
	q.left = []candidate{{node: n, pid: project}}
	f.lanes[n] = &lane{f: f, candidate: candidate{node: n}}
	if c, ok := f.pop(q); ok || f.anyLeft(q, false) || len(q.busy) > 0 {
		t.Errorf("asked while it sends: %v", c)
	}
	delete(f.lanes, n)
	if !f.anyLeft(q, true) {
		t.Error("it can't be asked any more")
	}
	if _, ok := f.pop(q); !ok || f.anyLeft(q, false) {
		t.Error("asked twice at a time")
	}
}

// Only those that have all of a blob count as its holders.
func TestLane_AReceiverIsNoHolder(t *testing.T) {
	l := newLab(t)
	f := l.start().flightOf(3 * mib)
	n := nodeOf(1)
	la := &lane{f: f, holder: true, candidate: candidate{node: n}}
	if !la.whole() {
		t.Error("nothing is known of it yet")
	}
	f.sched.holder(n)
	if !la.whole() {
		t.Error("it has all of it")
	}
	f.sched.lacks(n, 0, 1)
	if la.whole() {
		t.Error("it has said that it has not all of it")
	}
}

// What is asked for before there is a lane takes the room that it needs.
func TestLane_OpeningUnitsTakeTheirRoom(t *testing.T) {
	const size = 10 << 10
	l := newLab(t)
	a := l.start()
	f := a.flightOf(size)
	n := nodeOf(1)
	la := &lane{f: f, candidate: candidate{node: n}, asked: map[int]inRoom{}, waiter: waiter{wake: make(chan struct{}, 1)}}
	la.note(order{n: firstRun})
	p := a.swarm.pipes.of(n)
	if p.flying[classReplication] != size || p.total() != size {
		t.Errorf("on its way: %v", p.flying)
	}
	la.landed(0, false)
	if p.total() != 0 || p.came != size || a.swarm.pipes.flying() != 0 {
		t.Errorf("%d bytes came, %d are on their way", p.came, p.total())
	}
	f.reading.Add(1)
	la.note(order{n: 1})
	if p.flying[classClient] != size {
		t.Errorf("for a client: %v", p.flying)
	}
	la.drop()
	if p.total() != 0 {
		t.Errorf("%d bytes are on their way", p.total())
	}
}

// Whom a client waits for comes first, whoever is asked.
func TestSchedule_ReadersFirstFromReceivers(t *testing.T) {
	const n = 600
	s := newSchedule(digest.FromString("x"), receiver{node: nodeOf(0)}, n)
	all := newBitmap(n)
	for i := range n {
		all.set(i)
	}
	s.partial(nodeOf(1), all)
	for want := 7; want < 7+readAhead; want++ {
		o, ok := s.next(nodeOf(1), 1, time.Unix(1000, 0), []int{7})
		if !ok || o.first != want || o.n != 1 {
			t.Fatalf("asked for %v, want unit %d", o, want)
		}
	}
}
