package swarm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
)

const (
	// hedgeAfter is how long the best holder may leave a waiting client's request
	// unanswered before the next one is asked as well: more than a round trip of
	// the longest link, so that a working link is not paid for twice.
	hedgeAfter = 400 * time.Millisecond
	// hedgeNext follows for each further holder: five are asked before a client is
	// told that none answers.
	hedgeNext = 100 * time.Millisecond
	// quietFor is how long a holder may send nothing in the middle of a blob, or
	// leave the request of a flight without clients unanswered, when somebody else
	// can go on with it: longer than a retransmission or two.
	quietFor = 2 * time.Second
	// maxContenders bounds the holders asked for one blob at a time. Each that
	// turns out to be only slow has sent at most firstRun units in vain.
	maxContenders = 6
)

// errQuiet is a holder that sends nothing while another one could.
var errQuiet = errors.New("sends nothing, and others have the blob")

// candidate is a holder that may be asked on behalf of a project.
type candidate struct {
	node identity.NodeID
	pid  identity.ProjectID
	// again: it was silent in this round before. It is asked when no one else is
	// left, and then has the whole stall time.
	again bool
}

// field is the holders of one round, best first, and what became of them.
type field struct {
	mu    sync.Mutex
	left  []candidate
	seen  map[candidate]bool
	out   map[identity.NodeID]bool // no use in asking again in this round
	busy  map[identity.NodeID]bool // being asked
	tried int

	unreachable     []identity.NodeID
	noList, noBytes error
}

// enter adds the holders that are not in the field yet and says whether there
// were any.
func (f *flight) enter(q *field) bool {
	more := false
	var nodes []identity.NodeID
	// May take a while: not under the field's lock.
	holders := f.s.cfg.Holders.Holders(f.ctx, f.digest, f.pid, f.size)
	q.mu.Lock()
	for _, node := range holders {
		c := candidate{node: node, pid: f.pid}
		if node == f.s.cfg.Host.ID() || q.seen[c] {
			continue
		}
		q.seen[c] = true
		q.left = append(q.left, c)
		nodes = append(nodes, node)
		more = more || !q.out[node] && !q.busy[node] && !f.sends(node)
	}
	q.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range nodes {
		if !slices.Contains(f.known, n) {
			f.known = append(f.known, n)
		}
	}
	return more
}

// pop takes the best candidate that can be asked out of the field. A node that
// has a lane, or is being asked, is not asked again meanwhile: it has one lane at
// most.
func (f *flight) pop(q *field) (candidate, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := 0; i < len(q.left); {
		c := q.left[i]
		switch {
		case f.struckOut(c.node):
			q.noBytes = ErrBadHolders
			fallthrough
		case q.out[c.node]:
			q.left = slices.Delete(q.left, i, i+1)
		case q.busy[c.node] || f.sends(c.node):
			i++
		default:
			q.left = slices.Delete(q.left, i, i+1)
			q.busy[c.node] = true
			q.tried++
			return c, true
		}
	}
	return candidate{}, false
}

// others says whether somebody is left who was not silent before.
func (f *flight) others(q *field) bool {
	return f.anyLeft(q, true) || f.enter(q)
}

// anyLeft says whether somebody in the field can still be asked.
func (f *flight) anyLeft(q *field, fresh bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.ContainsFunc(q.left, func(c candidate) bool {
		return !(fresh && c.again) && !q.busy[c.node] && !q.out[c.node] && !f.struckOut(c.node) && !f.sends(c.node)
	})
}

// struckOut says whether a peer sent too much that is wrong.
func (f *flight) struckOut(node identity.NodeID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.strikes[node] >= maxStrikes
}

// sends says whether there is a lane to a node.
func (f *flight) sends(node identity.NodeID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lanes[node] != nil
}

