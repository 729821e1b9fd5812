package swarm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/peer"
)

// asker asks a node for small blobs on a stream, as another one.
type asker struct {
	l  *lab
	st *peer.Stream
	id uint64
}

func (l *lab) asks(by, of *node) *asker {
	l.t.Helper()
	st, err := by.host.Open(l.t.Context(), of.id.ID, Protocol)
	l.check(err)
	l.t.Cleanup(func() { _ = st.Reset() })
	return &asker{l: l, st: st}
}

// send asks for the whole of a blob.
func (a *asker) send(r *Request) {
	a.l.t.Helper()
	a.id++
	r.Id, r.Project, r.Units = a.id, project[:], 1
	a.l.check(peer.WriteMsg(a.st, r, maxMessage))
}

func (a *asker) next() (*Answer, []byte) {
	a.l.t.Helper()
	var got Answer
	a.l.check(peer.ReadMsg(a.st, &got, maxMessage))
	body := make([]byte, got.UnitBytes)
	_, err := io.ReadFull(a.st, body)
	a.l.check(err)
	return &got, body
}

// What is here does not wait for what is asked before it and is not here; and that is
// answered when it lands.
func TestParked_AnswersAsTheyLand(t *testing.T) {
	l, _, to, ws, bodies := swapLab(t, 2, 3)
	a := to[0]
	l.check(a.swarm.Fetch(t.Context(), ws[2]))
	ask := l.asks(to[1], a)
	asked := map[uint64]int{}
	waits := func(i int) {
		ask.send(&Request{Digest: ws[i].Digest.String(), WaitMs: 60_000, AnyOrder: true})
		asked[ask.id] = i
	}
	waits(0)
	waits(1)
	waits(2)
	if got, body := ask.next(); got.Id != 3 || !bytes.Equal(body, bodies[2]) {
		t.Errorf("what is here comes not first: %v", got)
	}
	for i := range 2 {
		l.check(a.swarm.Fetch(t.Context(), ws[1-i]))
		got, body := ask.next()
		for got.Status == Status_STATUS_NOT_YET { // its patience was over: a slow machine
			waits(asked[got.Id])
			got, body = ask.next()
		}
		if !got.HasUnit || !bytes.Equal(body, bodies[1-i]) {
			t.Errorf("what landed: %v", got)
		}
	}
	// Who does not know of any order has its answers in order, so nothing waits for it.
	missing := digest.FromString("missing")
	ask.send(&Request{Digest: missing.String(), WaitMs: 60_000})
	if got, _ := ask.next(); got.Status != Status_STATUS_NOT_FOUND {
		t.Errorf("in order, what is not here: %v", got)
	}
	// It asks for nothing more, and has an answer to what it asked for all the same.
	ask.send(&Request{Digest: missing.String(), WaitMs: 1, AnyOrder: true})
	l.check(ask.st.CloseWrite())
	if got, _ := ask.next(); got.Status != Status_STATUS_NOT_YET {
		t.Errorf("what is not here: %v", got)
	}
	if n, err := ask.st.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		t.Errorf("then %v", err)
	}
	eventually(t, "nothing is waited for", func() bool {
		at := &a.swarm.landings
		at.mu.Lock()
		defer at.mu.Unlock()
		return at.places.Load() == 0 && len(at.m) == 0
	})
}

// slowStream is a stream whose other end a test holds: it reads what is told, and
// writes to whoever takes.
type slowStream struct {
	script
	in   chan []byte
	rest []byte
	out  chan []byte
	late chan struct{}
	once sync.Once
	over chan struct{}
}

func newSlowStream() *slowStream {
	return &slowStream{in: make(chan []byte, 1), out: make(chan []byte), late: make(chan struct{}), over: make(chan struct{})}
}

func (s *slowStream) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		select {
		case b, ok := <-s.in:
			if !ok {
				return 0, io.EOF
			}
			s.rest = b
		case <-s.over:
			return 0, io.ErrClosedPipe
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func (s *slowStream) Write(p []byte) (int, error) {
	select {
	case s.out <- bytes.Clone(p):
		return len(p), nil
	case <-s.late:
		return 0, os.ErrDeadlineExceeded
	case <-s.over:
		return 0, io.ErrClosedPipe
	}
}

func (s *slowStream) Reset() error { s.once.Do(func() { close(s.over) }); return nil }

// parkBench serves a slow stream; landed says which blobs are here.
type parkBench struct {
	srv   *server
	st    *slowStream
	ended chan struct{}

	mu     sync.Mutex
	here   map[digest.Digest][]byte
	denied bool
	looks  int
}

func startPark(t *testing.T) *parkBench {
	o, _ := newOneBlob(t, 10)
	b := &parkBench{srv: o.server(), st: newSlowStream(), ended: make(chan struct{}), here: map[digest.Digest][]byte{}}
	b.srv.landings = &landings{}
	b.srv.soon = func(digest.Digest, identity.ProjectID) ([]byte, bringing) { return nil, toNobody }
	b.srv.small = func(_ identity.NodeID, d digest.Digest, _ identity.ProjectID) ([]byte, bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.looks++
		return b.here[d], b.here[d] != nil && !b.denied
	}
	b.srv.access = func(context.Context, identity.NodeID, digest.Digest, identity.ProjectID) bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return !b.denied
	}
	go func() {
		defer close(b.ended)
		b.srv.handle(context.Background(), identity.NodeID{}, b.st)
	}()
	t.Cleanup(func() { _ = b.st.Reset(); <-b.ended })
	return b
}

