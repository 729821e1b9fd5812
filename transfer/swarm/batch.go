package swarm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
)

const (
	// SmallBytes is the size up to which blobs come in batches: the store keeps
	// them as rows, many of which share a sync of the disk.
	SmallBytes = store.InlineMax
	// batchAhead bounds the blobs that are asked for of one holder and not answered:
	// 3000 a second at 300 ms. Their requests, under 200 bytes each, always fit
	// into the first window of a stream, so that writing them never waits for the
	// holder to read.
	batchAhead = 1024
	// batchWrite is when gathered requests are written.
	batchWrite = 16 << 10
	// batchGather is how long requests are gathered while at least batchBusy are on
	// their way: flights begin one by one, and a write for each costs as much as a blob.
	batchGather = 4 * time.Millisecond
	batchBusy   = 16
)

// errBatch ends a batch that can't go on. Its blobs come one by one.
var errBatch = errors.New("the batch of small blobs ended")

// batches are the small blobs that are asked for of each holder.
type batches struct {
	s *Swarm

	mu sync.Mutex
	m  map[identity.NodeID]*batch
}

func newBatches(s *Swarm) *batches { return &batches{s: s, m: map[identity.NodeID]*batch{}} }

// batch is the small blobs that come from one holder, on one stream: asked for as
// they are wanted, answered in order; those that another receiver is to bring as they
// come there. It takes one place among the active blobs,
// and its bytes room in the holder's pipe.
//
// Two goroutines work on it while there is something to do: one asks, the other,
// which owns it, reads.
type batch struct {
	s      *Swarm
	node   identity.NodeID
	waiter waiter // for room in the pipe, and for more to ask

	mu      sync.Mutex
	running bool
	ss      *session  // on which blobs are asked for; nil: on none
	rest    time.Time // it failed: nothing comes this way until then
	queue   []*parcel // not asked for, in the order of their ranks, see line
	asked   []*parcel // in the order of their requests
	sent    chan struct{}
	reads   *parcel // whose answer is read, of the goroutine that reads
}

// parcel is one blob of a batch.
type parcel struct {
	f    *flight
	b    *batch
	way  way
	rank rank // that it has in the queue; guarded by batch.mu
	pid  identity.ProjectID
	size int64
	id   uint64    // of its request
	at   time.Time // when it was asked for
	sole bool      // nothing else was outstanding then
	gone bool      // nobody waits for it any more; guarded by batch.mu
	done chan delivery
}

// delivery is what became of a parcel.
type delivery struct {
	data []byte
	free func() // gives back data's room; nil with an error
	err  error
}

// batched tries to bring a small blob in the batch of its best holder, and says
// whether it did. If not, for whatever reason, the blob comes the usual way,
// which asks all holders; so it does once a client waits. An error is this node's
// own.
func (f *flight) batched() (bool, error) {
	f.mu.Lock()
	l := f.layout
	f.mu.Unlock()
	if f.pass || l == nil || l.size > SmallBytes || f.reading.Load() > 0 {
		return false, nil
	}
	select {
	case <-f.urgent:
		return false, nil
	default:
	}
	c, ok := f.best()
	if !ok {
		return false, nil
	}
	at, self, now := circleAt{c.node, f.pid}, f.s.self(), time.Now()
	w := ways{holder: c.node, self: self.node, owner: f.s.swaps.owner(at, self, f.digest, now)}
	fit := func(node identity.NodeID) bool { return f.s.swaps.fit(swapBetween{c.node, node}, time.Now()) }
	defer f.setAside(false)
	var way way
	for said, waits := error(nil), 0; ; {
		if coming(said) && waits < swapWaits && fit(way.node) && f.s.loaded() {
			waits++ // the same way once more
		} else if way, ok = w.next(said, fit); !ok {
			return false, nil
		}
		if !way.holder {
			if !f.s.mayAsk(f.ctx, way.node, f.digest, f.pid) {
				said = errNotHis // as T13 has it: it is asked for nothing that it may not have
				continue
			}
			way.wait = f.s.patience(c.node)
		}
		f.setAside(!way.holder)
		got, asked := f.askBatch(way, l.size)
		if !asked {
			return false, nil
		}
		if got.err == nil {
			defer got.free()
			return f.tookSmall(candidate{node: way.node, pid: f.pid}, c.node, got.data)
		}
		said = got.err
		var taken *takenError
		switch {
		case errors.As(said, &taken):
		case !way.holder:
			if coming(said) && waits < swapWaits {
				break // it is behind, and does not hold up what waits for nothing else
			}
			if f.s.letDown(swapBetween{c.node, way.node}, said) {
				f.s.log.Info("small blobs are left to a receiver no longer, for a while", "node", way.node, "site", f.s.site(way.node), "error", said)
			}
		case errors.Is(said, errNotAsked):
			return false, nil
		default:
			var refused *refusedError
			if errors.Is(said, errProtocol) {
				_ = f.blameList(way.node, said)
			} else if errors.As(said, &refused) {
				f.s.metrics.failovers.WithLabelValues("refused").Inc()
			}
			return false, nil
		}
	}
}

