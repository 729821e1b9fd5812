package transfer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
	syncer "github.com/portolan/portolan/transfer/sync"
)

const (
	// holdPushes is for how long a site takes no pushes after it was asked what only
	// it holds: a part of the answer and the removal behind it take seconds, and
	// each part begins the time anew. If no removal follows, pushes go on by
	// themselves then: nobody has to remember to open the site again.
	holdPushes = 2 * time.Minute
	// endPushes bounds the wait for those under way: it is within one question.
	endPushes = 2 * time.Second
	// announcedWithin is how long a question waits for the control state to say what
	// it relies on. It is within one question, with endPushes.
	announcedWithin = 3 * time.Second / 2
	// holdWithinOne bounds all that one question does here: it leaves the asker, who
	// waits askSiteWithin, a round trip.
	holdWithinOne = askSiteWithin - time.Second/2
)

// pushGate is the gate that what a client writes at a site passes: manifests that
// are put there, and what is deleted. While others find out whether the site holds the last copy of
// something, it lets nothing through, so that what they find is still true when
// the site is removed. The zero value is open; its methods may be called by any
// number of goroutines.
type pushGate struct {
	mu       sync.Mutex
	underWay int
	until    time.Time
	holds    uint64        // how often it was held
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
	p.holds++
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

// reopen lets pushes through again if the gate is held and what it is held for does
// not stand any more. It reports whether the gate is held after that. The question may
// take its time: whoever holds the gate meanwhile was answered that nothing passes, so
// the gate stays as it is then, whatever the answer is.
func (p *pushGate) reopen(now time.Time, stands func() bool) (held bool) {
	p.mu.Lock()
	seen, held := p.holds, now.Before(p.until)
	p.mu.Unlock()
	if !held || stands() {
		return held
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.holds == seen {
		p.until = time.Time{}
	}
	return now.Before(p.until)
}

// isHeld reports whether nothing is let through.
func (p *pushGate) isHeld(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return now.Before(p.until)
}

// BeginPush lets a push of a manifest or a deletion through; end must be called after
// it. With a wait the site takes none for so long: it is being found out what only it
// holds.
func (r *Reconciler) BeginPush() (end func(), wait time.Duration) {
	r.takesNone()
	return r.pushes.begin(r.cfg.Now())
}

// takesNone reports whether this site takes no pushes. If its removal was called
// off meanwhile, it takes them again.
func (r *Reconciler) takesNone() bool {
	now := r.cfg.Now()
	return r.pushes.reopen(now, func() bool {
		// A site that is not there any more was removed, and this node has just heard.
		site, member := r.cfg.State.View().Site(r.cfg.Site)
		_, announced := site.Leaving(now)
		return announced || !member
	})
}

// awaitAnnounced returns once the control state here announces the removal by
// which pushes are to be held, or says why they are not: a question alone, whoever
// asks it, holds none.
func (r *Reconciler) awaitAnnounced(ctx context.Context, announced uint64) syncer.Holds {
	ctx, cancel := context.WithTimeout(ctx, announcedWithin)
	defer cancel()
	for {
		changed := r.cfg.State.Changed()
		view := r.cfg.State.View() // one for all: the announcement may come in between
		site, _ := view.Site(r.cfg.Site)
		now := r.cfg.Now()
		switch said, found := site.Announced(announced); {
		case found && site.Announces(announced, now):
			return syncer.Holds{}
		case found: // who asks has just said so
			return syncer.Holds{Refused: syncer.ClockOff, Off: now.Sub(said.At)}
		case view.Index() >= announced:
			return syncer.Holds{Refused: syncer.NotAnnounced}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return syncer.Holds{Refused: syncer.NotHeard}
		}
	}
}

// hold answers another node that finds out what only this one holds. Blobs that
// stores elsewhere rely on and do not have yet count as pushes under way: they were
// answered, and would go with this site.
func (r *Reconciler) hold(ctx context.Context, from identity.NodeID, announced uint64) (out syncer.Holds, err error) {
	// Who asks has given up by then.
	ctx, cancel := context.WithTimeout(ctx, holdWithinOne)
	defer cancel()
	if out = r.awaitAnnounced(ctx, announced); out.Refused != syncer.HoldsNone {
		r.log.Warn("a node asks that this site take no pushes, and it takes them", "asked_by", from, "announced", announced, "because", out.Refused, "clock_off", out.Off)
		return out, nil
	}
	now := r.cfg.Now()
	fresh := !r.pushes.isHeld(now)
	out.UnderWay, out.Epoch = r.pushes.hold(ctx, now)
	if fresh {
		asker, _ := r.cfg.State.View().Node(from)
		r.log.Warn("this site takes no pushes at the moment: a node finds out what only it holds, which comes before a removal", "asked_by", from, "site", asker.Site, "for", holdPushes)
	}
	pins, err := r.pinsNotFetched(ctx, out.UnderWay == 0)
	if err != nil {
		return syncer.Holds{}, fmt.Errorf("promises to other stores: %w", err)
	}
	out.UnderWay += pins
	return out, nil
}
