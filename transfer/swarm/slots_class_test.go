package swarm

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/places"
	"github.com/portolan/portolan/transfer/plane"
)

// evenly is a host that lets so many streams be open to each other one; none is opened.
type evenly struct {
	Host
	each int
}

func (h evenly) StreamsEach() int { return h.each }

// However many streams there are, the batch of small blobs and all that rules can have
// keep no push and no client out; and what came first of these keeps none of the other.
func TestSessions_RulesAndTheirBatchKeepNobodyOut(t *testing.T) {
	for i, each := range []int{1, 2, 3, 4, 5, 9, 14, maxSessions, 1, 2, 3, 4, 5, 9, 14, maxSessions} {
		s := newSessions(t.Context(), evenly{each: each}, time.Minute, newPipes())
		n := nodeOf(1)
		batch := s.beside(n)
		all := 1
		var held []*slot
		slots := &batch.ps.inUse
		lent := maxLent
		if i < 8 {
			slots.lend, lent = nil, 0
		}
		for range 2 * maxSessions {
			w := slots.put(classReplication, rank{})
			if w.given() {
				all++
			}
			held = append(held, w)
		}
		if each > 1 && all < 2 {
			t.Errorf("of %d streams none is for rules", each)
		}
		for _, c := range []class{classHurried, classClient} {
			w := slots.put(c, rank{})
			if w.given() {
				all++
			} else if each >= 4 || each == 3 && c == classClient {
				t.Errorf("of %d streams none is left for class %d", each, c)
			}
			held = append(held, w)
		}
		if all > min(maxSessions, max(each, 1+batchSessions)+lent) {
			t.Errorf("%d streams of %d", all, each)
		}
		// What the batch has is not forgotten meanwhile.
		for _, w := range held {
			slots.leave(w)
		}
		s.reap(time.Now().Add(time.Hour))
		if s.peers[n] != batch.ps {
			t.Error("a holder was forgotten that a batch has a stream to")
		}
		batch.leave()
		s.reap(time.Now().Add(time.Hour))
		if len(s.peers) != 0 {
			t.Error("a holder is remembered that nobody has a stream to")
		}
	}
}

// A slot counts as what it is for at the moment: clients that left keep no other out, and one
// that comes again to what stands in line is one.
func TestSlots_WhoseClientLeft(t *testing.T) {
	s := slots{most: func() int { return maxSessions }}
	var left atomic.Bool
	was := need{at: func() (class, rank, <-chan struct{}) {
		if left.Load() {
			return classReplication, rank{}, nil
		}
		return classClient, rank{}, nil
	}}
	var held []*slot
	for range maxSessions - leastSessions[classHurried] - leastSessions[classReplication] {
		w, _ := s.stand(was)
		if !w.given() {
			t.Fatal("clients do not have all that is left to them")
		}
		held = append(held, w)
	}
	push, rule := s.put(classHurried, rank{}), s.put(classReplication, rank{})
	if !push.given() || !rule.given() {
		t.Fatal("what is kept for others is not theirs")
	}
	left.Store(true)
	if w := s.put(classReplication, rank{}); w.given() {
		t.Error("rules have what is kept for clients")
	} else {
		s.leave(w)
	}
	for i := range maxSessions - len(held) - 2 - 1 { // one is kept for pushes
		w := s.put(classClient, rank{})
		if !w.given() {
			t.Errorf("client %d waits for those that left", i)
		}
		held = append(held, w)
	}
	for _, w := range append(held, push, rule) {
		s.leave(w)
	}
	if !s.unused() {
		t.Error("used in the end")
	}
}

