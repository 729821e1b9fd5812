package sync

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/node/identity"
)

const (
	// pullers is how many projects are pulled from one peer at a time: a large
	// first exchange of one project must not hold up the push to another.
	pullers = 4
	// retryFirst and retryMost bound the wait after a failed exchange: a peer
	// that comes back is found within seconds without any hint.
	retryFirst = 250 * time.Millisecond
	retryMost  = 3 * time.Second
	// courtesy is how long one pull waits for another of the same project from
	// another peer, so that the second finds little left to pull. Waiting longer
	// would let one hanging peer hold up the others.
	courtesy = 2 * time.Second
)

// link is what this node does with one peer: it asks for heads now and then,
// pulls what they or hints show to be new, and follows the peer's feed.
//
// Pulls are coalesced: a project stands in the queue at most once, and one that
// is asked for while it is being pulled is pulled once more afterwards, since
// the running pull may have noted the sender's vector already.
type link struct {
	s      *Sync
	node   identity.NodeID
	cancel context.CancelFunc

	headsDue chan struct{} // capacity 1
	feedDue  chan struct{} // capacity 1

	mu      sync.Mutex
	more    *sync.Cond
	closed  bool
	queue   []identity.ProjectID
	waiting map[identity.ProjectID]*call // asked for and not begun
	running map[identity.ProjectID]bool
	hung    map[identity.ProjectID]bool    // somebody waited for its pull as long as anybody does
	seen    map[identity.ProjectID]uint64  // hash of the vector that was last taken over from this peer
	suspect map[identity.ProjectID]suspect // equal vectors, unequal checks
	times   map[identity.ProjectID]int     // how often in a row they were the same

	gone bool // gossip lost the peer: announcements of both sides may be lost

	status peerState
}

// isBack takes gossip's word on the peer, and reports whether it is to be asked now:
// when the last attempt failed, or when it was gone in between. No exchange need have
// fallen into that time, and what was announced then was not heard.
func (l *link) isBack(alive bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	back := alive && l.gone
	l.gone = !alive
	return back || l.status.err != nil || l.status.pullErr != nil || l.status.feedErr != nil
}

// hangs reports whether somebody has waited in vain for the project's pull, and
// neither that nor any exchange of heads has ended since.
func (l *link) hangs(pid identity.ProjectID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hung[pid]
}

func (l *link) setHung(pid identity.ProjectID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hung[pid] = true
}

// ended reports whether err may be read.
func (c *call) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// call is one pull that others may wait for.
type call struct {
	done chan struct{}
	err  error // set before done is closed
}

// peerState is what is known of the peer, for status and metrics.
type peerState struct {
	asked     bool          // an exchange of heads ended, well or not
	attempted bool          // an exchange ended, with its pulls, well or not
	contactAt time.Time     // end of the last exchange of heads that went well
	syncedAt  time.Time     // everything the peer had then is here
	err       error         // of the last exchange of heads; nil: the peer answered
	pullErr   error         // of the pulls that the last exchange led to
	feedErr   error         // of the last question for the feed
	offset    time.Duration // peer's clock minus ours
	rtt       time.Duration
	compared  bool          // offset was measured
	set       time.Duration // clock.set, then
	alarmed   bool
}

func newLink(s *Sync, node identity.NodeID) *link {
	l := &link{
		s: s, node: node,
		headsDue: make(chan struct{}, 1), feedDue: make(chan struct{}, 1),
		waiting: map[identity.ProjectID]*call{}, running: map[identity.ProjectID]bool{}, hung: map[identity.ProjectID]bool{}, seen: map[identity.ProjectID]uint64{},
		suspect: map[identity.ProjectID]suspect{}, times: map[identity.ProjectID]int{},
	}
	l.more = sync.NewCond(&l.mu)
	return l
}

// run works until ctx ends.
func (l *link) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		l.more.Broadcast()
	})
	defer stop()
	var g errgroup.Group
	g.Go(func() error { l.followHeads(ctx); return nil })
	g.Go(func() error { l.followFeed(ctx); return nil })
	for range pullers {
		g.Go(func() error { l.pullQueued(ctx); return nil })
	}
	_ = g.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	for pid, c := range l.waiting {
		delete(l.waiting, pid)
		c.err = context.Cause(ctx)
		close(c.done)
	}
}

// request asks for a pull that begins after now.
func (l *link) request(pid identity.ProjectID) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.waiting[pid]; ok {
		return c
	}
	c := &call{done: make(chan struct{})}
	if l.closed {
		c.err = context.Canceled
		close(c.done)
		return c
	}
	l.waiting[pid] = c
	if !l.running[pid] {
		l.queue = append(l.queue, pid)
		l.more.Signal()
	}
	return c
}

