package swarm

import (
	"slices"
	"sync"
	"time"

	"github.com/portolan/portolan/node/store/units"
)

// limitBurst is how long a Limit's rate may be saved up: what a late tick loses
// is made up for.
const limitBurst = 250 * time.Millisecond

// Limit holds back blobs that share a bandwidth into this node: all flights
// whose Wants name it. They stand in one line, a unit at a time, so that each
// gets its share. Its zero value is not usable; it is safe for concurrent use.
//
// It is a token bucket, kept as the time up to which all that was granted is paid for
// (the generic cell rate algorithm of ITU-T I.371), with its line beside it: who stands
// there has paid for nothing and can leave, which a reservation of x/time/rate can't
// without losing what was reserved after it.
type Limit struct {
	mu    sync.Mutex
	bits  uint64      // a second; 0: nothing is held back
	paid  time.Time   // what passed since is saved up
	line  []*place    // who waits, the first one first
	due   time.Time   // when that one has its turn
	timer *time.Timer // then; nil: nobody has waited yet
	era   int         // counts the changes of the rate
}

// NewLimit makes a Limit of so many bits a second; 0: no limit.
func NewLimit(bits uint64) *Limit { return &Limit{bits: bits} }

// takes is how long n bytes take at the rate, which is not 0; mu is held.
func (l *Limit) takes(n int64) time.Duration {
	return time.Duration(float64(n) * 8 / float64(l.bits) * float64(time.Second))
}

// from is the time up to which all is paid for, with no more saved up than the larger
// of a unit and limitBurst; mu is held, and the rate is not 0.
func (l *Limit) from(now time.Time) time.Time {
	if most := now.Add(-max(limitBurst, l.takes(units.Unit))); l.paid.Before(most) {
		return most
	}
	return l.paid
}

// Set changes the rate, also for those that wait. What was saved up is gone, so that no
// change is a way around the limit.
func (l *Limit) Set(bits uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bits == l.bits {
		return
	}
	now := time.Now()
	l.bits, l.paid = bits, now
	l.era++
	l.first(now)
}

// Bits is the rate in bits a second; 0: no limit.
func (l *Limit) Bits() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bits
}

// place is a place in a Limit's line, for n bytes.
type place struct {
	limit *Limit
	n     int64
	wake  func()
	ok    bool // granted; guarded by limit.mu, as is era
	era   int  // in which it was
}

// queue lines up for n bytes, which may be more than is ever saved up. wake is called,
// without locks, when they are granted later.
func (l *Limit) queue(n int64, wake func()) *place {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &place{limit: l, n: n, wake: wake}
	if l.bits == 0 {
		p.ok, p.era = true, l.era
		return p
	}
	l.line = append(l.line, p)
	if len(l.line) > 1 {
		return p
	}
	now := time.Now()
	if l.due = l.from(now).Add(l.takes(n)); l.due.After(now) {
		l.arm(now)
	} else {
		l.grant()
	}
	return p
}

// grant gives the first in line what it waits for; mu is held.
func (l *Limit) grant() *place {
	p := l.line[0]
	l.line = slices.Delete(l.line, 0, 1)
	p.ok, p.era, l.paid = true, l.era, l.due
	return p
}

// first says when the first in line, who is new there, or waits for another rate, has its
// turn; mu is held.
func (l *Limit) first(now time.Time) {
	switch {
	case len(l.line) == 0:
		if l.timer != nil {
			l.timer.Stop()
		}
		return
	case l.bits == 0:
		l.due = now
	default:
		l.due = l.from(now).Add(l.takes(l.line[0].n))
	}
	l.arm(now)
}

// arm has the first in line served when it is due; mu is held.
func (l *Limit) arm(now time.Time) {
	if wait := max(0, l.due.Sub(now)); l.timer == nil {
		l.timer = time.AfterFunc(wait, l.serve)
	} else {
		l.timer.Reset(wait)
	}
}

// serve grants what is due.
func (l *Limit) serve() {
	var granted []*place
	l.mu.Lock()
	for now := time.Now(); len(l.line) > 0 && !l.due.After(now); l.first(now) {
		granted = append(granted, l.grant())
	}
	l.mu.Unlock()
	for _, p := range granted {
		p.wake()
	}
}

// more takes n bytes if they are there and nobody waits for them.
func (l *Limit) more(n int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bits == 0 {
		return true
	}
	now := time.Now()
	paid := l.from(now).Add(l.takes(n))
	if len(l.line) > 0 || paid.After(now) {
		return false
	}
	l.paid = paid
	return true
}

// granted says whether the bytes may be asked for.
func (p *place) granted() bool {
	p.limit.mu.Lock()
	defer p.limit.mu.Unlock()
	return p.ok
}

// leave gives up the place, or gives back all that was granted.
func (p *place) leave() {
	l := p.limit
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.ok {
		l.back(p, p.n)
		return
	}
	if at := slices.Index(l.line, p); at >= 0 {
		l.line = slices.Delete(l.line, at, at+1)
		if at == 0 {
			l.first(time.Now())
		}
	}
}

// giveBack returns so many of the granted bytes, which were not asked for.
func (p *place) giveBack(n int64) {
	p.limit.mu.Lock()
	defer p.limit.mu.Unlock()
	p.limit.back(p, n)
}

// back takes bytes back that were granted at this rate; mu is held. Who is first in line
// has its turn the sooner, never later.
func (l *Limit) back(p *place, n int64) {
	if p.era != l.era || l.bits == 0 {
		return
	}
	l.paid = l.paid.Add(-l.takes(n))
	if len(l.line) == 0 {
		return
	}
	now := time.Now()
	if due := l.from(now).Add(l.takes(l.line[0].n)); due.Before(l.due) {
		l.due = due
		l.arm(now)
	}
}
