package swarm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/portolan/portolan/node/store/units"
)

// step takes one answer.
func (l *lane) step(ctx context.Context, ss *session) error {
	f := l.f
	// The head first: a unit that has not begun to come needs no memory.
	head, err := ss.await()
	var refused *refusedError
	if errors.As(err, &refused) && refused.status == Status_STATUS_NOT_YET {
		l.notYet(refused.first, refused.end)
		if l.onTrial() && ss.requests() == 0 {
			return l.untried()
		}
		return nil
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	layout := f.layout
	f.mu.Unlock()
	var buf []byte
	if layout != nil && head.HasUnit {
		here := f.ownTime()
		b, free, err := f.s.buffers.take(ctx, min(layout.unitSize, max(layout.size, 1)), f.need(l.node))
		here()
		if err != nil {
			return err
		}
		defer free()
		defer l.unsplit()
		buf = b
	}
	got, err := ss.receive(layout, buf)
	if err != nil {
		return err
	}
	return l.take(got)
}

// notYet: the peer has lost what it said it had, or never had it.
func (l *lane) notYet(first, end int) {
	for i := first; i < end; i++ {
		l.landed(i, true)
	}
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	l.f.sched.lacks(l.node, first, end)
}

// take checks and keeps one answer.
func (l *lane) take(got received) error {
	f := l.f
	if got.trial {
		return l.tried(got)
	}
	if got.first {
		f.setSize(got.size)
	}
	if got.first && l.holder {
		f.mu.Lock()
		if f.sched.peers[l.node] == nil && f.strikes[l.node] < maxStrikes {
			f.sched.holder(l.node)
		}
		f.mu.Unlock()
	}
	if got.list != nil {
		if err := f.openOnce(l.candidate, got.record, got.list); err != nil {
			return err
		}
	}
	if got.taken >= 0 {
		l.landed(got.taken, true)
		f.mu.Lock()
		f.sched.refused(got.taken, l.node, time.Now())
		f.mu.Unlock()
		return nil
	}
	if got.unit < 0 {
		return nil
	}
	l.landed(got.unit, false)
	f.s.received(l.node, len(got.data))
	here := f.ownTime()
	err := f.put(got.unit, got.data, l.node)
	here()
	if errors.Is(err, units.ErrBadUnit) {
		f.mu.Lock()
		f.sched.landed(got.unit, l.node)
		f.mu.Unlock()
		return f.blame(l, got.unit, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	f.mu.Lock()
	if l.whole() {
		f.good[l.node] = true
	}
	f.mu.Unlock()
	f.s.metrics.unitsReceived.Inc()
	if l.early.lied() {
		return f.blameSubs(l.early)
	}
	return nil
}