func (b *parkBench) lands(body []byte) {
	d := digest.FromBytes(body)
	b.mu.Lock()
	b.here[d] = body
	b.mu.Unlock()
	b.srv.landings.news(d)
}

func (b *parkBench) waiting() int { return int(b.srv.landings.places.Load()) }

// all is given back once the stream is over.
func (b *parkBench) idle(t *testing.T) {
	t.Helper()
	<-b.ended
	if b.waiting() != 0 || len(b.srv.landings.m) != 0 {
		t.Errorf("%d places are taken, %d blobs are watched", b.waiting(), len(b.srv.landings.m))
	}
}

func requestsFor(t *testing.T, first, n int, waitMs uint32, of func(i int) digest.Digest) (out []byte) {
	for i := range n {
		out = append(out, frame(t, &Request{Id: uint64(first + i), Digest: of(first + i).String(), Project: project[:], Units: 1, WaitMs: waitMs, AnyOrder: true})...)
	}
	return out
}

// What waits is bounded, on a stream and over all; what finds no place is answered
// at once.
func TestParked_IsBounded(t *testing.T) {
	b := startPark(t)
	of := func(i int) digest.Digest { return digest.FromString(itoa(i)) }
	b.st.in <- requestsFor(t, 0, maxParked+1, 1<<31, of)
	var a Answer
	if err := peer.ReadMsg(bytes.NewReader(<-b.st.out), &a, maxMessage); err != nil || a.Id != maxParked || a.Status != Status_STATUS_NOT_YET || a.Coming {
		t.Errorf("one too many: %v, %v", &a, err)
	}
	if n := b.waiting(); n != maxParked {
		t.Errorf("%d wait, want %d", n, maxParked)
	}
	other := startPark(t)
	other.srv.landings.places.Store(maxParkedAll)
	other.st.in <- requestsFor(t, 7, 1, 1<<31, of)
	if err := peer.ReadMsg(bytes.NewReader(<-other.st.out), &a, maxMessage); err != nil || a.Id != 7 || a.Status != Status_STATUS_NOT_YET {
		t.Errorf("with no place at the node: %v, %v", &a, err)
	}
	other.srv.landings.places.Add(-maxParkedAll)
	// A stream that breaks takes all with it.
	_ = b.st.Reset()
	_ = other.st.Reset()
	b.idle(t)
	other.idle(t)
}

// A peer that parks and never reads: what it is sent is held back, it can park no more
// than others, and when it took nothing for as long as a write may take its stream ends.
func TestParked_APeerThatNeverReads(t *testing.T) {
	for name, end := range map[string]func(*slowStream){
		"it is too slow": func(st *slowStream) { close(st.late) },
		"it is gone":     func(st *slowStream) { _ = st.Reset() },
		"it closed its side, and reads nothing": func(st *slowStream) {
			close(st.in)
			close(st.late)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := startPark(t)
			const n = 40
			body := func(i int) []byte { return content(10_000 + i) }
			b.st.in <- requestsFor(t, 0, n, 1<<31, func(i int) digest.Digest { return digest.FromBytes(body(i)) })
			eventually(t, "all wait", func() bool { return b.waiting() == n })
			for i := range n {
				b.lands(body(i))
			}
			// Some fill what is gathered; then the write of it stands.
			eventually(t, "some are on their way", func() bool { return b.waiting() < n })
			end(b.st)
			b.idle(t)
			if b.waiting() != 0 {
				t.Error("some still wait")
			}
		})
	}
}

// Whoever asked may have the blob no longer, or another one asks for it as well, or it
// came between the look and the watch: each request has one answer.
func TestParked_OneAnswerEach(t *testing.T) {
	b := startPark(t)
	const n, same = 200, 3
	body := func(i int) []byte { return content(2000 + i/same) }
	of := func(i int) digest.Digest { return digest.FromBytes(body(i)) }
	var wg sync.WaitGroup
	wg.Go(func() { // while they are asked for
		for i := range n {
			b.lands(body(i))
		}
	})
	wg.Go(func() { b.st.in <- requestsFor(t, 0, n, 1<<31, of) })
	r := bufio.NewReader(&taken{st: b.st})
	seen := map[uint64]bool{}
	for range n {
		var a Answer
		if err := peer.ReadMsg(r, &a, maxMessage); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, a.UnitBytes)
		if _, err := io.ReadFull(r, got); err != nil {
			t.Fatal(err)
		}
		if seen[a.Id] || !bytes.Equal(got, body(int(a.Id))) {
			t.Fatalf("%v; twice: %v", &a, seen[a.Id])
		}
		seen[a.Id] = true
	}
	wg.Wait()
	b.mu.Lock()
	b.denied = true
	b.mu.Unlock()
	b.st.in <- requestsFor(t, n, 1, 1<<31, func(int) digest.Digest { return digest.FromString("x") })
	var a Answer
	if err := peer.ReadMsg(r, &a, maxMessage); err != nil || a.Status != Status_STATUS_DENIED {
		t.Errorf("who may not have it: %v, %v", &a, err)
	}
	close(b.st.in)
	b.idle(t)
}

