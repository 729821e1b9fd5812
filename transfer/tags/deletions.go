package tags

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

const (
	// deletesAtOnce are the commands of one repository's deletion that are on their way
	// at a time: raft takes them together.
	deletesAtOnce = 16
	// listedAtOnce is how many tags or manifests of it are looked up at a time.
	listedAtOnce = 1000
)

// beginDelete passes the gate that pushes pass, too: a deletion that is answered here
// and not exchanged yet would be lost with this site. end must be called after it.
func (d *Door) beginDelete() (end func(), err error) {
	if d.cfg.Deleting == nil {
		return func() {}, nil
	}
	end, wait := d.cfg.Deleting()
	if wait > 0 {
		return nil, &command.Unavailable{RetryAfter: wait, Reason: fmt.Sprintf("site %s is about to be removed and takes no deletions at the moment: delete at another site", d.cfg.Site)}
	}
	return end, nil
}

// DeleteTag deletes a tag; catalog.ErrNotFound: there is none. With strong tags it
// is deleted only if it says what it says here or, if this site knows no such tag, what
// the mesh says of it; with match, only if it says one of those: ErrCondition if not.
func (d *Door) DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag, actor string, aclIndex uint64, match ...digest.Digest) error {
	end, err := d.beginDelete()
	if err != nil {
		return err
	}
	defer end()
	return d.inMode(ctx, pid, func() error {
		if len(match) > 0 {
			return ErrNoCondition
		}
		return d.atHome(pid, func() error { return d.cat.DeleteTag(ctx, pid, repo, tag, actor, aclIndex) })
	}, func(state.Project) error {
		seen, err := d.toDelete(ctx, pid, repo, tag, match)
		if err != nil {
			return err
		}
		return d.remove(ctx, pid, actor, &command.TagsDelete{ProjectId: pid[:], Repository: repo, Tag: tag, Digest: seen.String()})
	})
}

// DeleteTagOf deletes a tag of this manifest; catalog.ErrNotFound: it has no such tag;
// command.CodeConflict: it got another one meanwhile. Eventual tags are compared with what
// this site has.
func (d *Door) DeleteTagOf(ctx context.Context, pid identity.ProjectID, repo, tag string, of digest.Digest, actor string, aclIndex uint64) error {
	end, err := d.beginDelete()
	if err != nil {
		return err
	}
	defer end()
	return d.inMode(ctx, pid, func() error {
		return d.atHome(pid, func() error { return d.cat.DeleteTagOf(ctx, pid, repo, tag, of, actor, aclIndex) })
	}, func(state.Project) error {
		_, err := d.toDelete(ctx, pid, repo, tag, []digest.Digest{of})
		if errors.Is(err, ErrCondition) {
			return fmt.Errorf("%w: %w", catalog.ErrNotFound, err)
		}
		if err != nil {
			return err
		}
		return d.remove(ctx, pid, actor, &command.TagsDelete{ProjectId: pid[:], Repository: repo, Tag: tag, Digest: of.String()})
	})
}

// toDelete gives what a strong tag has to say for its deletion.
func (d *Door) toDelete(ctx context.Context, pid identity.ProjectID, repo, tag string, match []digest.Digest) (digest.Digest, error) {
	if len(match) == 0 {
		t, err := d.cat.Tag(pid, repo, tag)
		if !errors.Is(err, catalog.ErrNotFound) {
			return t.Digest, err
		}
	}
	// Nobody has seen it here, or he has seen it elsewhere: what was answered before counts.
	if _, err := d.catchUp(ctx); err != nil {
		return "", err
	}
	t, ok := d.cfg.State.View().StrongTag(pid, repo, tag)
	switch {
	case !ok:
		// With a condition, too: who repeats a deletion whose answer was lost hears that it is gone.
		return "", fmt.Errorf("%w: there is no tag %s", catalog.ErrNotFound, tag)
	case len(match) > 0 && !slices.Contains(match, digest.Digest(t.Digest)):
		return "", unmatched(tag, t.Digest)
	}
	return digest.Digest(t.Digest), nil
}

// remove has raft delete a tag, or say that a manifest may go. When it returns,
// reads here have what was decided, a refusal as well: who looks again sees why.
func (d *Door) remove(ctx context.Context, pid identity.ProjectID, actor string, body *command.TagsDelete) error {
	res, err := d.cfg.Control.Propose(ctx, actor, body)
	var no *command.Error
	switch {
	case err == nil:
		return d.await(ctx, res.Index)
	case !errors.As(err, &no):
		return err
	case no.Code == command.CodeNotFound:
		return fmt.Errorf("%w: %s", catalog.ErrNotFound, no.Message)
	}
	if p, _, ferr := d.find(pid); ferr == nil && p.Tags.Switching() {
		return d.busy(p)
	} else if ferr == nil && p.Tags.Mode != state.StrongTags {
		return errOtherMode
	}
	if late := d.await(ctx, res.Index); late != nil {
		d.log.Debug("what a deletion lost to is not to be read here yet", "repository", body.GetRepository(), "error", late)
	}
	return err
}

