package swarm

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/budget"
)

const (
	// maxParked bounds the requests of a stream that wait for small blobs: a batch has
	// no more on their way. maxParkedAll bounds those of all streams, some 16 MB: one
	// peer, which may have 32 streams, can take half of the places.
	maxParked    = batchAhead
	maxParkedAll = 64 * maxParked
	// parkedLook is how often those are looked for whose patience is over. It may end
	// later by as much: a receiver adds swapSlack.
	parkedLook = 50 * time.Millisecond
)

// parked is a request that waits for a small blob that is to come here.
type parked struct {
	id    uint64
	class budget.Class
	d     digest.Digest
	pid   identity.ProjectID
	until time.Time
	// allowed: Access said so when it was asked; it holds for the wait.
	allowed atomic.Bool
}

// lot has the requests of one stream that wait for small blobs. Each is answered when
// its blob lands, or its patience is over, whatever was asked before it: in order the
// first that is missing would hold up all that are here. Whoever takes a request out of
// the lot answers it: the stream's reader, or the lot's own goroutine, which begins with
// the first one.
type lot struct {
	s    *server
	from identity.NodeID
	g    *gatherer

	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // capacity 1
	begun  sync.Once
	wg     sync.WaitGroup

	mu    sync.Mutex
	m     map[digest.Digest][]*parked
	n     int                        // in m
	heard map[digest.Digest]struct{} // of those in m
	empty chan struct{}              // not nil: closed when there is none
}

func newLot(ctx context.Context, s *server, from identity.NodeID, g *gatherer) *lot {
	l := &lot{s: s, from: from, g: g, wake: make(chan struct{}, 1)}
	l.ctx, l.cancel = context.WithCancel(ctx)
	return l
}

// park takes a request in; false: there is no place for it. The turn is held.
func (l *lot) park(p *parked) bool {
	at := l.s.landings
	if at.places.Add(1) > maxParkedAll {
		at.places.Add(-1)
		return false
	}
	l.mu.Lock()
	if l.n >= maxParked {
		l.mu.Unlock()
		at.places.Add(-1)
		return false
	}
	if l.m == nil {
		l.m, l.heard = map[digest.Digest][]*parked{}, map[digest.Digest]struct{}{}
	}
	l.m[p.d] = append(l.m[p.d], p)
	l.n++
	first := l.n == 1
	l.mu.Unlock()
	at.watch(p.d, l)
	l.begun.Do(func() { l.wg.Go(l.run) })
	if first {
		wake(l.wake) // patience is looked at from now on
	}
	return true
}

// take takes a request out, which is in it, to be answered. The turn is held.
func (l *lot) take(p *parked) {
	l.mu.Lock()
	left := slices.DeleteFunc(l.m[p.d], func(o *parked) bool { return o == p })
	if len(left) > 0 {
		l.m[p.d] = left
	} else {
		delete(l.m, p.d)
		delete(l.heard, p.d)
	}
	if l.n--; l.n == 0 && l.empty != nil {
		close(l.empty)
		l.empty = nil
	}
	l.mu.Unlock()
	l.s.landings.places.Add(-1)
	l.forget(p.d)
}

// landed is told when there is news of a blob.
func (l *lot) landed(d digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.m[d]) > 0 {
		l.heard[d] = struct{}{}
		wake(l.wake)
	}
}

// run answers what lands, and what is waited for in vain.
func (l *lot) run() {
	look := time.NewTimer(parkedLook)
	defer look.Stop()
	looks := true
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-look.C:
			looks = false
		case <-l.wake:
		}
		if err := l.answer(l.due(!looks, time.Now())); err != nil {
			l.s.log.Debug("blob stream ended", "node", l.from, "error", err)
			l.cancel()
			_ = l.g.Reset() // its reader ends
			return
		}
		if !looks && l.waiting() > 0 {
			look.Reset(parkedLook)
			looks = true
		}
	}
}

// answer settles what is due. What is answered goes out with what lands a moment
// later, if anything is still waited for.
func (l *lot) answer(due []*parked) error {
	for _, p := range due {
		if err := l.settle(p); err != nil {
			return err
		}
	}
	if len(due) > 0 && l.waiting() == 0 {
		return l.g.flush()
	}
	return nil
}

func (l *lot) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

// due are the requests for blobs that there is news of, and, if all are looked at,
// those whose patience is over.
func (l *lot) due(all bool, now time.Time) (out []*parked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for d := range l.heard {
		out = append(out, l.m[d]...)
	}
	clear(l.heard)
	if all {
		for _, ps := range l.m {
			for _, p := range ps {
				if !now.Before(p.until) {
					out = append(out, p)
				}
			}
		}
	}
	return out
}

// settle answers a request if there is something to say. It may have been answered.
func (l *lot) settle(p *parked) error {
	l.s.landings.watch(p.d, l) // before the look: what lands after it is heard of
	body, allowed, to := l.s.lookSmall(l.ctx, l.from, p)
	l.g.turn.Lock()
	defer l.g.turn.Unlock()
	if !l.has(p) {
		l.forget(p.d)
		return nil
	}
	if allowed && body == nil && to != toOther && time.Now().Before(p.until) {
		return nil
	}
	l.take(p)
	out := parkedOut{l.g}
	switch {
	case !allowed:
		return l.s.refuse(out, &Answer{Id: p.id, Status: Status_STATUS_DENIED, Reason: deniedReason})
	case fitsBatch(body):
		return l.s.sendSmall(l.ctx, l.from, out, p.class, smallHead(p.id, body), body)
	}
	return l.s.notYet(out, p, to)
}

func (l *lot) has(p *parked) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.m[p.d], p)
}

// forget ends the watch of a blob that nothing waits for here any more. The turn is
// held, so nothing is parked meanwhile.
func (l *lot) forget(d digest.Digest) {
	l.mu.Lock()
	none := len(l.m[d]) == 0
	l.mu.Unlock()
	if none {
		l.s.landings.leave(d, l)
	}
}

// drain waits until all is answered: the peer asks for nothing more, and may read yet.
// Each request ends with its patience. An error: it could not be.
func (l *lot) drain() error {
	l.mu.Lock()
	done := l.empty
	if l.n > 0 && done == nil {
		done = make(chan struct{})
		l.empty = done
	}
	l.mu.Unlock()
	if done != nil {
		select {
		case <-done:
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
	l.g.turn.Lock() // the last one is written
	defer l.g.turn.Unlock()
	return l.g.flush()
}

// end drops what is left: nobody reads any more.
func (l *lot) end() {
	l.cancel()
	l.wg.Wait()
	l.mu.Lock()
	left, n := l.m, l.n
	l.m, l.n = nil, 0
	l.mu.Unlock()
	if l.s.landings == nil {
		return
	}
	l.s.landings.places.Add(-int64(n))
	for d := range left {
		l.s.landings.leave(d, l)
	}
}
