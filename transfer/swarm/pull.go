package swarm

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/portolan/portolan/node/identity"
)

const (
	// maxLanes bounds the peers that one blob comes from at a time.
	maxLanes = 16
	// maxHolders bounds the holders among them. A further one is only asked if the
	// blob would take longer than moreAfter from those that send: bytes from the
	// nearest cost least.
	maxHolders = 4
	moreAfter  = 2 * time.Second
	// restFor is how long a receiver that failed is not asked again.
	restFor = 3 * time.Second
	// driveTick is how often the flight looks whether it is quick enough.
	driveTick = time.Second
)

var (
	// errNoHolder ends a drive in which no holder sends any more.
	errNoHolder = errors.New("no holder sends")
	// errStalled ends a drive in which nothing came for the stall time: a round
	// begins anew, with all holders.
	errStalled = errors.New("nothing came for the stall time")
	// errForgotten ends a lane to a holder that nothing is expected of any more.
	errForgotten = errors.New("says no longer that it has the blob")
)

// drive takes what is missing from the holder that answered, if there is one,
// and from other receivers. nil: every unit is here. It ends when nothing came
// for the stall time, whoever promises something. Invariant T6.
func (f *flight) drive(ct *contender, q *field) error {
	if ct != nil {
		f.mu.Lock()
		if f.sched != nil && f.sched.peers[ct.node] == nil {
			f.sched.holder(ct.node)
		}
		f.mu.Unlock()
		f.start(ct.candidate, true, ct, f.patience(ct.candidate, q))
	}
	f.moved.Store(time.Now().UnixNano())
	began, before := time.Now(), f.units()
	tick := time.NewTicker(driveTick)
	defer tick.Stop()
	for {
		holders, err := f.ends(q)
		if err != nil {
			return err
		}
		if f.ctx.Err() != nil {
			return f.ctx.Err()
		}
		if f.isComplete() && (!f.pass || holders == 0) {
			return nil
		}
		if holders == 0 && (ct != nil || !f.hopeful() || f.anyLeft(q, true)) {
			return errNoHolder
		}
		if f.stalled() {
			return errStalled
		}
		select {
		case <-f.recruit():
		case <-f.stirred:
		case <-f.whole:
			if f.pass { // the reader may be far behind
				select {
				case <-f.stirred:
				case <-f.ctx.Done():
				}
			}
		case <-tick.C:
			if holders == 0 {
				f.enter(q)
			} else if f.slow(began, before) && holders < maxHolders {
				f.another(q)
			}
		case <-f.ctx.Done():
		}
	}
}

// stalled says whether nothing came for the stall time, although this node had
// room for it. A blob that passes through waits for its reader instead.
func (f *flight) stalled() bool {
	return !f.pass && f.keeping.Load() == 0 && time.Since(time.Unix(0, f.moved.Load())) > f.s.cfg.Stall
}

// ownTime marks time that this node itself takes (memory, the disk): nobody's
// silence. The function that it returns ends it.
func (f *flight) ownTime() func() {
	f.keeping.Add(1)
	return func() {
		f.moved.Store(time.Now().UnixNano())
		f.keeping.Add(-1)
	}
}

// patience is what a session asks when its peer has been silent for a while:
// whether others can go on.
func (f *flight) patience(c candidate, q *field) func() bool {
	if c.again {
		return nil
	}
	return func() bool { return f.silent(c.node) && (f.elsewhere(c.node) || f.others(q)) }
}

// silent says whether nothing came from a peer on any stream. On a slow link what
// other blobs asked for takes longer than silence may last; what was asked for
// behind it would come all the same, after a stream was given up for it.
func (f *flight) silent(node identity.NodeID) bool {
	return !f.s.sessions.heardWithin(node, min(quietFor, f.s.cfg.Stall))
}

// elsewhere says whether all that was asked of a peer can be had from others, and
// somebody else has a lane.
func (f *flight) elsewhere(node identity.NodeID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.lanes[node]
	if l == nil || f.sched == nil || len(f.lanes) < 2 {
		return false
	}
	for unit := range l.asked {
		if !f.sched.elsewhere(unit, node) {
			return false
		}
	}
	return true
}

// ends looks at the lanes that ended and says how many holders send. The error
// is one that no other peer would help against.
func (f *flight) ends(q *field) (holders int, err error) {
	f.mu.Lock()
	ended := f.past
	f.past = nil
	for _, l := range f.lanes {
		if l.whole() {
			holders++
		}
	}
	f.mu.Unlock()
	for _, l := range ended {
		switch {
		case l.err == nil || f.ctx.Err() != nil:
		case errors.Is(l.err, errLocal) || errors.Is(l.err, errContested):
			err = l.err
		case l.holder:
			f.setBack(q, l.candidate, l.err)
			f.forsake(l.node)
		default:
			f.rest(l.candidate, l.err)
		}
	}
	return holders, err
}

// forsake: nothing is expected of a holder that failed, until it is contacted
// again. What a receiver says that it has stays true: it is said once.
func (f *flight) forsake(node identity.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sched == nil {
		return
	}
	if p := f.sched.peers[node]; p != nil && p.whole {
		f.sched.leave(node)
	}
}

// rest leaves a receiver that failed alone for a while.
func (f *flight) rest(c candidate, err error) {
	reason := "receiver"
	if errors.Is(err, errProtocol) {
		err = f.blameList(c.node, err)
	}
	f.mu.Lock()
	f.resting[c.node] = time.Now().Add(restFor)
	if f.strikes[c.node] >= maxStrikes && f.sched != nil {
		if reason = "bad"; errors.Is(err, errAside) {
			reason = "contested"
		}
		f.sched.leave(c.node)
	}
	f.mu.Unlock()
	f.s.log.Info("receiver gave up for a blob", "digest", f.digest, "node", c.node, "site", f.s.site(c.node), "reason", reason, "error", err)
	f.s.metrics.failovers.WithLabelValues(reason).Inc()
}