// Whoever stands in line for a stream is told each time that what it is for changes.
func TestFlight_ItsNeedFollowsItsPurpose(t *testing.T) {
	l := newLab(t)
	a := l.start()
	f := a.flightOf(100)
	w := Want{Digest: f.digest, Size: 100, PID: project}
	n := f.need(nodeOf(1))
	c, _, changed := n.now()
	if c != classReplication {
		t.Fatalf("class %d", c)
	}
	is := func(what string, want class) {
		t.Helper()
		select {
		case <-changed:
		default:
			t.Errorf("%s: nobody is told", what)
		}
		if c, _, changed = n.now(); c != want {
			t.Errorf("%s: class %d", what, c)
		}
	}
	for range 2 {
		a.swarm.mu.Lock()
		f.joined(w, true)
		a.swarm.mu.Unlock()
		is("a client came", classClient)
		a.swarm.leave(f, true, "")
		is("the client left", classReplication)
	}
	a.swarm.mu.Lock()
	w.Order = places.Order{Priority: 7, At: 1}
	f.joined(w, false)
	a.swarm.mu.Unlock()
	is("another rule wants it", classReplication)
	if _, r, _ := n.now(); r.Order != w.Order {
		t.Errorf("it stands at %v", r.Order)
	}
}

// A lane that stands in line for a stream keeps no room from those that have one, asks
// for nothing, and is not silent as long as its peer sends to others.
func TestLane_InLineForAStreamItHoldsNothing(t *testing.T) {
	const size = 300 << 10 // one unit
	l := newLab(t)
	a := l.start()
	f := a.flightOf(size)
	n := nodeOf(1)
	f.mu.Lock()
	f.sched.holder(n)
	f.mu.Unlock()
	la := &lane{f: f, candidate: candidate{node: n, pid: project}, asked: map[int]inRoom{}, waiter: waiter{wake: make(chan struct{}, 1)}}
	s := a.swarm.sessions
	s.mu.Lock()
	ps := s.of(n)
	s.mu.Unlock()
	var others []*slot
	for {
		w := ps.inUse.put(classReplication, rank{})
		if !w.given() {
			ps.inUse.leave(w)
			break
		}
		others = append(others, w)
	}
	// It waited for room before: its place there must not keep others back either.
	pipes := a.swarm.pipes
	pipes.mu.Lock()
	pipes.of(n).waiting[&la.waiter] = classReplication
	pipes.mu.Unlock()
	f.moved.Store(0)
	ps.heard.Store(time.Now().UnixNano())
	type turn struct {
		o      order
		ticket *ticket
		err    error
	}
	got := make(chan turn, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		o, ticket, err := la.turn(ctx)
		got <- turn{o, ticket, err}
	}()
	eventually(t, "it stands in line", func() bool {
		ps.inUse.mu.Lock()
		defer ps.inUse.mu.Unlock()
		return len(ps.inUse.line) == 1
	})
	eventually(t, "it is not silent", func() bool { return f.moved.Load() != 0 })
	pipes.mu.Lock()
	if p := pipes.of(n); p.total() != 0 || len(p.waiting) != 0 {
		t.Errorf("%d bytes are on their way to one without a stream; %d wait for room", p.total(), len(p.waiting))
	}
	pipes.mu.Unlock()
	f.mu.Lock()
	if len(la.asked) != 0 {
		t.Errorf("%d units are asked for", len(la.asked))
	}
	f.mu.Unlock()
	ps.inUse.leave(others[0])
	g := <-got
	if g.err != nil || g.ticket == nil || g.o.n != 1 {
		t.Fatalf("it has a stream: %v", g)
	}
	if p := pipes.flying(); p != size {
		t.Errorf("%d bytes are on their way", p)
	}
	g.ticket.leave()
	la.drop()
	// With a stream, and nothing to ask for, it gives the stream back.
	pipes.force(n, classReplication, maxPeerBytes)
	if o, ticket, err := la.turn(ctx); err != nil || ticket != nil {
		t.Errorf("there is no room, and it asks for %v: %v", o, err)
	}
	la.drop()
	pipes.release(n, classReplication, maxPeerBytes, true)
	for _, w := range others[1:] {
		ps.inUse.leave(w)
	}
	if !ps.inUse.unused() {
		t.Error("a stream was not given back")
	}
}

