package swarm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/peer"
)

// littles takes n different small blobs in and gives what to want of them.
func (n *node) littles(count int) (ws []Want, bodies [][]byte) {
	n.lab.t.Helper()
	for i := range count {
		b := content(5000 + i)
		w := n.put(b)
		w.Class = catalog.Placed
		ws, bodies = append(ws, w), append(bodies, b)
	}
	return ws, bodies
}

// fetchAll fetches them together and gives the errors.
func (n *node) fetchAll(ctx context.Context, ws []Want) error {
	errs := make([]error, len(ws))
	var wg sync.WaitGroup
	for i, w := range ws {
		wg.Go(func() { errs[i] = n.swarm.Fetch(ctx, w) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// counted counts the streams and requests of small blobs that a node serves.
func (n *node) counted() (streams, requests *atomic.Int64) {
	streams, requests = new(atomic.Int64), new(atomic.Int64)
	srv := newServer(n.config(slog.New(slog.DiscardHandler)), supply{n.swarm}, n.swarm.metrics)
	access := srv.access
	srv.access = func(ctx context.Context, from identity.NodeID, d digest.Digest, pid identity.ProjectID) bool {
		requests.Add(1)
		return access(ctx, from, d, pid)
	}
	n.host.Handle(Protocol, func(ctx context.Context, from identity.NodeID, st *peer.Stream) {
		streams.Add(1)
		srv.serve(ctx, from, st)
	})
	return streams, requests
}

func TestBatch_ManySmallBlobsComeOnOneStream(t *testing.T) {
	l := newLab(t)
	from, to := l.start(), l.start()
	l.held(from)
	ws, bodies := from.littles(300)
	streams, requests := from.counted()
	l.check(to.fetchAll(t.Context(), ws))
	for _, b := range bodies {
		to.has(b)
	}
	if streams.Load() != 1 || requests.Load() != 300 {
		t.Errorf("%d requests on %d streams, want 300 on 1", requests.Load(), streams.Load())
	}
	eventually(t, "nothing is on its way", func() bool { return to.swarm.pipes.flying() == 0 && to.swarm.active() == 0 })
	if to.got() != 300 {
		t.Errorf("%d units came", to.got())
	}
}

// With all places taken by large blobs that do not move, small ones still come.
func TestBatch_SmallBlobsTakeNoPlaceOfTheirOwn(t *testing.T) {
	l := newLab(t)
	from, to := l.start(), l.start()
	l.held(from)
	ws, bodies := from.littles(3)
	for range maxActive {
		defer to.swarm.enterTurn()()
	}
	l.check(to.fetchAll(t.Context(), ws))
	for _, b := range bodies {
		to.has(b)
	}
}

func TestBatch_WrongBytesAreBlamedAndComeFromAnother(t *testing.T) {
	l := newLab(t)
	liar, good, to := l.start(), l.start(), l.start()
	ws, bodies := liar.littles(5)
	for _, b := range bodies {
		good.put(b)
	}
	liar.bend(&faulty{read: flipAt(0)})
	l.held(liar, good)
	l.check(to.fetchAll(t.Context(), ws))
	for _, b := range bodies {
		to.has(b)
	}
	// Once in the batch, once more as any bad unit is.
	if n := to.blamed(liar); n != 2*len(ws) {
		t.Errorf("%d bad units, want %d", n, 2*len(ws))
	}
	if s := to.swarm.Suspects(); len(s) != 1 || s[0].Node != liar.id.ID {
		t.Errorf("suspects: %v", s)
	}
}

func TestBatch_WhatTheHolderLacksComesFromAnother(t *testing.T) {
	l := newLab(t)
	first, second, to := l.start(), l.start(), l.start()
	ws, bodies := first.littles(20)
	more, moreBodies := second.littles(40)
	l.held(first, second)
	l.check(to.fetchAll(t.Context(), append(ws, more[20:]...)))
	for _, b := range append(bodies, moreBodies[20:]...) {
		to.has(b)
	}
}

func TestBatch_ARefusalTellsNothingAndEndsNothing(t *testing.T) {
	l := newLab(t)
	from, to := l.start(), l.start()
	l.held(from)
	ws, bodies := from.littles(4)
	ws[1].PID = identity.NewProjectID()               // not its project
	ws[2].Digest = digest.FromString("nobody has it") // not here
	ws[2].Size = 13
	err := to.fetchAll(t.Context(), ws)
	var u *store.Unreachable
	if !errors.As(err, &u) || !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the errors are %v", err)
	}
	to.has(bodies[0])
	to.has(bodies[3])
}

// A holder whose blob has another size than the manifest says.
func TestBatch_AWrongSizeSpoilsNoOther(t *testing.T) {
	l := newLab(t)
	from, to := l.start(), l.start()
	l.held(from)
	ws, bodies := from.littles(30)
	ws[3].Size++
	err := to.fetchAll(t.Context(), ws)
	if !errors.Is(err, store.ErrNotFound) {
		t.Errorf("of a wrong size: %v", err)
	}
	for i, b := range bodies {
		if i != 3 {
			to.has(b)
		}
	}
	if n := to.blamedList(from); n != 0 {
		t.Errorf("the holder was blamed %d times", n)
	}
}

func TestBatch_ASilentHolderHoldsUpNobody(t *testing.T) {
	l := newLab(t)
	mute, good, to := l.start(), l.start(), l.start()
	ws, bodies := mute.littles(10)
	for _, b := range bodies {
		good.put(b)
	}
	g := newGate(0)
	mute.bend(&faulty{read: g.read})
	l.held(mute, good)
	l.check(to.fetchAll(t.Context(), ws))
	for _, b := range bodies {
		to.has(b)
	}
	if n := to.blamed(mute); n != 0 {
		t.Errorf("silence was blamed %d times: invariant T10", n)
	}
	g.open(1 << 30)
}

// A client that comes does not wait for what a batch waits for.
func TestBatch_AClientGoesItsOwnWay(t *testing.T) {
	l := newLab(t)
	mute, good, to := l.start(), l.start(), l.start()
	ws, bodies := mute.littles(1)
	good.put(bodies[0])
	g := newGate(0)
	mute.bend(&faulty{read: g.read})
	l.held(mute, good)
	done := make(chan error, 1)
	go func() { done <- to.swarm.Fetch(t.Context(), ws[0]) }()
	<-g.reached
	r, err := to.swarm.OpenBlob(t.Context(), ws[0])
	l.check(err)
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, bodies[0]) {
		t.Errorf("a client read %d bytes, %v", len(got), err)
	}
	l.check(<-done)
	g.open(1 << 30)
}

func TestBatch_APeerThatIsRemovedGetsAndGivesNothingMore(t *testing.T) {
	l := newLab(t)
	from, to := l.start(), l.start()
	l.held(from)
	ws, _ := from.littles(50)
	g := newGate(0)
	from.bend(&faulty{read: g.read})
	done := make(chan error, 1)
	go func() { done <- to.fetchAll(t.Context(), ws) }()
	<-g.reached
	l.remove(from)
	to.host.CutOff(from.id.ID)
	from.host.CutOff(to.id.ID)
	g.open(1 << 30)
	var u *store.Unreachable
	if err := <-done; !errors.As(err, &u) {
		t.Errorf("from a removed node: %v", err)
	}
	eventually(t, "nothing is on its way", func() bool { return to.swarm.pipes.flying() == 0 && to.swarm.active() == 0 })
}

func TestBatch_ARestartedHolderIsAskedOnAFreshStream(t *testing.T) {
	l := newLab(t)
	from, to := l.start(), l.start()
	l.held(from)
	ws, bodies := from.littles(20)
	l.check(to.fetchAll(t.Context(), ws[:10]))
	eventually(t, "the stream is kept", func() bool {
		to.swarm.sessions.mu.Lock()
		defer to.swarm.sessions.mu.Unlock()
		return to.swarm.sessions.idle > 0
	})
	from.stop()
	from = l.startIn(from.dir)
	l.held(from)
	l.check(to.fetchAll(t.Context(), ws[10:]))
	for _, b := range bodies {
		to.has(b)
	}
}

// A stream that a batch has left takes nothing of the next one's blobs: their
// answers would be another's.
func TestBatch_ALeftStreamAsksForNothing(t *testing.T) {
	s := &Swarm{pipes: newPipes()}
	s.metrics = newMetrics(s)
	old, next := &session{}, &session{}
	b := &batch{s: s, ss: old, running: true, waiter: waiter{wake: make(chan struct{}, 1)}, sent: make(chan struct{}, 1)}
	if _, over := b.open(); !over {
		t.Fatal("an empty batch goes on")
	}
	b.queue = append(b.queue, &parcel{f: &flight{digest: digest.FromString("x")}, size: 10})
	b.running, b.ss = true, next
	if p, ended := b.take(old); p != nil || !ended {
		t.Fatalf("the left stream takes %v; ended: %v", p, ended)
	}
	if p, ended := b.take(next); p == nil || ended || next.lastID != 1 || old.lastID != 0 {
		t.Fatalf("the next stream takes %v; ended: %v; ids %d, %d", p, ended, next.lastID, old.lastID)
	}
}

// FuzzBatch gives arbitrary answers to honest requests for small blobs: never a
// panic, a blob of another size, or room that is not given back.
func FuzzBatch(f *testing.F) {
	answer := func(id uint64, body []byte) []byte {
		a := &Answer{Id: id, Size: int64(len(body)), HasUnit: true, UnitBytes: uint32(len(body)), Last: true}
		return append(frame(f, a), body...)
	}
	f.Add(append(append(answer(1, content(10)), answer(2, content(4000))...), answer(3, nil)...))
	f.Add(frame(f, &Answer{Id: 1, Status: Status_STATUS_DENIED, Last: true}))
	f.Add(frame(f, &Answer{Id: 1, Size: 1 << 40, HasUnit: true, UnitBytes: 1 << 30, Last: true}))
	f.Add(frame(f, &Answer{Id: 1, Size: 10, HasUnit: true, UnitBytes: 10}))
	f.Add([]byte{255, 255, 255, 255})
	f.Add(slices.Concat(answer(3, content(700)), answer(1, content(10)), frame(f, &Answer{Id: 4, Status: Status_STATUS_NOT_YET, Last: true, Coming: true}), answer(2, content(4000))))
	f.Add(slices.Concat(answer(3, content(700)), answer(3, content(700))))
	f.Add(answer(2, content(4000)))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &Swarm{pipes: newPipes(), buffers: newBuffers()}
		s.metrics = newMetrics(s)
		ss := &session{}
		b := &batch{s: s, ss: ss, waiter: waiter{wake: make(chan struct{}, 1)}, sent: make(chan struct{}, 1)}
		var all []*parcel
		for i, size := range []int64{10, 4000, 700, 0} {
			p := &parcel{f: &flight{digest: digest.FromString("x")}, size: size, done: make(chan delivery, 1)}
			if i >= 2 {
				p.way.wait = time.Second // answered in any order
			}
			all = append(all, p)
			b.queue = append(b.queue, p)
		}
		for p, _ := b.take(ss); p != nil; p, _ = b.take(ss) {
		}
		all[1].gone = true // its client came while it was on its way
		r := bufio.NewReader(bytes.NewReader(in))
		for range all {
			if err := b.receive(t.Context(), &batchReader{ss: &session{}}, r); err != nil {
				break
			}
		}
		b.requeue()
		for _, p := range all {
			select {
			case got := <-p.done:
				if got.err == nil {
					if int64(len(got.data)) != p.size {
						t.Fatalf("%d bytes of a blob of %d", len(got.data), p.size)
					}
					got.free()
				}
			default:
			}
		}
		if s.pipes.flying() != 0 || !s.buffers.unused() {
			t.Fatal("room was not given back")
		}
	})
}

// What answers together is written together, in order, and nothing waits for
// requests that do not come.
func TestGatherer_WritesFewAndInOrder(t *testing.T) {
	o, _ := newOneBlob(t, 1000)
	var in []byte
	const n = 50
	for i := range uint64(n) {
		in = append(in, frame(t, &Request{Id: i + 1, Digest: o.rec.Digest.String(), Project: project[:], Units: 1})...)
	}
	st := &counting{script: script{in: bytes.NewReader(in)}}
	o.server().handle(t.Context(), identity.NodeID{}, st)
	for i := range uint64(n) {
		var a Answer
		if err := peer.ReadMsg(&st.out, &a, maxMessage); err != nil || a.Id != i+1 || a.UnitBytes != 1000 {
			t.Fatalf("answer %d: %v, %v", i+1, &a, err)
		}
		if body := st.out.Next(1000); !bytes.Equal(body, o.data) {
			t.Fatalf("answer %d has other bytes", i+1)
		}
	}
	if st.writes > n/3 {
		t.Errorf("%d writes for %d answers", st.writes, n)
	}
}

type counting struct {
	script
	writes int
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes++
	return c.script.Write(p)
}