// DeleteManifest deletes a manifest: with eventual tags together with those that
// say it, with strong ones only if none does.
func (d *Door) DeleteManifest(ctx context.Context, pid identity.ProjectID, repo string, m digest.Digest, actor string, aclIndex uint64) error {
	end, err := d.beginDelete()
	if err != nil {
		return err
	}
	defer end()
	return d.inMode(ctx, pid, func() error {
		return d.atHome(pid, func() error { return d.cat.DeleteManifest(ctx, pid, repo, m, actor, aclIndex) })
	}, func(state.Project) error { return d.removeManifest(ctx, pid, repo, m, actor) })
}

// removeManifest deletes a manifest that no strong tag says (G4).
func (d *Door) removeManifest(ctx context.Context, pid identity.ProjectID, repo string, m digest.Digest, actor string) error {
	if _, err := d.cat.Manifest(pid, repo, m); err != nil {
		return err
	}
	seen, err := d.cat.Seen(pid, repo, m)
	if err != nil {
		return err
	}
	return d.removeSeen(ctx, pid, repo, m, seen, actor)
}

// removeSeen removes of a manifest that no strong tag says what a vector covers.
func (d *Door) removeSeen(ctx context.Context, pid identity.ProjectID, repo string, m digest.Digest, seen catalog.Vector, actor string) error {
	if err := d.remove(ctx, pid, actor, &command.TagsDelete{ProjectId: pid[:], Repository: repo, Digest: m.String()}); err != nil {
		return err
	}
	return d.atHome(pid, func() error { return d.cat.DeleteManifestSeen(ctx, pid, repo, m, seen) })
}

// DeleteRepository deletes all tags and manifests of a repository that this site
// has. With strong tags each goes by itself: a tag as DeleteTag deletes it, a manifest
// if no tag is left that says it; the first refusal is the answer when all were tried.
func (d *Door) DeleteRepository(ctx context.Context, pid identity.ProjectID, repo, actor string, aclIndex uint64) error {
	end, err := d.beginDelete()
	if err != nil {
		return err
	}
	defer end()
	return d.inMode(ctx, pid, func() error {
		return d.atHome(pid, func() error { return d.cat.DeleteRepository(ctx, pid, repo, actor, aclIndex) })
	}, func(p state.Project) error { return d.removeRepository(ctx, p, repo, actor) })
}

func (d *Door) removeRepository(ctx context.Context, p state.Project, repo, actor string) error {
	if _, err := d.cat.Repository(p.PID, repo); err != nil {
		return err
	}
	// What was seen, before anything of it is deleted: what is pushed anew since stays.
	seen, err := d.cat.Seen(p.PID, repo, "")
	if err != nil {
		return err
	}
	tags, manifests, err := d.listed(p.PID, repo, seen)
	if err != nil {
		return err
	}
	var kept refusals
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(deletesAtOnce)
	for _, t := range tags {
		g.Go(func() error {
			return kept.note(d.remove(all, p.PID, actor, &command.TagsDelete{ProjectId: p.PID[:], Repository: repo, Tag: t.Name, Digest: t.Digest.String()}))
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	g, all = errgroup.WithContext(ctx)
	g.SetLimit(deletesAtOnce)
	for _, m := range manifests {
		g.Go(func() error { return kept.note(d.removeSeen(all, p.PID, repo, m.digest, m.seen, actor)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return kept.of(p.Name + "/" + repo)
}

// seenManifest is a manifest to be deleted, and what of it.
type seenManifest struct {
	digest digest.Digest
	seen   catalog.Vector // most have the same one
}

// listed gives the tags and manifests of a repository that this site has. seen is what it
// has seen of the project.
func (d *Door) listed(pid identity.ProjectID, repo string, seen catalog.Vector) (tags []catalog.TagInfo, manifests []seenManifest, err error) {
	for after := ""; ; {
		names, err := d.cat.Tags(pid, repo, after, listedAtOnce)
		if err != nil {
			return nil, nil, err
		}
		for _, name := range names {
			t, err := d.cat.Tag(pid, repo, name)
			if errors.Is(err, catalog.ErrNotFound) {
				continue // deleted since it was listed
			}
			if err != nil {
				return nil, nil, err
			}
			tags = append(tags, t)
		}
		if len(names) < listedAtOnce {
			break
		}
		after = names[len(names)-1]
	}
	for after := digest.Digest(""); ; {
		infos, err := d.cat.Manifests(pid, repo, after, listedAtOnce)
		if err != nil {
			return nil, nil, err
		}
		for _, info := range infos {
			m := seenManifest{info.Digest, seen}
			switch more, err := d.cat.SeenBeyond(pid, repo, info.Digest, seen); {
			case err != nil:
				return nil, nil, err
			case more != nil:
				m.seen = more
			}
			manifests = append(manifests, m)
		}
		if len(infos) < listedAtOnce {
			return tags, manifests, nil
		}
		after = infos[len(infos)-1].Digest
	}
}

// refusals are those of the parts of one deletion.
type refusals struct {
	mu    sync.Mutex
	first *command.Error
}

// note takes what is no reason to end the whole deletion: that a part of it is gone
// already, or changed meanwhile.
func (r *refusals) note(err error) error {
	var no *command.Error
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return nil
	case errors.As(err, &no) && no.Code == command.CodeConflict:
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.first == nil {
			r.first = no
		}
		return nil
	}
	return err
}

// of is the answer for the whole repository.
func (r *refusals) of(repository string) error {
	if r.first == nil {
		return nil
	}
	return refused(r.first.Code, "repository %s is deleted but for what changed meanwhile: %s", repository, r.first.Message)
}
