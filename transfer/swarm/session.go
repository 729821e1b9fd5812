package swarm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// sessionIdle is how long an unused stream is kept: its window has grown, a
	// new one would have to start again.
	sessionIdle = 2 * time.Minute
	// maxIdle bounds the unused streams kept per holder, maxIdleAll over all: the
	// windows that they have grown count against those of streams in use.
	maxIdle    = 4
	maxIdleAll = 32
)

// sessions keeps streams to holders for reuse.
type sessions struct {
	ctx   context.Context // the streams' lifetime
	host  Host
	stall time.Duration
	pipes *pipes // told how long answers take
	pacer Pacer  // nil: nothing is held back

	mu    sync.Mutex
	peers map[identity.NodeID]*peerSessions
	idle  int // over all peers
	lend  lender
}

type peerSessions struct {
	heard atomic.Int64 // Unix nanoseconds: when the holder last sent a byte
	idle  []*session
	inUse slots
	batch int // streams of the batch of small blobs, beside the slots
}

func newSessions(ctx context.Context, host Host, stall time.Duration, pipes *pipes) *sessions {
	return &sessions{ctx: ctx, host: host, stall: stall, pipes: pipes, peers: map[identity.NodeID]*peerSessions{}}
}

// ticket is leave to have one stream to a holder. Its owner opens the stream, or leaves.
type ticket struct {
	p     *sessions
	node  identity.NodeID
	ps    *peerSessions
	slot  *slot // nil: beside them
	leave func()
}

// get gives an idle or a new stream to a holder, and the function that takes it
// back: reuse says that nothing is outstanding on it.
func (p *sessions) get(ctx context.Context, node identity.NodeID, n need) (ss *session, fresh bool, release func(reuse bool), err error) {
	t, err := p.ticket(ctx, node, n)
	if err != nil {
		return nil, false, nil, err
	}
	return t.open(ctx)
}

// of gives what is known of a holder; mu is held.
func (p *sessions) of(node identity.NodeID) *peerSessions {
	ps := p.peers[node]
	if ps == nil {
		ps = &peerSessions{}
		ps.inUse.most, ps.inUse.lend = p.each, &p.lend
		p.peers[node] = ps
	}
	return ps
}

// ticket waits for leave to have a stream to a holder.
func (p *sessions) ticket(ctx context.Context, node identity.NodeID, n need) (ticket, error) {
	p.mu.Lock()
	ps := p.of(node)
	p.mu.Unlock()
	slot, err := ps.inUse.take(ctx, n)
	if err != nil {
		return ticket{}, err
	}
	return ticket{p, node, ps, slot, func() { ps.inUse.leave(slot) }}, nil
}

// beside gives leave to have the stream of the batch to a holder. It waits for none:
// a holder has one batch.
func (p *sessions) beside(node identity.NodeID) ticket {
	p.mu.Lock()
	defer p.mu.Unlock()
	ps := p.of(node)
	ps.batch++
	return ticket{p, node, ps, nil, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		ps.batch--
	}}
}

// open gives an idle or a new stream, and the function that takes it back, with the
// leave to have one. With an error that is given back.
func (t ticket) open(ctx context.Context) (ss *session, fresh bool, release func(reuse bool), err error) {
	p, ps := t.p, t.ps
	p.mu.Lock()
	if n := len(ps.idle); n > 0 {
		ss = ps.idle[n-1]
		ps.idle = ps.idle[:n-1]
		p.idle--
	}
	p.mu.Unlock()
	if ss == nil {
		fresh = true
		if ss, err = p.open(ctx, t.node, ps); err != nil {
			t.leave()
			return nil, false, nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = ss.st.Reset() })
	// Whoever is first: a stream that went back to the pool is the next one's, who may be
	// more urgent, and is not ended for what its last owner had lent.
	var over atomic.Bool
	if st, ok := ss.st.(*ownedStream); ok && t.slot != nil && t.slot.need.at != nil {
		ps.inUse.carries(t.slot, func() {
			if over.CompareAndSwap(false, true) {
				st.endFull()
			}
		})
	}
	return ss, fresh, func(reuse bool) {
		if t.slot != nil {
			ps.inUse.carries(t.slot, nil)
		}
		if !over.CompareAndSwap(false, true) { // it was given back: the stream is, or will be, reset
			reuse = false
		}
		if !stop() { // the context ended: the stream was reset
			reuse = false
		}
		p.put(ps, ss, reuse)
		t.leave()
	}, nil
}

// refused says whether an error is that a holder has no room for a stream, and notes
// it: from then on it is asked for no more than are surely given.
func (p *sessions) refused(node identity.NodeID, err error) bool {
	if !full(err) {
		return false
	}
	p.mu.Lock()
	ps := p.of(node)
	p.mu.Unlock()
	ps.inUse.refused()
	return true
}

// anew says whether who asked on a stream that ended so asks on another one, as those that
// the holder surely has room for. That the holder had none may happen once. What this node
// ended itself, for others, says nothing of the holder, however often: each time somebody
// else was refused.
func (p *sessions) anew(ctx context.Context, node identity.NodeID, err error, again *bool) bool {
	var shed endedFull
	switch own := errors.As(err, &shed); {
	case !own && !p.refused(node, err), ctx.Err() != nil, !own && *again:
		return false
	case !own:
		*again = true
	}
	return true
}

