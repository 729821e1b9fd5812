package budget

import (
	"context"
	"sync"
	"time"
)

// Class is what bytes are for. Lower numbers go first.
type Class uint8

// The classes, the first of which goes first. Their numbers are on the wire; nothing
// is moved for a scrub today.
const (
	Client      Class = iota // a client waits for it here
	Hurried                  // a push waits for it, or all that would pull its image: bytes of manifests
	Replication              // rules want it
	Scrub
	Classes // how many there are
)

const (
	// burst is how much time's worth of bytes may go at once after a pause: so
	// little that no second ever holds 5 % more than its share.
	burst = 20 * time.Millisecond
	// lateBurst is how much may go at once after a timer that came late: what waited
	// meanwhile had a right to it. A busy machine is often 30 ms late, and would keep
	// a link below its cap. No second holds 5 % more for it either.
	lateBurst = 40 * time.Millisecond
	// creditShare: of each so many bytes that go for other classes while a class
	// waits, it is owed one: 1/17 of the link, 5.9 %.
	creditShare = 16
	// pieces is how many pieces a second of the link's bytes is cut into, so that
	// dozens of streams, and a class that has only its 5 %, take turns within
	// seconds; minPiece keeps the cost of one in bounds.
	pieces   = 128
	minPiece = 1 << 10
	maxPiece = 64 << 10
	// overhead: one byte of headers for so many of payload.
	overhead = 32
)

// turn is somebody who waits to send n bytes.
type turn struct {
	n       float64
	granted chan struct{} // closed with link.mu held
	done    bool
}

// link is a token bucket that may go into debt by one piece. It is made and
// changed by its owner, and used by many.
type link struct {
	mu      sync.Mutex
	rate    float64 // bytes a second; 0: no cap
	tokens  float64
	at      time.Time // when tokens was right
	waiting [Classes][]*turn
	credit  [Classes]float64
	timer   *time.Timer
}

// set changes the rate, at once for those who wait too.
func (l *link) set(rate float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == rate {
		return
	}
	l.refill(time.Now())
	if l.rate == 0 {
		l.tokens = 0
	}
	l.rate = rate
	// What was borrowed at a high rate is not paid back at a low one.
	l.tokens = max(min(l.tokens, l.most()), -float64(l.piece()))
	l.grant()
}

// most is what the bucket holds: more while somebody waits for what is in it.
func (l *link) most() float64 {
	if _, waits := l.next(); waits {
		return l.rate * lateBurst.Seconds()
	}
	return l.rate * burst.Seconds()
}

func (l *link) piece() int {
	return int(min(max(l.rate/pieces, minPiece), maxPiece))
}

// least is the smaller of n and what may go at a time.
func (l *link) least(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return n
	}
	return min(n, l.piece())
}

func (l *link) refill(now time.Time) {
	if l.rate > 0 {
		l.tokens = min(l.most(), l.tokens+l.rate*now.Sub(l.at).Seconds())
	}
	l.at = now
}

// wait returns when n bytes may go.
func (l *link) wait(ctx context.Context, c Class, n int) error {
	c = min(c, Classes-1)
	l.mu.Lock()
	if l.rate == 0 {
		l.mu.Unlock()
		return ctx.Err()
	}
	l.refill(time.Now()) // before anybody waits: see most
	t := &turn{n: float64(n + n/overhead), granted: make(chan struct{})}
	l.waiting[c] = append(l.waiting[c], t)
	l.grant()
	l.mu.Unlock()
	select {
	case <-t.granted:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.done {
		return nil // at the last moment; it is paid for
	}
	for i, o := range l.waiting[c] {
		if o == t {
			l.waiting[c] = append(l.waiting[c][:i], l.waiting[c][i+1:]...)
			break
		}
	}
	if len(l.waiting[c]) == 0 {
		l.credit[c] = 0
	}
	return ctx.Err()
}

// grant lets go whose turn it is, and sets the timer for the next; mu is held.
func (l *link) grant() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	l.refill(time.Now())
	for l.rate == 0 || l.tokens > 0 {
		c, ok := l.next()
		if !ok {
			return
		}
		t := l.waiting[c][0]
		l.waiting[c][0] = nil
		l.waiting[c] = l.waiting[c][1:]
		l.tokens -= t.n
		t.done = true
		close(t.granted)
		l.paid(c, t.n)
	}
	if _, ok := l.next(); ok {
		// A nanosecond more, or rounding could leave nothing to give.
		after := time.Duration(-l.tokens/l.rate*float64(time.Second)) + time.Microsecond
		l.timer = time.AfterFunc(after, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.grant()
		})
	}
}

// next is the class whose turn it is: the highest that waits, unless a lower one
// is owed its share.
func (l *link) next() (Class, bool) {
	first, ok := Class(0), false
	for c := range Classes {
		if len(l.waiting[c]) == 0 {
			continue
		}
		if !ok {
			first, ok = c, true
		} else if l.credit[c] >= l.waiting[c][0].n {
			return c, true
		}
	}
	return first, ok
}

// paid notes who got what, and what others are owed for it.
func (l *link) paid(c Class, n float64) {
	for o := range Classes {
		switch {
		case len(l.waiting[o]) == 0 && o != c:
			l.credit[o] = 0
		case o == c:
			l.credit[o] = max(0, l.credit[o]-n)
		default:
			// No more than a few pieces: a share is not saved up.
			l.credit[o] = min(l.credit[o]+n/creditShare, 4*maxPiece)
		}
	}
}
