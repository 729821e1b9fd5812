package swarm

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/portolan/portolan/node/store/units"
)

// limitBurst is how long a Limit's rate may be saved up: what a late tick loses
// is made up for.
const limitBurst = 250 * time.Millisecond

// Limit holds back blobs that share a bandwidth into this node: all flights
// whose Wants name it. They stand in one line, a unit at a time, so that each
// gets its share. Its zero value is not usable; it is safe for concurrent use.
type Limit struct {
	mu      sync.Mutex
	bits    uint64        // a second; 0: nothing is held back
	line    *rate.Limiter // nil: bits is 0
	spare   int64         // bytes that were granted and not asked for
	changed chan struct{} // closed by the next Set that changes something
}

// NewLimit makes a Limit of so many bits a second; 0: no limit.
func NewLimit(bits uint64) *Limit {
	l := &Limit{changed: make(chan struct{})}
	l.bits, l.line = bits, lineOf(bits)
	return l
}

// lineOf makes a full bucket: the larger of a unit and limitBurst.
func lineOf(bits uint64) *rate.Limiter {
	if bits == 0 {
		return nil
	}
	bytes := float64(bits) / 8
	return rate.NewLimiter(rate.Limit(bytes), int(max(float64(units.Unit), bytes*limitBurst.Seconds())))
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
	l.bits, l.line, l.spare = bits, lineOf(bits), 0
	if l.line != nil {
		l.line.AllowN(now, l.line.Burst())
	}
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
	line  *rate.Limiter
	at    time.Time
	n     int64
}

// queue lines up for n bytes.
func (l *Limit) queue(n int64, now time.Time) place {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := place{limit: l, line: l.line, at: now, n: n}
	if l.line == nil {
		return p
	}
	used := min(l.spare, n)
	l.spare -= used
	n -= used
	// A unit of the largest blobs may be more than what is saved up.
	if int64(l.line.Burst()) < n {
		l.line.SetBurstAt(now, int(n))
	}
	p.at = now.Add(l.line.ReserveN(now, int(n)).DelayFrom(now))
	return p
}

// more takes n bytes if they are there and nobody waits for them.
func (l *Limit) more(n int64, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.line == nil || l.line.AllowN(now, int(n))
}

// giveBack returns bytes that were granted and are not asked for.
func (l *Limit) giveBack(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.line != nil {
		l.spare = min(l.spare+n, int64(l.line.Burst()))
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
