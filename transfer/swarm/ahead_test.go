package swarm

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// busy is a mesh in which a client at b reads a blob of which a sends two units, and
// then the rest when the gate opens; and two others that nobody asked for yet, one of
// a unit. They are asked for, and stand aside.
type busy struct {
	a, b         *node
	g            *gate
	read         *reader
	data         [3][]byte
	want         [3]Want // what the client reads, and the two others
	large, small <-chan error
}

func newBusy(t *testing.T) *busy {
	t.Helper()
	l := newLab(t)
	s := &busy{a: l.start(), b: l.start(), g: newGate(2 * mib)}
	l.held(s.a)
	for i, size := range []int{odd, 3*mib + 7, 200 << 10} {
		s.data[i] = content(size)
		s.want[i] = s.a.put(s.data[i])
		s.want[i].Ahead = i > 0
	}
	s.a.bend(&faulty{read: s.g.read})
	r, err := s.b.swarm.OpenBlob(t.Context(), s.want[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	s.read = r.(*reader)
	eventually(t, "the client's blob is under way", func() bool { return s.b.got() == 2 })
	s.large, s.small = s.b.fetching(s.want[1]), s.b.fetching(s.want[2])
	eventually(t, "the others stand aside", func() bool {
		ps := s.b.swarm.pipes
		ps.mu.Lock()
		defer ps.mu.Unlock()
		return len(ps.asides) == 2
	})
	return s
}

func (s *busy) units(t *testing.T, i int) int {
	t.Helper()
	f := s.b.swarm.flight(s.want[i])
	if f == nil {
		t.Fatal("it is not on its way")
	}
	return f.units()
}

// What nobody asked for comes, and a client notices nothing of it: of the units that a
// would have sent at once none is asked for before all of the client's are on the link.
func TestAhead_StandsAsideForAClient(t *testing.T) {
	s := newBusy(t)
	if n := s.b.got(); n != 2 || s.units(t, 1) != 0 || s.units(t, 2) != 0 {
		t.Fatalf("%d units came while a client waited", n-2)
	}
	s.g.open(odd)
	if got, err := io.ReadAll(s.read); err != nil || !bytes.Equal(got, s.data[0]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	for _, done := range []<-chan error{s.large, s.small} {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for i, w := range s.want {
		s.b.has(s.data[i])
		if row, err := s.b.store.Catalog().Blob(w.Digest); err != nil || row.Class != catalog.Cached {
			t.Errorf("blob %d: %+v, %v", i, row, err)
		}
	}
	if got := s.b.got(); got != unitsOf(odd)+4+1 {
		t.Errorf("%d units came", got)
	}
}

// A client that asks for one takes its flight over, and has it although the link is
// still another client's; so it does the second time, after one that left at once.
func TestAhead_AClientTakesItOver(t *testing.T) {
	s := newBusy(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := s.b.swarm.OpenBlob(ctx, s.want[2]); err == nil { // it may have been quick
		_ = r.Close()
	}
	reads := func(i int) {
		t.Helper()
		r, err := s.b.swarm.OpenBlob(within(t), s.want[i])
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, s.data[i]) {
			t.Fatalf("blob %d: %d bytes, %v", i, len(got), err)
		}
	}
	reads(2)
	if err := <-s.small; err != nil {
		t.Fatal(err)
	}
	f := s.b.swarm.flight(s.want[1])
	if !f.yields() {
		t.Fatal("nobody asked for it")
	}
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		eventually(t, "it is the client's", func() bool { return f.purpose() == classClient })
		s.g.open(odd)
	}()
	reads(1)
	<-opened
	if err := <-s.large; err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s.read); err != nil || !bytes.Equal(got, s.data[0]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if n := s.b.got(); n != unitsOf(odd)+4+1 {
		t.Errorf("%d units came", n)
	}
}

// What a rule wants as well is the rule's: it has its share of the link.
func TestAhead_ARuleTakesItOver(t *testing.T) {
	s := newBusy(t)
	f := s.b.swarm.flight(s.want[1])
	placed := s.want[1]
	placed.Class, placed.Ahead = catalog.Placed, false
	done := s.b.fetching(placed)
	eventually(t, "it stands aside no more", func() bool { return !f.yields() })
	s.g.open(odd)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if row, err := s.b.store.Catalog().Blob(placed.Digest); err != nil || row.Class != catalog.Placed {
		t.Errorf("%+v, %v", row, err)
	}
}

// One that is given up leaves nothing behind, and stands in nobody's way.
func TestAhead_GivenUp(t *testing.T) {
	s := newBusy(t)
	ctx, cancel := context.WithCancel(t.Context())
	w := s.a.put(content(mib / 2))
	w.Ahead = true
	gone := make(chan error, 1)
	go func() { gone <- s.b.swarm.Fetch(ctx, w) }()
	ps := s.b.swarm.pipes
	asides := func() int { ps.mu.Lock(); defer ps.mu.Unlock(); return len(ps.asides) }
	eventually(t, "it stands aside", func() bool { return asides() == 3 })
	cancel()
	if err := <-gone; err == nil {
		t.Fatal("it came")
	}
	eventually(t, "it is gone", func() bool { return asides() == 2 && s.b.swarm.flight(w) == nil })
}

func TestPipes_CalmWhenNothingIsTakenFromAClient(t *testing.T) {
	const unit = mib
	near, far := identity.NodeID{1}, identity.NodeID{2}
	ps := newPipes()
	client, ahead := &waiter{wake: make(chan struct{}, 1)}, &waiter{wake: make(chan struct{}, 1)}
	woken := func() bool {
		select {
		case <-ahead.wake:
			return true
		default:
			return false
		}
	}
	if ps.aside(ahead, true) {
		t.Fatal("it stands aside for nobody")
	}
	if n := ps.reserve(near, ahead, classReplication, unit, 8); n != 2 {
		t.Fatalf("room for %d units, of a link of which nothing is known", n)
	}
	ps.release(near, classReplication, 2*unit, true)

	// A client has something on its way from another site, and 10 MB/s at 200 ms.
	ps.of(far).rate, ps.of(far).delay = 10*mib, 200*time.Millisecond
	if n := ps.reserve(far, client, classClient, unit, 4); n != 4 {
		t.Fatalf("a client has room for %d units", n)
	}
	if !ps.aside(ahead, true) {
		t.Fatal("4 MB are on their way, and the link holds 2")
	}
	ps.release(far, classClient, unit, true)
	if woken() {
		t.Fatal("3 MB are on their way, and the link holds 2")
	}
	ps.release(far, classClient, unit, true)
	if !woken() || ps.aside(ahead, true) {
		t.Fatal("all that a client wants is on the link")
	}
	if n := ps.reserve(far, ahead, classReplication, unit, 8); n != 2 {
		t.Errorf("beside 2 MB on a link that holds 2 there is room for %d units", n)
	}
	// The client wants more than it has room for.
	for ps.reserve(far, client, classClient, unit, 8) > 0 {
	}
	if !ps.aside(ahead, true) {
		t.Error("a client waits for room")
	}
	if ps.aside(ahead, false) {
		t.Error("who was asked for stands aside")
	}

	ps = newPipes()
	for _, answered := range []bool{true, false} {
		opened := ps.opens(classClient)
		if !ps.aside(ahead, true) {
			t.Error("a client waits for a first answer")
		}
		if opened(answered); woken() == answered {
			t.Errorf("answered: %v; what was asked for has no room before its answer is here", answered)
		}
	}
	ps.opens(classReplication)
	if ps.aside(ahead, true) {
		t.Error("a rule's first answer is waited for")
	}
}
