package transfer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
)

// pausedError is why nothing is brought by rules at the moment. It is no failure.
type pausedError struct{ p state.Pause }

func (e *pausedError) Error() string {
	return fmt.Sprintf("site %s is paused since %s by %s: let it go on with: portolan transfer resume %s", e.p.Site, e.p.At.UTC().Format(time.RFC3339), e.p.By, e.p.Site)
}

// gate ends the attempts under way when people pause the site.
type gate struct {
	mu     sync.Mutex
	err    *pausedError // nil: open
	closed chan struct{}
}

func newGate() *gate { return &gate{closed: make(chan struct{})} }

// set follows the control state, and reports whether the gate was opened.
func (g *gate) set(p state.Pause, paused bool) (opened bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case paused && g.err == nil:
		g.err = &pausedError{p}
		close(g.closed)
	case !paused && g.err != nil:
		g.err, g.closed = nil, make(chan struct{})
		return true
	}
	return false
}

// pass gives a context that ends when the site is paused, or the reason why
// nothing goes now. stop must be called.
func (g *gate) pass(ctx context.Context) (_ context.Context, stop func(), _ error) {
	g.mu.Lock()
	err, closed := g.err, g.closed
	g.mu.Unlock()
	if err != nil {
		return ctx, func() {}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(); <-done }, nil
}

// why gives the reason of a pause; nil: the gate is open.
func (g *gate) why() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		return nil
	}
	return g.err
}

// followPause follows what people say of this site.
func (r *Reconciler) followPause() {
	if r.gate.set(r.cfg.State.View().Paused(r.cfg.Site)) {
		wake(r.hurried)
	}
}

// Pending is an artifact, or a blob, that is wanted here and not wholly here.
type Pending struct {
	Repository string // with its project
	Digest     digest.Digest
	State      string // ready, running, failed, paused
	PushedAt   time.Time
	Attempts   int       // that ended early
	Reason     string    // why the last one did
	NextAt     time.Time // of a failed one: when it is tried again at the latest
	Home       string    // site that accepted it; empty: not known
	// Missing of Total bytes are not here; Total is 0 until it was looked at.
	Missing, Total int64
	ETA            time.Duration // of one that runs; 0: not known
}

// Pending lists what is wanted here: what is under way, what failed, and what is
// among the next ones, at most limit of it; and how many there are of each.
func (r *Reconciler) Pending(limit int) (list []Pending, ready, running, failed int) {
	tasks := r.queue.list(limit)
	for _, t := range tasks {
		p := Pending{Repository: r.fullName(t.key), Digest: t.digest, State: "ready", PushedAt: t.at, Attempts: t.attempts, Reason: t.reason, NextAt: t.next,
			Home: t.home, Missing: t.missing, Total: t.total, ETA: t.eta(r.cfg.Now())}
		switch {
		case t.running:
			p.State = "running"
		case t.paused:
			p.State, p.NextAt = "paused", time.Time{}
		case !t.next.IsZero():
			p.State = "failed"
		}
		list = append(list, p)
	}
	ready, running, failed = r.queue.lengths()
	return list, ready, running, failed
}

// list copies at most limit tasks. It costs no sort of the whole queue: of those
// that wait it takes the upper part of their heaps, which has the next ones.
func (q *queue) list(limit int) []task {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]task, 0, min(limit, len(q.tasks)))
	if _, running, _ := q.count(); running > 0 {
		for _, t := range q.tasks {
			if t.running && len(out) < limit {
				out = append(out, *t)
			}
		}
	}
	var heaps []*taskHeap
	for i := range q.lanes {
		heaps = append(heaps, &q.lanes[i].later)
	}
	for i := range q.lanes {
		heaps = append(heaps, &q.lanes[i].ready)
		heaps = append(heaps, q.lanes[i].turns.heaps()...)
	}
	for _, h := range heaps {
		from := len(out)
		for _, t := range h.tasks[:min(limit-from, len(h.tasks))] {
			out = append(out, *t)
		}
		slices.SortFunc(out[from:], func(a, b task) int {
			if h.less(&a, &b) {
				return -1
			}
			return 1
		})
	}
	return out
}