// next takes the first project of the queue; nil at the end.
func (l *link) next() (identity.ProjectID, *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.more.Wait()
	}
	if l.closed {
		return identity.ProjectID{}, nil
	}
	pid := l.queue[0]
	l.queue = l.queue[1:]
	c := l.waiting[pid]
	delete(l.waiting, pid)
	l.running[pid] = true
	return pid, c
}

// finish ends a pull, and reports whether none is to be begun.
func (l *link) finish(pid identity.ProjectID, c *call, err error) (idle bool) {
	l.mu.Lock()
	delete(l.hung, pid)
	delete(l.running, pid)
	if _, again := l.waiting[pid]; again {
		l.queue = append(l.queue, pid)
		l.more.Signal()
	}
	idle = len(l.queue) == 0
	l.mu.Unlock()
	c.err = err
	close(c.done)
	return idle
}

func (l *link) pullQueued(ctx context.Context) {
	t := &talk{host: l.s.cfg.Host, to: l.node, protocol: catalogueProtocol, life: ctx}
	defer t.close()
	for {
		pid, c := l.next()
		if c == nil {
			return
		}
		err := l.pull(ctx, t, pid)
		if err != nil && ctx.Err() == nil {
			// Nothing more to do here: the next exchange of heads finds the project
			// again, and it is not made due now, or a peer that refuses one project
			// would be asked in a loop.
			l.s.log.Debug("pull of a project's catalogue ended early", "node", l.node, "pid", pid, "error", err)
		}
		if l.finish(pid, c, err) {
			t.rest()
		}
	}
}

// followHeads exchanges heads now, at every sign that something changed with the
// peer, and at every poll.
func (l *link) followHeads(ctx context.Context) {
	t := &talk{host: l.s.cfg.Host, to: l.node, protocol: catalogueProtocol, life: ctx}
	defer t.close()
	wait := retryFirst
	for {
		begun := l.s.cfg.Now()
		calls, err := l.exchangeHeads(ctx, t)
		t.rest()
		if ctx.Err() != nil {
			return
		}
		l.exchanged(err)
		if err == nil {
			err = waitAll(ctx, calls)
			if ctx.Err() != nil {
				return
			}
		}
		l.attempted(begun, err)
		next := l.s.poll
		if err == nil {
			wait = retryFirst
		} else {
			next, wait = wait, min(2*wait, retryMost)
		}
		if !pause(ctx, jitter(next), l.headsDue) {
			return
		}
	}
}

// exchanged notes whether the peer answered, and says so when that changed.
func (l *link) exchanged(err error) {
	l.mu.Lock()
	if err == nil {
		clear(l.hung)
	}
	first := l.status.contactAt.IsZero() && l.status.err == nil
	before := l.status.err
	known := !l.status.contactAt.IsZero()
	l.status.err, l.status.asked = err, true
	if err == nil {
		l.status.contactAt = l.s.cfg.Now()
	}
	l.mu.Unlock()
	l.s.metrics.exchanges.WithLabelValues(outcome(err)).Inc()
	switch {
	case err != nil && before == nil && !known:
		// It may have joined a moment ago and be starting.
		l.s.log.Info("a site does not answer yet: trying until it does", "node", l.node, "site", l.site(), "error", err)
	case err != nil && before == nil:
		l.s.log.Warn("a site can't be reached for its catalogue: trying again until it can", "node", l.node, "site", l.site(), "error", err)
	case err == nil && (first || before != nil):
		l.s.log.Info("exchanging catalogues", "node", l.node, "site", l.site())
		wake(l.feedDue)
		l.s.peersChanged()
	}
}

// attempted notes whether everything that the peer had when its heads were asked
// for is here now.
func (l *link) attempted(begun time.Time, err error) {
	l.mu.Lock()
	l.status.attempted = true
	before := l.status.pullErr
	l.status.pullErr = nil
	if err == nil {
		l.status.syncedAt = begun
	} else if l.status.err == nil {
		l.status.pullErr = err
	}
	failing := l.status.pullErr
	l.mu.Unlock()
	if failing != nil && before == nil {
		l.s.log.Warn("a project's catalogue could not be pulled: trying again until it can", "node", l.node, "site", l.site(), "error", failing)
	}
	l.s.checkFirst()
}

func (l *link) site() string {
	n, _ := l.s.cfg.State.View().Node(l.node)
	return n.Site
}

func (l *link) state() peerState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// waitAll waits for pulls and gives the first error.
func waitAll(ctx context.Context, calls []*call) error {
	for _, c := range calls {
		select {
		case <-c.done:
			if c.err != nil {
				return c.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// wake makes a channel of capacity one ready; a nil channel stays quiet.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits for the time or for a wake; false when ctx ended.
func pause(ctx context.Context, d time.Duration, woken <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-woken:
	}
	return true
}

// jitter spreads polls so that nodes that started together do not ask together.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}

func outcome(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