// A small blob whose order changes while it waits is asked for where it stands then.
func TestBatch_InTheOrderThatChanges(t *testing.T) {
	l := newLab(t)
	a := l.start()
	bs := a.swarm.batches
	b := &batch{s: a.swarm, node: nodeOf(1), running: true, waiter: waiter{wake: make(chan struct{}, 1)}, sent: make(chan struct{}, 1)}
	bs.m[b.node] = b
	var flights []*flight
	var parcels []*parcel
	for i := range 5 {
		w := Want{Digest: digest.FromBytes([]byte{byte(i)}), Size: 10, PID: project, Order: places.Order{At: int64(10 * (i + 1))}}
		f := newFlight(a.swarm, w)
		defer f.cancel()
		a.swarm.mu.Lock()
		f.joined(w, false)
		a.swarm.mu.Unlock()
		_, p := bs.add(f, way{node: b.node}, 10)
		flights, parcels = append(flights, f), append(parcels, p)
	}
	// The fourth is wanted by what goes first, the first one by what goes last alone.
	a.swarm.mu.Lock()
	flights[3].joined(Want{Digest: flights[3].digest, PID: project, Order: places.Order{At: 1}}, false)
	flights[0].wanted(Want{Order: places.Order{At: 60}}, 1)
	flights[0].wanted(Want{Order: places.Order{At: 10}}, -1)
	a.swarm.mu.Unlock()
	ss := &session{}
	b.ss = ss
	for i, want := range []int{3, 1, 2, 4, 0} {
		p, _ := b.take(ss)
		if p != parcels[want] {
			t.Fatalf("blob %d is not asked for at its place, %d", want, i)
		}
	}
	// A stream that breaks: they are asked for again, as they stand now.
	a.swarm.mu.Lock()
	flights[0].wanted(Want{Order: places.Order{At: 5}}, 1)
	a.swarm.mu.Unlock()
	b.requeue()
	b.ss = ss
	for i, want := range []int{3, 0, 1, 2, 4} {
		if p, _ := b.take(ss); p != parcels[want] {
			t.Fatalf("blob %d is not asked for again at its place, %d", want, i)
		}
	}
	b.requeue()
	b.queue, b.running = nil, false
}

// In a large mesh who takes from one holder has more than its part there, and who takes
// from all has his part of each: together there are no more than the host can open.
func TestSlots_AreLent(t *testing.T) {
	const part = 3
	var l lender
	a := slots{most: func() int { return part }, lend: &l}
	b := slots{most: func() int { return part }, lend: &l}
	all := func(s *slots) (held []*slot) {
		for range 2 * maxSessions {
			held = append(held, s.put(classClient, rank{}), s.put(classHurried, rank{}), s.put(classReplication, rank{}))
		}
		return held
	}
	wantUsed := func(what string, s *slots, want int) {
		t.Helper()
		if len(s.used) != want {
			t.Errorf("%s: %d streams, want %d", what, len(s.used), want)
		}
	}
	inA := all(&a)
	wantUsed("of one holder", &a, part+maxLent)
	inB := all(&b)
	wantUsed("of another one", &b, part)
	var gave int
	for _, w := range inA {
		if w.held && gave < 2 {
			gave++
			a.line = nil // nobody else takes it here
			a.leave(w)
		}
	}
	b.again()
	wantUsed("of another one, after two are given back", &b, part+2)
	// A holder that has no room for more is asked for no more than its part.
	b.refused()
	for _, w := range slices.DeleteFunc(inB, func(w *slot) bool { return !w.held }) {
		b.leave(w)
	}
	wantUsed("of one that refused", &b, part)
	// What rules have beyond their share of the part ends: nobody waits for it.
	ended, rules := 0, 0
	for w := range a.used {
		if w.class == classReplication {
			rules++
			a.carries(w, func() { ended++ })
		} else {
			a.carries(w, func() { t.Error("what is urgent ends for rules") })
		}
	}
	a.refused()
	a.refused()
	if rules < 2 || ended != rules-1 {
		t.Errorf("%d of %d streams of rules end, all but one should", ended, rules)
	}
	for _, s := range []*slots{&a, &b} {
		s.line = nil
		for w := range s.used {
			s.leave(w)
		}
	}
	if l.lent != 0 || !a.unused() || !b.unused() {
		t.Errorf("%d streams are lent in the end", l.lent)
	}
}

