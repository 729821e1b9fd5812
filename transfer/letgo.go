package transfer

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/rules"
)

// maxParents is how many manifests are asked whether they need a blob. One of
// more is a base layer: it is kept.
const maxParents = 200

// dropped takes note of manifests that lost names, where rules follow deletions.
func (r *Reconciler) dropped(all []catalog.Dropped) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range all {
		if p, ok := r.relevant(d.PID); ok && p.LetsGo(d.Repo) && len(r.gone) < maxInbox {
			r.gone = append(r.gone, d)
		}
	}
	if len(r.gone) > 0 {
		wake(r.goneNews)
	}
}

// letGo lets go of what lost its names, until ctx ends.
func (r *Reconciler) letGo(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.goneNews:
		}
		r.mu.Lock()
		all := r.gone
		r.gone = nil
		r.mu.Unlock()
		for _, d := range all {
			if err := r.letGoOf(ctx, d); err != nil && ctx.Err() == nil && !errors.Is(err, catalog.ErrClosed) {
				r.log.Error("what was deleted could not be let go of: it stays here", "pid", d.PID, "repository", d.Repo, "digest", d.Digest, "error", err)
			}
		}
	}
}

// letGoOf takes the promise from blobs that rules placed here for a manifest and
// that nothing needs which is wanted here. They become copies like those that
// somebody pulled: not counted on, and free to go.
func (r *Reconciler) letGoOf(ctx context.Context, d catalog.Dropped) error {
	p, ok := r.relevant(d.PID)
	if !ok || !p.LetsGo(d.Repo) {
		return nil
	}
	l := letting{r: r, needed: map[key]bool{}}
	if !d.Gone {
		return l.closure(ctx, p, d.Repo, d.Digest)
	}
	for _, ref := range d.Refs {
		var err error
		if ref.Kind == catalog.RefManifest {
			err = l.closure(ctx, p, d.Repo, ref.Digest)
		} else {
			err = l.blob(ctx, ref.Digest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// letting is one letGoOf.
type letting struct {
	r      *Reconciler
	needed map[key]bool // what was found out of manifests
}

// closure lets go of what belongs to a manifest that is still there.
func (l *letting) closure(ctx context.Context, p *rules.Project, repo string, root digest.Digest) error {
	c, err := l.r.closure(p.PID, repo, root, false)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, b := range c.blobs {
		if err := l.blob(ctx, b.digest); err != nil {
			return err
		}
	}
	return nil
}

// blob lets go of one blob, unless something needs it.
func (l *letting) blob(ctx context.Context, d digest.Digest) error {
	row, err := l.r.cat.Blob(d)
	if errors.Is(err, catalog.ErrNotFound) || err == nil && row.Class != catalog.Placed {
		return nil
	}
	if err != nil {
		return err
	}
	parents, err := l.r.cat.Parents(d, maxParents)
	if err != nil || len(parents) == maxParents {
		return err
	}
	for _, up := range parents {
		if needs, err := l.needs(up.PID, up.Repo, up.Digest); err != nil || needs {
			return err
		}
	}
	// Not what a push was promised, whose entry has not come yet.
	done, err := l.r.cat.Demote(ctx, d)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	if done {
		l.r.log.Debug("a copy lost what it was kept for: it may go", "digest", d)
	}
	return err
}

// needs reports whether a manifest's blobs are to be kept here.
func (l *letting) needs(pid identity.ProjectID, repo string, d digest.Digest) (bool, error) {
	k := key{artifact, pid, repo, d}
	if known, ok := l.needed[k]; ok {
		return known, nil
	}
	needs, err := l.find(pid, repo, d)
	if err == nil {
		l.needed[k] = needs
	}
	return needs, err
}

func (l *letting) find(pid identity.ProjectID, repo string, d digest.Digest) (bool, error) {
	p, ok := l.r.relevant(pid)
	if !ok {
		return false, nil
	}
	m, err := l.r.cat.Manifest(pid, repo, d)
	if errors.Is(err, catalog.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if m.Home == l.r.cfg.Site || !p.LetsGo(repo) {
		return true, nil
	}
	found := false
	err = l.r.roots(p, m, func(catalog.ManifestInfo, rules.Demand) bool { found = true; return false })
	return found, err
}
