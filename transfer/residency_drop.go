package transfer

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

// out lets go of all that is here of a project. The state that says so may be an
// old one: this node may have started a moment ago, and be about to hear that the
// project came back.
func (r *Residency) out(ctx context.Context, p state.Project) (string, error) {
	if _, err := r.cfg.Control.CatchUp(ctx); err != nil {
		return "", err
	}
	p, ok := r.cfg.State.View().ProjectByPID(p.PID)
	if !ok || p.Residence(r.cfg.Site) != state.Out {
		return "", nil
	}
	if err := r.drop(ctx, p); err != nil {
		return "", err
	}
	if slices.Contains(p.Expelled, r.cfg.Site) {
		return r.done(ctx, p, true)
	}
	return "", nil
}

func (r *Residency) drop(ctx context.Context, p state.Project) error {
	r.cfg.Settle()
	if r.cfg.Abandon != nil {
		r.cfg.Abandon(ctx, p.PID)
	}
	if err := r.cfg.Sync.Drop(ctx, p.PID); err != nil {
		return err
	}
	n, err := r.collect(ctx)
	if err == nil {
		r.log.Info("let go of a project that may not rest at this site", "project", p.Name, "blobs", n)
	}
	return err
}

// tidy drops what came of projects after they had gone, and collects what was
// kept by something else.
func (r *Residency) tidy(ctx context.Context) error {
	leased, err := r.cat.LeasedProjects()
	if err != nil {
		return err
	}
	for pid := range leased {
		p, ok := r.cfg.State.View().ProjectByPID(pid)
		r.mu.Lock()
		busy := r.running[pid]
		r.mu.Unlock()
		if !ok || p.Residence(r.cfg.Site) != state.Out || busy {
			continue
		}
		if _, err := r.out(ctx, p); err != nil {
			return err
		}
	}
	_, err = r.collect(ctx)
	return err
}

// collect removes the blobs of dropped projects that nothing else here needs.
func (r *Residency) collect(ctx context.Context) (collected int, err error) {
	after := digest.Digest("")
	for {
		page, err := r.cat.LetGos(after, letGoPage)
		if err != nil || len(page) == 0 {
			return collected, err
		}
		after = page[len(page)-1].Digest
		var over []digest.Digest
		var mu sync.Mutex
		var g errgroup.Group
		g.SetLimit(collectAtOnce)
		for _, l := range page {
			g.Go(func() error {
				ended, took, err := r.collectOne(ctx, l)
				mu.Lock()
				defer mu.Unlock()
				if ended {
					over = append(over, l.Digest)
				}
				if took {
					collected++
				}
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return collected, err
		}
		if err := r.cat.EndLetGo(ctx, over); err != nil {
			return collected, err
		}
	}
}

func (r *Residency) collectOne(ctx context.Context, l catalog.LetGo) (ended, took bool, err error) {
	old := r.cfg.Now().Sub(l.Since).Abs() >= letGoFor
	err = r.cfg.Store.Collect(ctx, l.Digest)
	switch {
	case err == nil:
		return old, true, nil
	case errors.Is(err, store.ErrNotFound):
		return old, false, nil
	case errors.Is(err, catalog.ErrInUse):
		// A reference keeps it as any other blob from now on; a lease or a promise ends.
		named, err := r.cat.Named(l.Digest)
		return named, false, err
	}
	return false, false, err
}