// setBack notes what became of a candidate. The error says so.
func (f *flight) setBack(q *field, c candidate, err error) {
	if errors.Is(err, errProtocol) {
		err = f.blameList(c.node, err)
	}
	var refused *refusedError
	reason := "unreachable"
	q.mu.Lock()
	switch {
	case errors.Is(err, errQuiet):
		reason = "silent"
		if c.again {
			q.out[c.node] = true
			q.unreachable = append(q.unreachable, c.node)
			break
		}
		c.again = true
		q.left = append(q.left, c)
	case errors.Is(err, errAside):
		reason, q.noBytes = "contested", ErrBadHolders
		q.out[c.node] = true
	case errors.Is(err, errBad):
		reason, q.noBytes = "bad", ErrBadHolders
		q.out[c.node] = true
	case errors.As(err, &refused) && refused.status == Status_STATUS_DENIED:
		// Perhaps on behalf of another project; or the holder has not heard yet
		// that the blob is in this one.
		reason = "refused"
		q.unreachable = append(q.unreachable, c.node)
	case errors.As(err, &refused):
		reason = "refused"
		q.out[c.node] = true
		switch refused.status {
		case Status_STATUS_NO_LIST:
			q.noList = store.ErrNoRecord
		case Status_STATUS_UNREADABLE:
			q.unreachable = append(q.unreachable, c.node)
		}
	default:
		q.out[c.node] = true
		q.unreachable = append(q.unreachable, c.node)
	}
	delete(q.busy, c.node)
	q.mu.Unlock()
	f.s.log.Info("holder gave up for a blob", "digest", f.digest, "node", c.node, "site", f.s.site(c.node), "reason", reason, "error", err)
	f.s.metrics.failovers.WithLabelValues(reason).Inc()
}

// verdict is why nobody in the field could give the blob.
func (f *flight) verdict(q *field) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case len(q.unreachable) > 0:
		return f.s.unreachable(q.unreachable)
	case q.noBytes != nil:
		f.mu.Lock()
		f.abandoned = true // it may be the list that is wrong
		f.mu.Unlock()
		return fmt.Errorf("blob %s: %w", f.digest, q.noBytes)
	case q.noList != nil:
		return fmt.Errorf("blob %s: %w", f.digest, q.noList)
	}
	return fmt.Errorf("blob %s: no holder known: %w", f.digest, store.ErrNotFound)
}

// opening is the first request to a holder. A client that waits gets the first
// units with it; else the record alone is asked for: what other receivers take
// is not known yet, and the holder is to send each unit once.
func (f *flight) opening() order {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.layout
	switch hurry := f.reading.Load() > 0 || f.pass; {
	case l == nil:
		return order{record: true}
	case l.units() == 1:
		return order{record: true, n: 1}
	case f.vessel == nil && !f.complete:
		if f.begun || !hurry {
			return order{record: true} // what is here shows with the list
		}
		n := min(firstRun, l.units())
		if f.pass {
			n = min(n, passUnits(l.unitSize))
		}
		return order{record: true, n: n}
	case !hurry:
		return order{}
	}
	f.resync()
	return f.sched.first(firstRun, f.standing())
}

// contender is a holder that was asked and has not answered, or the one that
// did.
type contender struct {
	candidate
	request order
	cancel  context.CancelFunc
	ss      *session
	release func(reuse bool)
	err     error
}