// fulls is a host whose other sides have no room for a stream at first.
type fulls struct {
	Host
	after int          // bytes of each that are read before
	left  atomic.Int32 // how many
	why   error        // nil: no room
}

type fullStream struct {
	plane.Stream
	left int
	why  error
}

type noRoom struct{ error }

func (noRoom) Full() bool { return true }

func (h *fulls) OpenBulk(ctx context.Context, to identity.NodeID, protocol string) (plane.Stream, error) {
	st, err := h.Host.OpenBulk(ctx, to, protocol)
	if err != nil || h.left.Add(-1) < 0 {
		return st, err
	}
	return &fullStream{st, h.after, cmp.Or(h.why, error(noRoom{errors.New("no room")}))}, nil
}

func (s *fullStream) Read(b []byte) (int, error) {
	if s.left == 0 {
		_ = s.Reset()
		return 0, s.why
	}
	n, err := s.Stream.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

// A holder that has no room for a stream, or no more, is no worse for it: it is asked
// again, for one that it surely has room for.
func TestFetch_AFullHolderIsAskedAgain(t *testing.T) {
	for _, size := range []int{100, 5*mib + 17} { // in a batch, and on its own
		for _, after := range []int{0, 50, 5 * mib / 2} {
			if after >= size {
				continue
			}
			l := newLab(t)
			a, b := l.start(), l.start()
			h := &fulls{Host: b.swarm.sessions.host, after: after}
			h.left.Store(1)
			b.swarm.sessions.host = h
			data := content(size)
			w := a.put(data)
			w.Class = catalog.Placed
			l.held(a)
			if err := b.swarm.Fetch(within(t), w); err != nil {
				t.Errorf("%d bytes, full after %d: %v", size, after, err)
				continue
			}
			b.has(data)
			b.swarm.sessions.mu.Lock()
			s := &b.swarm.sessions.of(a.id.ID).inUse
			b.swarm.sessions.mu.Unlock()
			s.mu.Lock()
			if !s.part.After(time.Now()) {
				t.Errorf("%d bytes, full after %d: it is lent more at once", size, after)
			}
			s.mu.Unlock()
		}
	}
}

// A holder that has become full has back what was lent, and all that was under way comes
// all the same.
func TestFetch_WhatWasLentIsGivenBack(t *testing.T) {
	const blobs, part = 12, 3
	l := newLab(t)
	a, b := l.start(), l.start()
	b.swarm.sessions.host = evenly{b.swarm.sessions.host, part + batchSessions}
	l.held(a)
	g := newGate(mib)
	a.bend(&faulty{read: g.read})
	done, end := b.backfill(a, blobs, places.Order{})
	defer end()
	s := b.swarm.sessions
	used := func() int {
		s.mu.Lock()
		slots := &s.of(a.id.ID).inUse
		s.mu.Unlock()
		slots.mu.Lock()
		defer slots.mu.Unlock()
		return len(slots.used)
	}
	eventually(t, "more than the part is lent", func() bool { return used() > part })
	eventually(t, "and carries something", func() bool { return b.got() > 0 })
	if !s.refused(a.id.ID, noRoom{errors.New("no room")}) || s.refused(a.id.ID, errQuiet) {
		t.Error("what is full is not known from what is not")
	}
	eventually(t, "what rules have more than their share of is given back", func() bool { return used() <= part })
	g.open(1 << 40)
	eventually(t, "all is here", func() bool { return done.Load() == blobs })
}
