package tags

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
)

// Condition is what a push asks of its tags.
type Condition struct {
	// New: no tag is there yet. Match: each says one of these. Only projects with
	// strong tags can keep either.
	New   bool
	Match []digest.Digest
}

func (c Condition) isZero() bool { return !c.New && len(c.Match) == 0 }

// ErrCondition says that a Condition does not hold.
var ErrCondition = errors.New("the tag does not say what the request expects")

// ErrNoCondition is returned for a Condition in a project with eventual tags.
var ErrNoCondition = errors.New("only projects with strong tags can keep conditions")

// Put accepts a manifest and sets its tags. It returns when that is durable, at
// as many sites as the project wants, and to be read here.
func (d *Door) Put(ctx context.Context, put catalog.Put, cond Condition) error {
	for {
		err := d.put(ctx, put, cond)
		switch {
		case !errors.Is(err, errUnprepared):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
	}
}

// errUnprepared: the project wants more of a push than was prepared, since a moment
// ago. Nothing was written. It ends when people stop to change the project.
var errUnprepared = errors.New("the project wants more of a push than it did")

// put is Put for the project as it is: errUnprepared if it is another one when the
// push is to be written.
func (d *Door) put(ctx context.Context, put catalog.Put, cond Condition) error {
	p, v, err := d.find(put.PID)
	if err != nil {
		return err
	}
	if len(put.Tags) > 0 && p.Tags.Switching() {
		return d.busy(p) // before anything is moved
	}
	ready := d.needs(v, p, put)
	held, err := d.prepare(ctx, ready, p, put)
	if err != nil {
		return err
	}
	if p, v, err = d.find(put.PID); err != nil {
		return err
	}
	// still reports whether what was prepared is as much as is wanted now.
	still := func() error {
		p, v, err := d.find(put.PID)
		if err == nil && !ready.covers(d.needs(v, p, put)) {
			err = errUnprepared
		}
		return err
	}
	said := map[string]string{}
	for _, tag := range put.Tags {
		t, _ := v.StrongTag(put.PID, put.Repo, tag)
		said[tag] = t.Digest
	}
	if err := d.check(p, put, cond, said); err != nil {
		return err
	}
	var dot catalog.Dot // of a write that is not known to be elsewhere yet
	write := func() (err error) {
		if !cond.isZero() && len(put.Tags) > 0 {
			return ErrNoCondition // the mode changed meanwhile
		}
		if err := still(); err != nil {
			return err
		}
		put := put
		if now, v, err := d.find(put.PID); err == nil && len(put.Tags) > 0 && now.Tags.LateBefore != 0 && now.Tags.Mode == state.EventualTags && !now.Tags.Switching() {
			// Its rights may have been looked up while the tags were strong, or before: what
			// says so lost to them.
			put.ACLIndex = max(put.ACLIndex, v.Index())
		}
		dot, err = d.putManifest(ctx, put)
		return err
	}
	if len(put.Tags) == 0 {
		err = write()
	} else {
		err = d.inMode(ctx, put.PID, write, func(p state.Project) error {
			if err := still(); err != nil {
				return err
			}
			tags, put := put.Tags, put
			put.Tags = nil
			return d.putStrong(ctx, p, put, tags, said, held)
		})
	}
	if err == nil && held != nil && !dot.IsZero() {
		err = held.Covered(ctx, dot) // not under the gate: sites may take long
	}
	return err
}

// needs is what a push takes before it is written.
type needs struct {
	strong bool // it is compared with what the control state says
	copies int  // sites that have the blobs
}

// covers reports whether who prepared n has prepared o.
func (n needs) covers(o needs) bool { return (n.strong || !o.strong) && n.copies >= o.copies }

func (d *Door) needs(v *state.View, p state.Project, put catalog.Put) needs {
	tagged := len(put.Tags) > 0
	n := needs{strong: tagged && p.Tags.Mode == state.StrongTags}
	if d.cfg.Copies != nil {
		n.copies = v.PushCopies(p, tagged)
	}
	return n
}

// prepare does what has to be done before anything of a push is visible: other
// sites take its blobs (D1), and where tags are strong this site's state catches up
// meanwhile, so that the push is compared with all that was answered before it.
func (d *Door) prepare(ctx context.Context, want needs, p state.Project, put catalog.Put) (held Held, err error) {
	g, ctx := errgroup.WithContext(ctx)
	if want.strong {
		g.Go(func() error {
			_, err := d.catchUp(ctx)
			return err
		})
	}
	if n := want.copies; n > 1 {
		g.Go(func() error {
			blobs, err := d.pieces(put)
			if err == nil {
				held, err = d.cfg.Copies.Hold(ctx, p, put.Repo, blobs, n)
			}
			return err
		})
	}
	err = g.Wait()
	return held, err
}

// catchUp has the state here catch up before an edit.
func (d *Door) catchUp(ctx context.Context) (index uint64, err error) {
	index, err = d.cfg.Control.CatchUp(ctx)
	var u *command.Unavailable
	if errors.As(err, &u) {
		edit := *u // to whoever asked it is an edit that cannot be made
		edit.Read = false
		err = &edit
	}
	return index, err
}

// putManifest tells of what it put, whatever becomes of the rest of the push.
func (d *Door) putManifest(ctx context.Context, put catalog.Put) (catalog.Dot, error) {
	var dot catalog.Dot
	err := d.atHome(put.PID, func() (err error) {
		dot, err = d.cat.PutManifest(ctx, put)
		return err
	})
	if err == nil && d.cfg.Pushed != nil {
		d.cfg.Pushed(put.PID, put.Repo, put.Digest)
	}
	return dot, err
}

// check holds a condition against what the tags say.
func (d *Door) check(p state.Project, put catalog.Put, cond Condition, said map[string]string) error {
	if cond.isZero() || len(put.Tags) == 0 {
		return nil
	}
	if p.Tags.Mode != state.StrongTags {
		return ErrNoCondition
	}
	for tag, now := range said {
		switch {
		case now == "" && cond.New, now == put.Digest.String() && !cond.New, slices.Contains(cond.Match, digest.Digest(now)):
		case now == "":
			return fmt.Errorf("%w: there is no tag %s", ErrCondition, tag)
		default:
			return unmatched(tag, now)
		}
	}
	return nil
}

func unmatched(tag, now string) error {
	return fmt.Errorf("%w: the tag %s says %s", ErrCondition, tag, now)
}

// putStrong puts the manifest, and then has raft set the tags (G2, G4).
func (d *Door) putStrong(ctx context.Context, p state.Project, put catalog.Put, tags []string, said map[string]string, held Held) error {
	body := &command.TagsSet{ProjectId: put.PID[:], Repository: put.Repo, Digest: put.Digest.String(), AclIndex: put.ACLIndex}
	for _, tag := range tags {
		body.Tags = append(body.Tags, &command.TagSaid{Name: tag, Digest: said[tag]})
	}
	for try := 0; ; try++ {
		body.Since = d.cfg.State.View().Index() // before the manifest is put
		dot, err := d.putManifest(ctx, put)
		if err != nil {
			return err
		}
		if held != nil {
			err := held.Covered(ctx, dot)
			var few *NotDurable
			if errors.As(err, &few) {
				few.NotSet = tags
			}
			if err != nil {
				return err
			}
		}
		res, err := d.cfg.Control.Propose(ctx, put.Actor, body)
		if err == nil {
			return d.await(ctx, res.Index)
		}
		var no *command.Error
		if !errors.As(err, &no) || no.Code != command.CodeConflict {
			return err
		}
		now, v, ferr := d.find(put.PID)
		switch {
		case ferr != nil:
			return ferr
		case now.Tags.Switching():
			return d.busy(now)
		case now.Tags.Mode != state.StrongTags:
			return errOtherMode
		case v.LetGo(put.PID, put.Repo, put.Digest.String(), body.GetSince()) && try < putAgain:
			d.log.Info("the manifest was deleted while it was being tagged: putting it again", "repository", p.Name+"/"+put.Repo, "digest", put.Digest)
		default:
			return err
		}
	}
}
