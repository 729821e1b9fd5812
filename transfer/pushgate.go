package transfer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
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
	epoch    uint64        // of the hold; another one means that the gate was open in between
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
// returns how many still are: what they push may come after all. The epoch is the
// same as the last one if the gate has not been open since, in this process.
func (p *pushGate) hold(ctx context.Context, now time.Time) (underWay int, epoch uint64) {
	ctx, cancel := context.WithTimeout(ctx, endPushes)
	defer cancel()
	p.mu.Lock()
	if !now.Before(p.until) {
		p.epoch = rand.Uint64() | 1 // 0 is none
	}
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
	return p.underWay, p.epoch
}

// held reports whether nothing is let through.
func (p *pushGate) held(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Before(p.until)
}

// BeginPush lets a push of a manifest through; end must be called after it. With
// a wait the site takes none for so long: it is being found out what only it
// holds.
func (r *Reconciler) BeginPush() (end func(), wait time.Duration) { return r.pushes.begin(r.cfg.Now()) }

// hold answers another node that finds out what only this one holds. Blobs that
// stores elsewhere rely on and do not have yet count as pushes under way: they were
// answered, and would go with this site.
func (r *Reconciler) hold(ctx context.Context, from identity.NodeID) (underWay int, epoch uint64, err error) {
	now := r.cfg.Now()
	fresh := !r.pushes.held(now)
	underWay, epoch = r.pushes.hold(ctx, now)
	if fresh {
		asker, _ := r.cfg.State.View().Node(from)
		r.log.Warn("this site takes no pushes at the moment: a node finds out what only it holds, which comes before a removal", "asked_by", from, "site", asker.Site, "for", holdPushes)
	}
	view := r.cfg.State.View()
	pins, err := r.cat.PinsNotFetched(maxPinsCounted, func(id identity.StoreID) bool {
		_, member := view.NodeOfStore(id)
		return member
	})
	if err != nil {
		return 0, 0, fmt.Errorf("promises to other stores: %w", err)
	}
	return underWay + pins, epoch, nil
}

// maxPinsCounted bounds what one question counts of them: how many there are beyond
// that changes nothing.
const maxPinsCounted = 10_000
