package swarm

import (
	"time"

	"github.com/portolan/portolan/node/identity"
)

// What nobody asked for yet (Want.Ahead) may cost those nothing who did. The share
// that each class has of a busy link is not for it: it asks only while the link is
// calm. So it comes while a client is between two blobs, or takes less than the link
// gives, and behind the last bytes of the blob that a client waits for.

// yields says whether nobody asked for the blob yet.
func (f *flight) yields() bool { return f.purpose() == classReplication && f.ahead.Load() }

// aside says whether the lane is to ask for nothing at the moment, for the sake of
// others; it is woken when it may. flight.mu is held.
func (l *lane) aside(now time.Time) bool {
	f := l.f
	if !f.s.pipes.aside(&l.waiter, f.yields()) {
		return false
	}
	f.moved.Store(now.UnixNano()) // nobody is silent
	f.s.pipes.forgoes(l.node, &l.waiter)
	return true
}

// awaitCalm waits until a blob of one unit may be asked for: it comes with the first
// request. Larger ones begin with the list alone.
func (f *flight) awaitCalm() error {
	f.mu.Lock()
	l := f.layout
	f.mu.Unlock()
	if l == nil || l.units() > 1 {
		return nil
	}
	w := &waiter{wake: make(chan struct{}, 1)}
	defer f.s.pipes.back(w)
	tick := time.NewTicker(laneTick)
	defer tick.Stop()
	for f.s.pipes.aside(w, f.yields()) {
		select {
		case <-w.wake:
		case <-tick.C:
		case <-f.relimited: // somebody came
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
	return nil
}

// aside says whether a waiter is to stand aside, if nobody asked for its blob yet. It is
// then woken when the link is calm.
func (ps *pipes) aside(w *waiter, ahead bool) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	w.ahead = ahead
	if !ahead || ps.calm() {
		delete(ps.asides, w)
		return false
	}
	ps.asides[w] = struct{}{}
	return true
}

// back lets go of a waiter that stood aside.
func (ps *pipes) back(w *waiter) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.asides, w)
}

// forgoes takes a waiter that stands aside out of its peer's line.
func (ps *pipes) forgoes(node identity.NodeID, w *waiter) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.of(node)
	if _, ok := p.waiting[w]; ok {
		delete(p.waiting, w)
		p.rouse() // those behind it
	}
}

// idle is how many of n bytes may be asked for that nobody asked for yet: what keeps
// the link busy and two units more. A client that comes for something else waits behind
// no more than that.
func (p *pipe) idle(unit, n int64) int64 {
	most := (p.holds()+unit-1)/unit*unit + 2*unit
	return max(0, min(n, (most-p.total())/unit*unit))
}

// holds is what is on the link itself while it is full; 0: not known.
func (p *pipe) holds() int64 { return int64(p.rate * p.delay.Seconds()) }

// opens notes a first request. Of what a client or a push waits for it may ask for units,
// which have no room yet. The function that it returns notes its end: if it was answered
// they take their room next, and who stands aside is woken when they came.
func (ps *pipes) opens(c class) (opened func(answered bool)) {
	if c >= classReplication {
		return func(bool) {}
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.firsts++
	return func(answered bool) {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		if ps.firsts--; !answered {
			ps.rouseAside()
		}
	}
}

// calm says whether a request takes nothing from what clients and pushes wait for: none
// of them waits for a first answer, or wants more of a peer than it was given room for,
// and what is on its way for them is no more than the link itself holds. All of it was
// sent, then, before the request is read. All peers count: they share this site's link.
// mu is held.
func (ps *pipes) calm() bool {
	if ps.firsts > 0 {
		return false
	}
	for _, p := range ps.peers {
		for _, c := range p.waiting {
			if c < classReplication {
				return false
			}
		}
		if p.above(classHurried) > p.holds() {
			return false
		}
	}
	return true
}

// rouseAside wakes those that stand aside when they may ask; mu is held.
func (ps *pipes) rouseAside() {
	if len(ps.asides) == 0 || !ps.calm() {
		return
	}
	for w := range ps.asides {
		wake(w.wake)
	}
}