// taken reads what a slow stream writes.
type taken struct {
	st   *slowStream
	rest []byte
}

func (r *taken) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		select {
		case r.rest = <-r.st.out:
		case <-r.st.over:
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Of what a batch asks for, what another receiver waits for is answered in any order,
// and not left out for ever; all else in order.
func TestBatch_AnyOrder(t *testing.T) {
	answer := func(id uint64) []byte {
		b := content(10)
		return append(frame(t, &Answer{Id: id, Size: 10, HasUnit: true, UnitBytes: 10, Last: true}), b...)
	}
	for _, c := range []struct {
		name    string
		answers []uint64 // of 1 and 3, in order; 2, 4, and 5, in any
		want    error    // of the last
		told    uint64   // who is told of it
	}{
		{"each as it comes", []uint64{4, 1, 2, 3, 5}, nil, 0},
		{"in the order of requests", []uint64{1, 2, 3, 4, 5}, nil, 0},
		{"out of order", []uint64{2, 3}, errProtocol, 1},
		{"twice", []uint64{4, 4}, errProtocol, 1},
		{"of nothing", []uint64{6}, errProtocol, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, all := anyBatch(t, 5, func(i int) bool { return i == 2 || i == 4 || i == 5 })
			var in []byte
			for _, id := range c.answers {
				in = append(in, answer(id)...)
			}
			r := bufio.NewReader(bytes.NewReader(in))
			var err error
			for range c.answers {
				if err != nil {
					t.Fatal(err)
				}
				err = b.receive(t.Context(), &batchReader{ss: &session{}}, r)
			}
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil {
				return
			}
			b.fail(err)
			for _, p := range all {
				if got := <-p.done; got.free != nil {
					got.free()
				} else if errors.Is(got.err, errProtocol) != (p.id == c.told) {
					t.Errorf("%d is told %v", p.id, got.err)
				}
			}
		})
	}
	// The peer answers all but one.
	for _, ordered := range []bool{false, true} {
		b, all := anyBatch(t, 3, func(id int) bool { return id > 1 || !ordered })
		all[1].at = all[0].at.Add(all[0].way.wait + swapOverdue)
		all[2].at = all[1].at.Add(1)
		r := bufio.NewReader(bytes.NewReader(append(answer(2), answer(3)...)))
		if err := b.receive(t.Context(), &batchReader{ss: &session{}}, r); err != nil {
			t.Error(err)
		}
		if err := b.receive(t.Context(), &batchReader{ss: &session{}}, r); !errors.Is(err, errBatch) {
			t.Errorf("one is passed over, in order: %v: %v", ordered, err)
		}
	}
	// It may be silent while all may be waited for.
	b, _ := anyBatch(t, 2, func(int) bool { return true })
	if got := b.silence(time.Millisecond); got != time.Second+swapSlack {
		t.Errorf("silent for %s", got)
	}
	b, _ = anyBatch(t, 2, func(i int) bool { return i == 1 })
	if got := b.silence(time.Millisecond); got != time.Millisecond {
		t.Errorf("silent for %s", got)
	}
}

// anyBatch is a batch that has asked for blobs of 10 bytes, some in any order.
func anyBatch(t *testing.T, n int, waits func(id int) bool) (*batch, []*parcel) {
	t.Helper()
	s := testBatchSwarm()
	ss := &session{}
	b := &batch{s: s, ss: ss, waiter: waiter{wake: make(chan struct{}, 1)}, sent: make(chan struct{}, 1)}
	var all []*parcel
	for i := range n {
		p := &parcel{f: &flight{digest: digest.FromString("x")}, size: 10, done: make(chan delivery, 1)}
		if waits(i + 1) {
			p.way.wait = time.Second
		}
		b.queue = append(b.queue, p)
		got, _ := b.take(ss)
		if got != p {
			t.Fatal("there is no room")
		}
		all = append(all, p)
	}
	return b, all
}

func testBatchSwarm() *Swarm {
	s := &Swarm{pipes: newPipes(), buffers: newBuffers(), log: slog.New(slog.DiscardHandler)}
	s.metrics = newMetrics(s)
	return s
}
