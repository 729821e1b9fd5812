package transfer

import (
	"context"
	"sync"
	"time"
)

const (
	// holdPushes is for how long a site takes no pushes after it was asked what only
	// it holds: a part of the answer and the removal behind it take seconds, and
	// each part begins the time anew. If no removal follows, pushes go on by
	// themselves then: nobody has to remember to open the site again.
	holdPushes = 2 * time.Minute
	// endPushes bounds the wait for those under way: it is within one question.
	endPushes = 2 * time.Second
)

// pushGate is the gate that what makes content of a site passes: manifests that
// are put there. While others find out whether the site holds the last copy of
// something, it lets nothing through, so that what they find is still true when
// the site is removed. The zero value is open; its methods may be called by any
// number of goroutines.
type pushGate struct {
	mu       sync.Mutex
	underWay int
	until    time.Time
	idle     chan struct{} // closed with the last one under way; nil: nobody waits
}

// begin lets a push through; end must be called after it. If wait is positive the
// site takes none for so long, and end is nil.
func (p *pushGate) begin(now time.Time) (end func(), wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wait = p.until.Sub(now); wait > 0 {
		return nil, wait
	}
	p.underWay++
	return sync.OnceFunc(p.end), 0
}

func (p *pushGate) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.underWay--; p.underWay == 0 && p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// hold lets no push begin for a while, and waits a little for those under way. It
// returns how many still are: what they push may come after all.
func (p *pushGate) hold(ctx context.Context, now time.Time) (underWay int) {
	ctx, cancel := context.WithTimeout(ctx, endPushes)
	defer cancel()
	p.mu.Lock()
	p.until = now.Add(holdPushes)
	var idle chan struct{}
	if p.underWay > 0 {
		if p.idle == nil {
			p.idle = make(chan struct{})
		}
		idle = p.idle
	}
	p.mu.Unlock()
	if idle != nil {
		select {
		case <-idle:
		case <-ctx.Done():
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.underWay
}

// BeginPush lets a push of a manifest through; end must be called after it. With
// a wait the site takes none for so long: it is being found out what only it
// holds.
func (r *Reconciler) BeginPush() (end func(), wait time.Duration) { return r.pushes.begin(r.cfg.Now()) }
