package swarm

import (
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
// The line is a generic cell rate algorithm (ITU-T I.371): one time, up to which all
// that was granted is paid for. What is given back moves that time back by as much,
// also from the middle of the line, which a reservation of x/time/rate can't.
type Limit struct {
	mu      sync.Mutex
	bits    uint64        // a second; 0: nothing is held back
	paid    time.Time     // that all grants are paid for at the rate; what passed since is saved up
	line    *line         // the one that places are in
	changed chan struct{} // closed by the next Set that changes something
}

// line is a Limit's line between two changes of its rate.
type line struct{ _ byte }

// NewLimit makes a Limit of so many bits a second; 0: no limit.
func NewLimit(bits uint64) *Limit {
	return &Limit{bits: bits, line: &line{}, changed: make(chan struct{})}
}

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

// Set changes the rate, also for those that wait: they line up again. What was
// saved up is gone, so that no change is a way around the limit.
func (l *Limit) Set(bits uint64) { l.setAt(bits, time.Now()) }

func (l *Limit) setAt(bits uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bits == l.bits {
		return
	}
	l.bits, l.paid, l.line = bits, now, &line{}
	close(l.changed)
	l.changed = make(chan struct{})
}

// Bits is the rate in bits a second; 0: no limit.
func (l *Limit) Bits() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bits
}

// place is a place in a Limit's line: from at on, n bytes may be asked for.
type place struct {
	limit *Limit
	line  *line
	at    time.Time
	n     int64
}

// queue lines up for n bytes, which may be more than is ever saved up.
func (l *Limit) queue(n int64, now time.Time) place {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := place{limit: l, line: l.line, at: now, n: n}
	if l.bits == 0 {
		return p
	}
	l.paid = l.from(now).Add(l.takes(n))
	if l.paid.After(now) {
		p.at = l.paid
	}
	return p
}

// more takes n bytes if they are there and nobody waits for them.
func (l *Limit) more(n int64, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bits == 0 {
		return true
	}
	paid := l.from(now).Add(l.takes(n))
	if paid.After(now) {
		return false
	}
	l.paid = paid
	return true
}

// giveBack returns bytes of a place that were not asked for. Those of a place before
// the last change of the rate are nobody's.
func (p place) giveBack(n int64) {
	l := p.limit
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.line == l.line && l.bits > 0 {
		l.paid = l.paid.Add(-l.takes(n))
	}
}

// stands says whether the place is still one: the rate did not change since.
func (p place) stands() bool {
	p.limit.mu.Lock()
	defer p.limit.mu.Unlock()
	return p.line == p.limit.line
}

// news is closed when the rate changes.
func (l *Limit) news() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}
