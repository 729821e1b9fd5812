package transfer

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
)

const (
	// settleEvery is how often promises are looked at; they are whenever a site comes
	// back in reach, too.
	settleEvery = time.Hour
	// settleShare: the walks over the promises take at most one part in so many of the
	// time, however often sites come and go.
	settleShare = 20
	// settleWithin bounds the pull and the questions about one project of a site: what
	// does not end in time is asked again.
	settleWithin = 10 * time.Minute
	// settleSites and settleProjects are how many sites are asked at a time, and about
	// how many projects each.
	settleSites, settleProjects = 8, pinQuestions
)

// overdue are promises to one node for one project that may be ended.
type overdue map[asker][]catalog.Pin

// settlePins ends promises that nobody relies on any more, until ctx ends (T13e).
func (r *Reconciler) settlePins(ctx context.Context) {
	for {
		begun := time.Now()
		if err := r.settleOnce(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, catalog.ErrClosed) {
			r.log.Error("promises to keep blobs for pushes elsewhere could not be looked through: they are kept, and looked at again", "again_in", settleEvery, "error", err)
		}
		if !sleep(ctx, settleShare*time.Since(begun)) {
			return
		}
		t := time.NewTimer(settleEvery)
		select {
		case <-ctx.Done():
		case <-r.settles:
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// settleOnce looks at all promises whose time has passed.
func (r *Reconciler) settleOnce(ctx context.Context) error {
	var (
		now      = r.cfg.Now()
		view     = r.cfg.State.View()
		all      = overdue{}
		n        int
		relieved []catalog.Pin
	)
	flush := func() error {
		if err := r.cat.EndPins(ctx, relieved); err != nil {
			return err
		}
		err := r.settle(ctx, all)
		clear(all)
		n, relieved = 0, nil
		return err
	}
	err := r.cat.EachPin(func(p catalog.Pin, _ bool) error {
		if !p.Until.Before(now) {
			return nil
		}
		if k, ok := r.reliedOn(view, p); ok {
			all[k] = append(all[k], p)
		} else {
			relieved = append(relieved, p)
		}
		if n++; n < maxPinsAsked {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

// settle asks the sites that the promises were made to, all at once.
func (r *Reconciler) settle(ctx context.Context, all overdue) error {
	at := map[identity.NodeID][]asker{}
	for of := range all {
		at[of.node] = append(at[of.node], of)
	}
	var sites errgroup.Group
	sites.SetLimit(settleSites)
	for _, projects := range at {
		sites.Go(func() error {
			var g errgroup.Group
			g.SetLimit(settleProjects)
			for _, of := range projects {
				g.Go(func() error { return r.settleFor(ctx, of, all[of]) })
			}
			return g.Wait()
		})
	}
	return sites.Wait()
}

// settleFor ends the promises that a site does not rely on for a project: it has the
// blob, or, as all says that it has written there, no push came of it.
func (r *Reconciler) settleFor(ctx context.Context, of asker, pins []catalog.Pin) error {
	within, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	if err := r.cfg.Sync.PullFrom(within, of.node, of.pid); err != nil {
		// In time it comes back in reach, or is removed.
		return ctx.Err()
	}
	blobs := make([]digest.Digest, len(pins))
	for i, p := range pins {
		blobs[i] = p.Digest
	}
	a, err := r.cfg.Sync.Has(within, of.node, syncer.Question{PID: of.pid, Blobs: blobs})
	if err != nil {
		return ctx.Err()
	}
	var over []catalog.Pin
	for i, p := range pins {
		if a.Blobs[i] != syncer.Placed {
			relies, err := r.reliesOn(of, p.Digest)
			if err != nil {
				return err
			}
			if relies {
				continue // it is on its way
			}
		}
		over = append(over, p)
	}
	return r.cat.EndPins(ctx, over)
}

// reliesOn says whether a manifest that the asker's site accepted names a blob. What
// others pushed with it says nothing of the promise.
func (r *Reconciler) reliesOn(of asker, d digest.Digest) (bool, error) {
	parents, err := r.cat.Parents(d, maxParents)
	if err != nil || len(parents) == maxParents {
		return true, err
	}
	to, _ := r.cfg.State.View().Node(of.node)
	for _, p := range parents {
		if p.PID != of.pid {
			continue
		}
		m, err := r.cat.Manifest(p.PID, p.Repo, p.Digest)
		if err != nil && !errors.Is(err, catalog.ErrNotFound) {
			return true, err
		}
		if err == nil && m.Home == to.Site {
			return true, nil
		}
	}
	return false, nil
}