var (
	// errNotAsked: a blob does not come in a batch now.
	errNotAsked = errors.New("nothing is asked in a batch now")
	// errNotHis: a receiver is asked for nothing that it may not have.
	errNotHis = errors.New("the receiver may not have the blob")
)

// askBatch asks for the blob in a batch and waits for what becomes of it. false:
// nobody waits for it any more, or a client does.
func (f *flight) askBatch(w way, size int64) (got delivery, asked bool) {
	b, p := f.s.batches.add(f, w, size)
	if p == nil {
		return delivery{err: errNotAsked}, true
	}
	select {
	case got = <-p.done:
	case <-f.urgent:
	case <-f.ctx.Done():
	}
	if got.data == nil && got.err == nil {
		b.leave(p)
		return got, false
	}
	return got, true
}

// tookSmall checks and stores what came, from the holder or another receiver of what
// it has.
func (f *flight) tookSmall(c candidate, holder identity.NodeID, data []byte) (bool, error) {
	// The data was read for this flight alone: it need not be copied.
	if err := f.take(0, data, c.node, func(b []byte) []byte { return b }); err != nil {
		f.mu.Lock()
		f.strikes[c.node]++ // the first one: a batch is how a flight begins
		f.mu.Unlock()
		f.s.suspects.add(c.node, f.digest, wrongUnit)
		f.s.doubt(c, f.digest)
		f.s.metrics.badUnits.WithLabelValues(c.node.String()).Inc()
		f.s.log.Warn("peer sent a unit that is not the blob's", "digest", f.digest, "node", c.node, "site", f.s.site(c.node), "unit", 0, "holder", c.node == holder, "error", err)
		if c.node != holder {
			f.s.swaps.failed(swapBetween{holder, c.node}, time.Now())
		}
		return false, nil
	}
	if c.node != holder {
		f.s.swaps.brought(swapBetween{holder, c.node})
	}
	f.s.landings.news(f.digest)
	f.s.metrics.unitsReceived.Inc()
	return true, f.store()
}

// best is the holder that is asked first.
func (f *flight) best() (candidate, bool) {
	for _, node := range f.s.cfg.Holders.Holders(f.ctx, f.digest, f.pid, f.size) {
		if node != f.s.cfg.Host.ID() {
			return candidate{node: node, pid: f.pid}, true
		}
	}
	return candidate{}, false
}

// add puts a blob into the batch of a holder; nil: nothing comes that way now.
func (bs *batches) add(f *flight, w way, size int64) (*batch, *parcel) {
	bs.mu.Lock()
	b := bs.m[w.node]
	if b == nil {
		b = &batch{s: bs.s, node: w.node, waiter: waiter{wake: make(chan struct{}, 1)}, sent: make(chan struct{}, 1)}
		bs.m[w.node] = b
	}
	bs.mu.Unlock()
	p := &parcel{f: f, b: b, way: w, pid: f.pid, size: size, done: make(chan delivery, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Now().Before(b.rest) {
		return b, nil
	}
	f.parcel.Store(p) // before its rank is read: who changes that from now on finds it
	b.line(p)         // bounded by maxFlights
	if !b.running {
		b.running = true
		bs.s.wg.Add(1) // f, which is counted, runs
		go func() {
			defer bs.s.wg.Done()
			b.run()
		}()
	}
	wake(b.waiter.wake)
	return b, p
}

// line puts a blob into the queue; mu is held. The queue is in the order of the ranks
// that its parcels had when they were put there, so a search finds the place among
// thousands; who moves puts its own there anew (moved).
func (b *batch) line(p *parcel) {
	p.rank = p.f.rank(classReplication)
	at, _ := slices.BinarySearchFunc(b.queue, p, func(o, p *parcel) int {
		if p.rank.before(o.rank) {
			return 1
		}
		return -1 // behind those that stand as it does
	})
	b.queue = slices.Insert(b.queue, at, p)
}

// moved puts a blob where its flight's order has it now.
func (bs *batches) moved(f *flight) {
	p := f.parcel.Load()
	if p == nil {
		return
	}
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	at := slices.Index(p.b.queue, p)
	if at < 0 {
		return // it is asked for, or came
	}
	p.b.queue = slices.Delete(p.b.queue, at, at+1)
	p.b.line(p)
	wake(p.b.waiter.wake) // it may be the first now
}

// leave takes out a blob that is not waited for any more. What was asked for
// still comes, and is dropped.
func (b *batch) leave(p *parcel) {
	b.mu.Lock()
	p.gone = true
	b.mu.Unlock()
	select {
	case got := <-p.done:
		if got.free != nil {
			got.free()
		}
	default:
	}
}

// deliver tells a blob's flight what became of it.
func (b *batch) deliver(p *parcel, got delivery) {
	b.mu.Lock()
	gone := p.gone
	if !gone {
		p.done <- got
	}
	b.mu.Unlock()
	if gone && got.free != nil {
		got.free()
	}
}

// run takes blobs until none is left.
func (b *batch) run() {
	defer b.s.enterTurn()()
	again := false
	for {
		came, fresh, err := b.stream(b.s.ctx)
		if err == nil {
			return
		}
		if b.s.sessions.anew(b.s.ctx, b.node, err, &again) { // large blobs give up theirs
			b.requeue()
			continue
		}
		// A stream from the pool may be long dead: the holder deserves a fresh one.
		if !fresh && !again && came == 0 && b.s.ctx.Err() == nil && !timedOut(err) && !errors.Is(err, errProtocol) {
			again = true
			b.requeue()
			continue
		}
		b.fail(err)
		return
	}
}

// stream takes blobs over one stream until none is left (nil), or it breaks.
func (b *batch) stream(ctx context.Context) (came int, fresh bool, err error) {
	// It is one stream a holder: it does not wait until large blobs leave theirs.
	ss, fresh, release, err := b.s.sessions.beside(b.node).open(ctx)
	if err != nil {
		return 0, true, err
	}
	b.mu.Lock()
	b.ss = ss
	b.mu.Unlock()
	ss.class.Store(uint32(classReplication.onLink()))
	from := &batchReader{ss: ss}
	in := bufio.NewReaderSize(from, copyBuffer)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		if b.ask(ss, stop) != nil {
			_ = ss.st.Reset() // the next answer tells
		}
	})
	defer func() {
		close(stop)
		asking.Wait()
		release(err == nil && in.Buffered() == 0)
	}()
	for {
		some, over := b.open()
		if over {
			return came, fresh, nil
		}
		if !some { // those in the queue wait for room
			select {
			case <-b.sent:
				continue
			case <-ctx.Done():
				return came, fresh, ctx.Err()
			}
		}
		from.answer(b.silence(ss.quiet))
		if err := b.receive(ctx, from, in); err != nil {
			return came, fresh, err
		}
		came++
		wake(b.waiter.wake)
	}
}