// hopeful says whether some receiver has what is missing, or may get it: there is
// a lane to it. How long that is hoped for is drive's to say.
func (f *flight) hopeful() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sched == nil {
		return false
	}
	for node, p := range f.sched.peers {
		if !p.whole && f.strikes[node] < maxStrikes && (f.lanes[node] != nil || f.vessel != nil && f.sched.useful(node)) {
			return true
		}
	}
	return false
}

// recruit watches those that receive the blob as well, and starts a lane to each
// that has something. The channel tells when to call it again, nil: not by time.
func (f *flight) recruit() <-chan time.Time {
	if f.pass || !f.several() {
		return nil
	}
	again := f.regroup()
	f.mu.Lock()
	if f.sched == nil {
		f.mu.Unlock()
		return again
	}
	var nodes []identity.NodeID
	if f.vessel != nil {
		now := time.Now()
		for node, p := range f.sched.peers {
			if p.whole || f.lanes[node] != nil || f.strikes[node] >= maxStrikes || now.Before(f.resting[node]) || !f.sched.useful(node) {
				continue
			}
			if len(f.lanes)+len(nodes) < maxLanes {
				nodes = append(nodes, node)
			}
		}
	}
	asked := make([]candidate, len(nodes))
	for i, node := range nodes {
		// It was watched on behalf of a project that it and this node share.
		asked[i] = candidate{node: node, pid: f.watches[node]}
	}
	f.mu.Unlock()
	for _, c := range asked {
		f.start(c, false, nil, func() bool { return f.silent(c.node) && f.elsewhere(c.node) })
	}
	return again
}

// slow says whether what is missing will take long at the rate so far.
func (f *flight) slow(began time.Time, before int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pass || f.sched == nil || f.vessel == nil || f.limit() != nil || f.yields() {
		return false // one that is held, or stands aside, is not slow because of its peers
	}
	took := time.Since(began)
	came := max(1, f.have-before)
	return float64(f.sched.left)*took.Seconds()/float64(came) > moreAfter.Seconds()
}

// another starts a lane to one more holder.
func (f *flight) another(q *field) {
	f.enter(q)
	if !f.anyLeft(q, true) {
		return
	}
	c, ok := f.pop(q)
	if !ok {
		return
	}
	f.mu.Lock()
	if f.sched.peers[c.node] == nil {
		f.sched.holder(c.node)
	}
	f.mu.Unlock()
	f.watch(c.node, c.pid)
	f.start(c, true, nil, f.patience(c, q))
}

// dismiss ends all lanes. Those with nothing under way keep their streams.
func (f *flight) dismiss() {
	f.mu.Lock()
	for _, l := range f.lanes {
		if len(l.asked) > 0 || !f.complete {
			l.cancel()
		}
	}
	f.mu.Unlock()
	f.wakeLanes(nil)
	f.flying.Wait()
	f.mu.Lock()
	f.past = nil // by us: it says nothing of their peers
	f.mu.Unlock()
}

// several says whether the blob is known to have more than one unit.
func (f *flight) several() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.layout != nil && f.layout.units() > 1
}

// finished says whether there is nothing left to ask for.
func (f *flight) finished() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resync()
	return f.complete && (f.sched.left == 0 || f.over)
}

// standing gives the units in which readers are, sorted; mu is held.
func (f *flight) standing() []int {
	at := make([]int, 0, len(f.positions))
	for _, i := range f.positions {
		if i < f.layout.units() {
			at = append(at, i)
		}
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// resync takes over what a window has, and what it has room for: it lets go of what
// its reader leaves behind, and a reader may turn back. mu is held.
func (f *flight) resync() {
	w, passing := f.vessel.(*window)
	if !passing {
		return
	}
	f.sched.from, f.sched.until = w.wants()
	for i := range f.sched.n {
		if !w.Has(i) {
			f.sched.miss(i)
		} else if !f.sched.have.has(i) {
			f.sched.got(i, identity.NodeID{})
		}
	}
}

// follow moves the window of a flight that passes through to its reader's unit: there
// is room for others then, which are asked for.
func (f *flight) follow(w *window, i int) {
	if w.move(i) {
		f.mu.Lock()
		if !f.last.IsZero() {
			f.last = time.Now() // that nothing came meanwhile was the client's doing
		}
		f.mu.Unlock()
		f.wakeLanes(nil)
	}
}

// stir tells the flight's goroutine that something changed.
func (f *flight) stir() { wake(f.stirred) }

// wakeLanes makes lanes look for something to ask for: one, or all if node is
// nil.
func (f *flight) wakeLanes(node *identity.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, l := range f.lanes {
		if node == nil || n == *node {
			wake(l.waiter.wake)
		}
	}
}

// blameList puts a peer out that sent what no honest one sends.
func (f *flight) blameList(node identity.NodeID, err error) error {
	f.mu.Lock()
	f.strikes[node] = maxStrikes
	f.mu.Unlock()
	f.s.suspects.add(node, f.digest, "a record or list of units that is refused")
	f.s.metrics.badLists.WithLabelValues(node.String()).Inc()
	f.s.log.Warn("peer sent a record or list that is refused", "digest", f.digest, "node", node, "site", f.s.site(node), "error", err)
	return fmt.Errorf("%w: %w", errBad, err)
}
