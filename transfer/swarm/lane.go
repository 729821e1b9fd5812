package swarm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// inflightBytes bounds what one flight asks for ahead of one peer: the
	// bandwidth times delay of 1 Gbit/s at 130 ms.
	inflightBytes = 16 << 20
	// runBytes is the most that one request asks for.
	runBytes = 8 << 20
	// laneTick is how often a lane that has nothing to ask for looks again:
	// patience ends with time alone.
	laneTick = 200 * time.Millisecond
)

// lane is what a flight takes from one peer, on one stream at a time. It has a
// goroutine of its own; between requests it gives the stream back.
type lane struct {
	f      *flight
	holder bool // taken from the round's field, to which it goes back
	candidate
	waiter waiter
	cancel context.CancelFunc

	mu      sync.Mutex // held while requests are chosen and written: they go out in order
	pumping bool       // guarded by mu: answers are taken

	// Guarded by flight.mu.
	asked  map[int]inRoom // units on their way
	ranks  rank           // as waiter has it
	early  *early         // of the unit that is read now; nil: it has no sub-states
	relist bool           // the blob's list is to be asked for once more
	trial  *trial         // as long as it lasts nothing else is asked for; nil: none
	err    error          // why it ended
}

// inRoom is a unit that was asked for.
type inRoom struct {
	class class // that its room was taken as
	bytes int64
	at    time.Time
}

// whole says whether the peer was asked as a holder, and as far as is known is
// one: hints may name a node that receives the blob itself. flight.mu is held.
func (l *lane) whole() bool {
	if !l.holder || l.f.sched == nil {
		return l.holder
	}
	p := l.f.sched.peers[l.node]
	return p == nil || p.whole
}

// start begins a lane to a node that has none (see flight.pop); flight.mu is not
// held. first has a session whose first answer is here, or is nil.
func (f *flight) start(c candidate, holder bool, first *contender, giveUp func() bool) *lane {
	ctx, cancel := context.WithCancel(f.ctx)
	if first != nil {
		own := cancel
		cancel = func() { own(); first.cancel() } // its stream ends with its own context
	}
	l := &lane{
		f: f, holder: holder, candidate: c, cancel: cancel, asked: map[int]inRoom{},
		waiter: waiter{wake: make(chan struct{}, 1)},
	}
	f.mu.Lock()
	f.lanes[c.node] = l
	f.mu.Unlock()
	f.flying.Go(func() {
		err := l.run(ctx, first, giveUp)
		cancel()
		l.drop()
		f.mu.Lock()
		l.err = err
		delete(f.lanes, c.node)
		f.past = append(f.past, l)
		f.mu.Unlock()
		f.stir()
		f.wakeLanes(nil) // what was asked here can be asked elsewhere
	})
	return l
}