// open says whether some are asked for. over: none is, and none is in the queue: the
// batch ends.
func (b *batch) open() (some, over bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.asked) > 0 {
		return true, false
	}
	if len(b.queue) > 0 {
		return false, false
	}
	b.running, b.ss = false, nil
	b.s.pipes.forget(b.node, &b.waiter)
	return false, true
}

// ask writes requests as long as there is room, and waits for more.
func (b *batch) ask(ss *session, stop <-chan struct{}) error {
	for {
		var out []byte
		for len(out) < batchWrite {
			p, ended := b.take(ss)
			if ended { // what woke this one was for the next
				wake(b.waiter.wake)
				return nil
			}
			if p == nil {
				break
			}
			head := len(out)
			out = append(out, 0, 0, 0, 0)
			var err error
			out, err = proto.MarshalOptions{}.MarshalAppend(out, b.request(p))
			if err != nil {
				return err
			}
			binary.BigEndian.PutUint32(out[head:], uint32(len(out)-head-4))
		}
		if len(out) > 0 {
			wake(b.sent)
			if _, err := ss.st.Write(out); err != nil {
				return err
			}
			continue
		}
		select {
		case <-b.waiter.wake:
		case <-stop:
			return nil
		}
		if b.busy() {
			select {
			case <-time.After(batchGather):
			case <-stop:
				return nil
			}
		}
	}
}

// busy says whether enough is on its way that requests need not go at once.
func (b *batch) busy() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.asked) >= batchBusy
}

// request is what is asked for a parcel.
func (b *batch) request(p *parcel) *Request {
	r := &Request{Id: p.id, Digest: p.f.digest.String(), Project: p.pid[:], Units: 1, Class: uint32(classReplication.onLink()) + 1}
	if p.way.holder {
		r.Swap, r.Share, r.UnlessGivenMs = true, p.f.uplink, uint32(p.way.unless/time.Millisecond)
	} else {
		r.WaitMs, r.AnyOrder = uint32(p.way.wait/time.Millisecond), true
	}
	return r
}

// take moves the first blob of the queue to those that are asked for, if there
// is room for it. ended: the blobs of the queue are another stream's.
func (b *batch) take(ss *session) (p *parcel, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ss != ss {
		return nil, true
	}
	for len(b.queue) > 0 && b.queue[0].gone {
		b.queue = b.queue[1:]
	}
	if len(b.queue) == 0 || len(b.asked) >= batchAhead {
		wake(b.sent) // the queue may be empty now
		return nil, false
	}
	p = b.queue[0]
	b.s.pipes.stands(&b.waiter, p.f.rank(classReplication))
	if b.s.pipes.reserve(b.node, &b.waiter, classReplication, max(1, p.size), 1) == 0 {
		return nil, false
	}
	b.queue = b.queue[1:]
	ss.lastID++
	p.id, p.at, p.sole = ss.lastID, time.Now(), len(b.asked) == 0
	b.asked = append(b.asked, p)
	return p, false
}