// each is how many slots each holder has for its part now.
func (p *sessions) each() int { return min(maxSessions, p.host.StreamsEach()) - batchSessions }

// open opens a stream that outlives ctx.
func (p *sessions) open(ctx context.Context, node identity.NodeID, ps *peerSessions) (*session, error) {
	life, cancel := context.WithCancel(p.ctx)
	// cancel is only called while opening; afterwards the stream ends by Close,
	// Reset or with p.ctx.
	stop := context.AfterFunc(ctx, cancel)
	timer := time.AfterFunc(p.stall, cancel)
	st, err := p.host.OpenBulk(life, node, Protocol)
	inTime := timer.Stop()
	if !stop() || !inTime || err != nil {
		cancel()
		if err == nil {
			_ = st.Reset()
			err = fmt.Errorf("node %s: no answer within %s", node.Short(), p.stall)
		}
		return nil, err
	}
	owned := &ownedStream{Stream: st, cancel: cancel}
	ss := &session{
		node: node, st: owned, stall: p.stall, quiet: min(quietFor, p.stall),
		heard: func() { ps.heard.Store(time.Now().UnixNano()) },
		timed: func(d time.Duration) { p.pipes.answered(node, d) },
	}
	if p.pacer != nil {
		ss.pace = func(n int) (int, error) {
			n, err := p.pacer.Receive(life, budget.Class(ss.class.Load()), n)
			return n, owned.why(err) // life ends with the stream
		}
	}
	return ss, nil
}

// ownedStream releases its context when it ends.
type ownedStream struct {
	plane.Stream
	cancel context.CancelFunc
	full   atomic.Bool // see endFull
}

// endFull resets the stream. Who reads or writes it finds that the holder has no room for
// it.
func (s *ownedStream) endFull() {
	s.full.Store(true)
	_ = s.Reset()
}

func (s *ownedStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	return n, s.why(err)
}

func (s *ownedStream) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	return n, s.why(err)
}

func (s *ownedStream) SetReadDeadline(t time.Time) error { return s.why(s.Stream.SetReadDeadline(t)) }

// why says of an error that the stream was given back, if it was.
func (s *ownedStream) why(err error) error {
	if err != nil && s.full.Load() {
		return endedFull{err}
	}
	return err
}

// endedFull is why a stream ended that was lent, and given back to the holder.
type endedFull struct{ error }

func (e endedFull) Unwrap() error { return e.error }
func (e endedFull) Full() bool    { return true }

func (s *ownedStream) Close() error {
	err := s.Stream.Close()
	s.cancel()
	return err
}

func (s *ownedStream) Reset() error {
	err := s.Stream.Reset()
	s.cancel()
	return err
}

func (p *sessions) put(ps *peerSessions, ss *session, reuse bool) {
	ss.giveUp = nil
	if !reuse || ss.requests() > 0 || ss.head != nil {
		_ = ss.st.Reset()
		return
	}
	ss.used, ss.woken = time.Now(), time.Time{}
	p.mu.Lock()
	if p.ctx.Err() == nil && len(ps.idle) < maxIdle {
		ps.idle = append(ps.idle, ss)
		p.idle++
		ss = nil
		if p.idle > maxIdleAll {
			ss = p.oldest()
		}
	}
	p.mu.Unlock()
	if ss != nil {
		_ = ss.st.Close()
	}
}

// oldest takes out the idle stream that was unused for longest; mu is held.
func (p *sessions) oldest() *session {
	var from *peerSessions
	for _, ps := range p.peers {
		if len(ps.idle) > 0 && (from == nil || ps.idle[0].used.Before(from.idle[0].used)) {
			from = ps
		}
	}
	if from == nil {
		return nil
	}
	ss := from.idle[0]
	from.idle = append([]*session(nil), from.idle[1:]...)
	p.idle--
	return ss
}

// heardWithin says whether a holder sent something lately, on any stream: who
// waits for one behind others' blobs is not waiting in vain.
func (p *sessions) heardWithin(node identity.NodeID, d time.Duration) bool {
	p.mu.Lock()
	ps := p.peers[node]
	p.mu.Unlock()
	return ps != nil && time.Since(time.Unix(0, ps.heard.Load())) < d
}

// reap closes what was not used since.
func (p *sessions) reap(since time.Time) {
	var old []*session
	p.mu.Lock()
	for node, ps := range p.peers {
		keep := ps.idle[:0]
		for _, ss := range ps.idle {
			if ss.used.Before(since) {
				old = append(old, ss)
			} else {
				keep = append(keep, ss)
			}
		}
		p.idle -= len(ps.idle) - len(keep)
		ps.idle = keep
		if len(ps.idle) == 0 && ps.batch == 0 && ps.inUse.unused() {
			delete(p.peers, node) // a get that holds on to it at worst doubles the bound once
		}
	}
	p.mu.Unlock()
	for _, ss := range old {
		_ = ss.st.Close()
	}
}

func (p *sessions) close() { p.reap(time.Now().Add(time.Hour)) }