// run takes units until the blob is complete (nil), or the peer is of no more
// use.
func (l *lane) run(ctx context.Context, first *contender, giveUp func() bool) error {
	f := l.f
	tick := time.NewTicker(laneTick)
	defer tick.Stop()
	again := false
	if first != nil {
		l.note(first.request)
		err := l.pump(ctx, first.ss, giveUp)
		first.release(reusable(err))
		gone := l.goesOn(ctx, err, &again)
		if err != nil && !gone {
			return err
		}
		if !gone && !f.listed() && f.units() == 0 && f.several() {
			return fmt.Errorf("%w: neither list nor units", errProtocol)
		}
	}
	for {
		o, stream, err := l.turn(ctx)
		if err != nil {
			return err
		}
		if stream == nil {
			if f.finished() {
				return nil
			}
			if l.forgotten() {
				if f.struckOut(l.node) {
					return f.outAs(l.node)
				}
				if l.holder {
					return errForgotten
				}
				return nil // a new one begins when it is heard of again
			}
			select {
			case <-l.waiter.wake:
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		ss, fresh, release, err := stream.open(ctx)
		if err != nil {
			return err
		}
		answers := ss.answers()
		if err = ss.ask(f.digest, l.pid, o); err == nil {
			err = l.pump(ctx, ss, giveUp)
		}
		release(reusable(err))
		if l.goesOn(ctx, err, &again) {
			continue
		}
		// A stream from the pool may be long dead: the peer deserves a fresh one.
		if err != nil && !fresh && !again && ss.answers() == answers && ctx.Err() == nil && !timedOut(err) && !errors.Is(err, errProtocol) {
			again = true
			l.drop()
			continue
		}
		if err != nil {
			return err
		}
		if o.record && !o.trial && !f.listed() && f.units() == 0 && f.several() {
			return fmt.Errorf("%w: neither list nor units", errProtocol)
		}
		again = false
	}
}

// goesOn says whether a lane whose stream ended so takes another one.
func (l *lane) goesOn(ctx context.Context, err error, again *bool) bool {
	if !l.f.s.sessions.anew(ctx, l.node, err, again) {
		return false
	}
	l.drop()
	l.unopened()
	return true
}

// reusable says whether nothing is outstanding on a session that ended so.
func reusable(err error) bool {
	var refused *refusedError
	return err == nil || errors.As(err, &refused)
}

// turn takes leave to have a stream, and then chooses what to ask for on it, in this
// order: who stands in line for a stream keeps neither room in the pipe nor units from
// those that could ask. nil: there is nothing to ask for at the moment.
func (l *lane) turn(ctx context.Context) (order, *ticket, error) {
	if !l.eager() {
		return order{}, nil, nil
	}
	need := l.f.need(l.node)
	need.waits = func() { l.f.s.pipes.forget(l.node, &l.waiter) } // nor a place at the pipe
	// Of one that passes through units are wanted again.
	if !l.f.pass {
		need.over = l.f.whole
	}
	t, err := l.f.s.sessions.ticket(ctx, l.node, need)
	if errors.Is(err, errOver) {
		return order{}, nil, nil
	}
	if err != nil {
		return order{}, nil, err
	}
	o, ok := l.next()
	if !ok {
		t.leave()
		return order{}, nil, nil
	}
	return o, &t, nil
}

// eager says whether there may be something to ask for.
func (l *lane) eager() bool {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	_, most := l.most()
	return (most > 0 || l.reopens() || l.trial != nil && !l.trial.asked) && !l.aside(time.Now())
}

// most is how many units may be asked for, of what size each; flight.mu is held.
func (l *lane) most() (unit int64, most int) {
	f := l.f
	if f.layout == nil || f.sched == nil || f.vessel == nil && f.layout.units() > 1 {
		return 0, 0
	}
	if l.trial != nil {
		f.s.pipes.forget(l.node, &l.waiter)
		return 0, 0
	}
	f.resync()
	unit = f.layout.unitSize
	most = min(maxRun, int(max(1, runBytes/unit)), int(max(1, inflightBytes/unit))-len(l.asked))
	if most <= 0 || !f.sched.useful(l.node) {
		f.s.pipes.forget(l.node, &l.waiter)
		return 0, 0
	}
	return unit, most
}

// plan chooses what to ask for, and takes the room that it needs.
func (l *lane) plan() (order, bool) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	unit, most := l.most()
	if most == 0 || l.aside(time.Now()) {
		return order{}, false
	}
	c := f.purpose()
	l.stand(f.rank(c))
	f.sched.wanted(l.node, f.s.pipes.wanted(l.node, &l.waiter, c, f.sched.fresh(l.node)))
	now := time.Now()
	limit := f.limit()
	if limit != nil {
		piece := max(1, min(unit, f.layout.size))
		granted := f.granted(limit, piece)
		if granted < piece {
			// It waits for its own rate: nobody is silent, and it takes no place at
			// the pipe from who could ask.
			f.moved.Store(now.UnixNano())
			f.s.pipes.forget(l.node, &l.waiter)
			return order{}, false
		}
		// With a high rate more than a unit is there.
		for ; granted < int64(min(most, f.sched.left))*piece && limit.more(piece); granted += piece {
			f.held.left += piece
		}
		most = min(most, int(granted/piece))
	}
	room := f.s.pipes.reserve(l.node, &l.waiter, c, unit, most)
	if room == 0 {
		// It waits for other blobs: as long as those come, that is no silence.
		if f.s.pipes.crowded() || f.s.sessions.heardWithin(l.node, f.s.cfg.Stall) {
			f.moved.Store(now.UnixNano())
		}
		return order{}, false
	}
	f.sched.paced(l.node, f.s.pipes.unitTook(l.node))
	o, ok := f.sched.next(l.node, room, now, f.standing())
	o.class, o.subs = c, ok && f.worthSplitting(l.node, o)
	spare := int64(room) * unit
	for i := o.first; i < o.first+o.n; i++ {
		_, n := f.layout.span(i)
		l.asked[i] = inRoom{c, n, now}
		spare -= n // the last unit may be short
		if limit != nil {
			f.held.left -= n
		}
	}
	f.s.pipes.release(l.node, c, spare, true)
	return o, ok
}

// stand says where the lane's flight stands among those that wait for its peer;
// flight.mu is held.
func (l *lane) stand(r rank) {
	if l.ranks != r {
		l.ranks = r
		l.f.s.pipes.stands(&l.waiter, r)
	}
}

// note enters what was asked for before there was a lane.
func (l *lane) note(o order) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.layout == nil || f.sched == nil {
		return
	}
	c, now := f.purpose(), time.Now()
	for i := o.first; i < min(o.first+o.n, f.layout.units()); i++ {
		_, n := f.layout.span(i)
		f.s.pipes.force(l.node, c, n)
		l.asked[i] = inRoom{c, n, now}
		f.sched.asked(i, l.node, now)
	}
}

