package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/swarm"
)

// work takes tasks, oldest first, until ctx ends.
func (r *Reconciler) work(ctx context.Context) {
	for ctx.Err() == nil {
		t, wait := r.queue.take()
		if t == nil {
			if !r.idle(ctx, wait) {
				return
			}
			continue
		}
		err := r.attempt(ctx, t)
		reason := ""
		var paused *pausedError
		switch {
		case err == nil:
		case ctx.Err() != nil:
			reason = "the node is stopping"
		case errors.As(err, &paused):
			reason = err.Error()
		default:
			reason = err.Error()
			r.metrics.failures.Inc()
			if t.attempts == 0 || t.reason != reason {
				r.log.Info("content that is wanted here could not be brought here: trying again", "repository", r.fullName(t.key), "digest", t.digest, "error", err)
			}
		}
		r.queue.finish(t, reason)
		if r.queue.refill() {
			r.scans.everything(r.cfg.State.View(), r.cfg.Site)
		}
	}
}

// idle waits for something to do; false when ctx ended.
func (r *Reconciler) idle(ctx context.Context, wait time.Duration) bool {
	var due <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-due:
	case <-r.queue.wake:
	}
	return true
}

// attempt brings all that a task lacks and that can be had now.
func (r *Reconciler) attempt(ctx context.Context, t *task) error {
	if _, _, ok := r.relevant(t.pid); !ok {
		return nil // the project went, or left this site
	}
	if t.kind == claimed || t.kind == large || t.kind == kept {
		fetch, promote, err := r.lacking(&closure{blobs: []content{{digest: t.digest, size: t.size}}})
		if err != nil {
			return err
		}
		return r.bring(ctx, t, fetch, promote)
	}
	if t.kind == artifact {
		within, stop, err := r.gate.pass(ctx)
		if err != nil {
			return err
		}
		defer stop()
		ctx = within
	}
	c, err := r.closure(t.pid, t.repo, t.digest, t.kind == own)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil // deleted: nothing is wanted any more
	}
	if err != nil {
		return err
	}
	fetch, promote, err := r.lacking(c)
	if err != nil {
		return err
	}
	begun := r.cfg.Now()
	if err := r.bring(ctx, t, fetch, promote); err != nil {
		if why := r.gate.why(); why != nil && t.kind == artifact {
			return why
		}
		return err
	}
	if len(c.absent) > 0 {
		r.waitFor(t.key, c.absent)
		return fmt.Errorf("%d manifests that it names, %s first, are not known at this site yet", len(c.absent), c.absent[0])
	}
	r.isComplete(t.key, c)
	if len(fetch)+len(promote) > 0 {
		r.metrics.artifacts.Inc()
		r.log.Info("brought here", "repository", r.fullName(t.key), "digest", t.digest, "blobs", len(fetch), "took", r.cfg.Now().Sub(begun).Round(time.Millisecond))
	}
	return nil
}

// bring fetches and promises blobs. It does all that it can before it gives the
// first error: what is here need not come again.
func (r *Reconciler) bring(ctx context.Context, t *task, fetch, promote []content) error {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed int
		first  error
	)
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		failed++
		if first == nil {
			first = err
		}
	}
	for _, b := range promote {
		if err := r.promise(ctx, b, t.kind); err != nil {
			note(err)
		}
	}
	for _, b := range fetch {
		r.cfg.Sync.Expect(b.digest, b.home)
		// First come, first served: blobs of older artifacts asked earlier.
		if err := r.active.Acquire(ctx, 1); err != nil {
			note(err)
			break
		}
		wg.Go(func() {
			defer r.active.Release(1)
			if err := r.fetch(ctx, t.pid, b, t.kind); err != nil {
				note(err)
			}
		})
	}
	wg.Wait()
	if failed > 1 {
		return fmt.Errorf("%d blobs are missing; the first: %w", failed, first)
	}
	return first
}

func (r *Reconciler) fetch(ctx context.Context, pid identity.ProjectID, b content, k kind) error {
	err := r.cfg.Swarm.Fetch(ctx, swarm.Want{Digest: b.digest, Size: b.size, PID: pid, Class: catalog.Placed})
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("blob %s: no site in reach has it", b.digest)
	}
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.digest, err)
	}
	// A fetch for a pull that was under way already made a cached copy.
	return r.promise(ctx, b, k)
}

// promise makes a copy one that is kept: placed by a rule, or, for what this
// site accepted, home.
func (r *Reconciler) promise(ctx context.Context, b content, k kind) error {
	class := catalog.Placed
	if k == own || k == claimed {
		class = catalog.Home
	}
	row, err := r.cat.Blob(b.digest)
	if err != nil {
		return fmt.Errorf("blob %s: %w", b.digest, err)
	}
	if row.Class == class || row.Class == catalog.Home {
		return nil
	}
	if err := r.cat.SetClass(ctx, b.digest, class); err != nil {
		return fmt.Errorf("blob %s: %w", b.digest, err)
	}
	return nil
}

// fullName is how people call a task's repository.
func (r *Reconciler) fullName(k key) string {
	if p, ok := r.cfg.State.View().ProjectByPID(k.pid); ok {
		return p.Name + "/" + k.repo
	}
	return k.pid.String() + "/" + k.repo
}