// contact asks holders until one answers with content, and gives that one: the
// others asked at the same time are let go of. nil: nobody does, or the flight
// is at its end.
func (f *flight) contact(q *field) *contender {
	var (
		won      atomic.Bool
		answers  = make(chan *contender, maxContenders)
		running  []*contender // in the order in which they were asked
		urgent   = f.urgent
		complete = f.whole
		hurry    = false
		timer    = time.NewTimer(0)
	)
	defer timer.Stop()
	start := func(c candidate) {
		ctx, cancel := context.WithCancel(f.ctx)
		ct := &contender{candidate: c, request: f.opening(), cancel: cancel}
		ct.request.class = f.purpose()
		f.mu.Lock()
		ct.request.subs = f.worthSplitting(c.node, ct.request)
		f.mu.Unlock()
		running = append(running, ct)
		f.watch(c.node, c.pid)
		f.touch(c.node, 1)
		f.asking.Go(func() {
			defer f.touch(c.node, -1)
			opened := f.s.pipes.opens(ct.request.class)
			ct.err = f.approach(ctx, ct)
			opened(ct.err == nil)
			if ct.err == nil && !won.CompareAndSwap(false, true) {
				ct.release(false)
				ct.err = errQuiet
			}
			if ct.err != nil {
				cancel()
			}
			answers <- ct
		})
	}
	for {
		select {
		case <-timer.C:
			if len(running) < maxContenders {
				if c, ok := f.pop(q); ok {
					start(c)
				}
			}
			switch {
			case !hurry:
				timer.Reset(quietFor)
			case len(running) > 1:
				timer.Reset(hedgeNext)
			default:
				timer.Reset(hedgeAfter)
			}
		case <-urgent:
			urgent, hurry = nil, true
			if len(running) > 0 {
				timer.Reset(hedgeAfter)
			}
		case ct := <-answers:
			at := slices.Index(running, ct)
			running = slices.Delete(running, at, at+1)
			if ct.err == nil {
				f.letGo(q, running, at)
				return ct // and stays busy as long as it sends
			}
			f.setBack(q, ct.candidate, ct.err)
			timer.Reset(0)
		case <-f.ctx.Done():
			if !won.CompareAndSwap(false, true) {
				// One answered just now. What it holds must be given back.
				for ct := range answers {
					if ct.err == nil {
						return ct // drive finds the context at its end
					}
				}
			}
			return nil // the others' contexts are the flight's
		case <-complete:
			// Other receivers had all of it. Who answers from now on has lost.
			complete = nil
			if won.CompareAndSwap(false, true) {
				for _, ct := range running {
					ct.cancel()
				}
				return nil
			}
		}
		if len(running) == 0 && !f.anyLeft(q, false) {
			return nil
		}
	}
}

// letGo ends the requests to those that did not answer first. Only who was asked
// before the winner is behind.
func (f *flight) letGo(q *field, running []*contender, before int) {
	for i, ct := range running {
		ct.cancel()
		if i < before {
			f.setBack(q, ct.candidate, fmt.Errorf("no answer before another holder's: %w", errQuiet))
			continue
		}
		q.mu.Lock()
		delete(q.busy, ct.node)
		q.left = append([]candidate{ct.candidate}, q.left...)
		q.mu.Unlock()
	}
}

// approach asks one holder and waits for the head of its first answer. nil: it
// sends, and ct has the session.
func (f *flight) approach(ctx context.Context, ct *contender) error {
	for again := false; ; {
		ss, fresh, release, err := f.s.sessions.get(ctx, ct.node, f.need(ct.node))
		if err != nil {
			return err
		}
		ss.giveUp = nil
		if err = ss.ask(f.digest, ct.pid, ct.request); err == nil {
			err = ss.peek()
		}
		if err == nil {
			ct.ss, ct.release = ss, release
			return nil
		}
		var refused *refusedError
		answered := errors.As(err, &refused)
		release(answered)
		if f.s.sessions.anew(ctx, ct.node, err, &again) {
			continue
		}
		// A stream from the pool may be long dead: the holder deserves a fresh one.
		// One that is merely silent tells of the holder.
		if fresh || answered || ctx.Err() != nil || timedOut(err) || errors.Is(err, errProtocol) {
			return err
		}
	}
}

// touch counts a holder among those that the flight waits for.
func (f *flight) touch(node identity.NodeID, by int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.asked[node] += by; f.asked[node] == 0 {
		delete(f.asked, node)
	}
}

// holders are those that were thought of.
func (f *flight) holders() []identity.NodeID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.known)
}

// alive says whether one of those that the flight waits for shows a sign of
// life: bytes on any stream, a handshake, or an answer of its muxer within
// lifeWithin. It gives the time until the next look, 0: nobody does. Who waits for
// nobody waits for this node.
func (f *flight) alive(ctx context.Context) (again time.Duration) {
	f.mu.Lock()
	asked := slices.Collect(maps.Keys(f.asked))
	f.mu.Unlock()
	if len(asked) == 0 {
		return lookAgain / 20
	}
	ctx, cancel := context.WithTimeout(ctx, lifeWithin)
	defer cancel()
	signs := make(chan bool, len(asked))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, node := range asked {
		if f.s.sessions.heardWithin(node, lookAgain) {
			return lookAgain
		}
		wg.Go(func() { signs <- f.s.cfg.Host.Responds(ctx, node) })
	}
	for range asked {
		if <-signs {
			return lookAgain
		}
	}
	return 0
}