// onTrial says whether the peer was asked for its own list.
func (l *lane) onTrial() bool {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	return l.trial != nil && l.trial.asked
}

// forgotten says that nothing is known any more of what the peer has: it could
// not be watched, or lied.
func (l *lane) forgotten() bool {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sched != nil && f.sched.peers[l.node] == nil
}

// landed notes that a unit came, or will not come, and frees its room.
func (l *lane) landed(unit int, lost bool) {
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	in, ok := l.asked[unit]
	if !ok {
		return
	}
	delete(l.asked, unit)
	if lost {
		l.f.sched.landed(unit, l.node)
	} else {
		l.f.s.pipes.came(l.node, time.Since(in.at))
	}
	l.f.s.pipes.release(l.node, in.class, in.bytes, lost)
}

// drop puts back all that was asked for.
func (l *lane) drop() {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	f.s.pipes.forget(l.node, &l.waiter)
	for unit, in := range l.asked {
		f.sched.landed(unit, l.node)
		f.s.pipes.release(l.node, in.class, in.bytes, true)
	}
	clear(l.asked)
	if l.trial != nil { // it is asked for once more, if the lane goes on
		l.trial = &trial{unit: l.trial.unit}
	}
}

// fill asks for as much as there is room for.
func (l *lane) fill(ss *session) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pumping {
		return nil
	}
	for {
		o, ok := l.next()
		if !ok {
			return nil
		}
		if err := ss.ask(l.f.digest, l.pid, o); err != nil {
			return err
		}
	}
}

// pump takes answers until none is outstanding, and asks for more meanwhile:
// after each, and when the lane is woken.
func (l *lane) pump(ctx context.Context, ss *session, giveUp func() bool) error {
	f := l.f
	f.touch(l.node, 1)
	defer f.touch(l.node, -1)
	ss.giveUp = giveUp
	ss.came = func(n int) {
		f.moved.Store(time.Now().UnixNano())
		f.came.Add(int64(n))
	}
	ss.splits = l.splits
	defer func() { ss.giveUp, ss.came, ss.splits = nil, nil, nil }()
	l.mu.Lock()
	l.pumping = true
	l.mu.Unlock()
	stop := make(chan struct{})
	var asking sync.WaitGroup
	defer asking.Wait()
	defer close(stop)
	asking.Go(func() {
		for {
			select {
			case <-l.waiter.wake:
				if l.fill(ss) != nil {
					_ = ss.st.Reset() // the next answer tells
				}
			case <-stop:
				return
			case <-ctx.Done():
				return
			}
		}
	})
	for {
		if err := l.fill(ss); err != nil {
			return err
		}
		l.mu.Lock()
		idle := ss.requests() == 0
		l.pumping = !idle
		l.mu.Unlock()
		if idle {
			return nil
		}
		if err := l.step(ctx, ss); err != nil {
			return err
		}
	}
}
