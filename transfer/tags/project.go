package tags

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

const (
	// projectRetry is the pause after a write that failed: a full disk, mostly.
	projectRetry = time.Second
	// lateEvery spaces the looks for late writers, each of which reads all tags of
	// the project.
	lateEvery = 10 * time.Second
)

// projected says how far the catalogue is with what the state says.
type projected struct {
	mu    sync.Mutex
	index uint64        // of the last view that is written down
	moved chan struct{} // closed when index moves

	// at is the seq up to which each project is written down, as far as it is known
	// here: the catalogue's own word is read again when a project is in dirty.
	at    map[identity.ProjectID]uint64
	dirty map[identity.ProjectID]bool
	ours  map[identity.ProjectID]bool      // projects with strong tags: what comes of them is noted
	late  map[identity.ProjectID]time.Time // when late writers were last looked for
	ahead map[identity.ProjectID]uint64    // the least raft index ahead of the view here under which a site wrote
	ruled map[identity.ProjectID]bool      // what sites wrote came of tags that the state spoke of
	wake  chan struct{}                    // capacity 1

	// What noteOverruled goes by.
	beside map[identity.ProjectID]bool      // what sites wrote may stand beside what the state said
	noted  map[identity.ProjectID]time.Time // projects with eventual tags: when that was last looked at
	note   chan struct{}                    // capacity 1
}

func newProjected() projected {
	return projected{moved: make(chan struct{}), at: map[identity.ProjectID]uint64{}, ours: map[identity.ProjectID]bool{}, dirty: map[identity.ProjectID]bool{},
		late: map[identity.ProjectID]time.Time{}, ahead: map[identity.ProjectID]uint64{}, ruled: map[identity.ProjectID]bool{}, wake: make(chan struct{}, 1),
		beside: map[identity.ProjectID]bool{}, noted: map[identity.ProjectID]time.Time{}, note: make(chan struct{}, 1)}
}

// committed is called when entries of a project changed.
func (d *Door) committed(pid identity.ProjectID) {
	d.projected.mu.Lock()
	ours := d.projected.ours[pid]
	if ours {
		d.projected.dirty[pid] = true
	}
	d.projected.mu.Unlock()
	if ours {
		wake(d.projected.wake)
	}
}

// overruled is called when what a site wrote before the mode came here after what
// the state says: this site wrote that down before it had all entries, which an
// importer elsewhere had, and it must go here as it went there; or when what a site
// wrote that nobody waited for came beside the state's words. What was written over them is
// nothing to a project whose tags are eventual: each of its pushes is such a write.
func (d *Door) overruled(pid identity.ProjectID, beside bool) {
	d.projected.mu.Lock()
	d.projected.ruled[pid] = true
	if beside {
		d.projected.beside[pid] = true
	}
	d.projected.mu.Unlock()
	wake(d.projected.wake)
	wake(d.projected.note)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// await waits until the view with the index is written down here (G3).
func (d *Door) await(ctx context.Context, index uint64) error {
	t := time.NewTimer(projectWithin)
	defer t.Stop()
	for {
		d.projected.mu.Lock()
		at, moved := d.projected.index, d.projected.moved
		d.projected.mu.Unlock()
		if at >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			return &command.Unavailable{RetryAfter: switchRetry, Indeterminate: true,
				Reason: fmt.Sprintf("site %s could not write down yet what was decided about the tag", d.cfg.Site)}
		}
	}
}

// project follows the state until ctx ends.
func (d *Door) project(ctx context.Context) {
	for {
		changed := d.cfg.State.Changed()
		view := d.cfg.State.View()
		next, err := d.projectView(ctx, view)
		switch {
		case err == nil:
			d.projected.mu.Lock()
			d.projected.index = view.Index()
			close(d.projected.moved)
			d.projected.moved = make(chan struct{})
			d.projected.mu.Unlock()
		case ctx.Err() != nil:
			return
		default:
			d.log.Error("strong tags could not be written into this site's catalogue: trying again", "error", err)
			changed, next = nil, projectRetry
		}
		var due <-chan time.Time
		if next > 0 {
			due = time.After(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-due:
		case <-d.projected.wake:
		}
	}
}

// projectView writes down what a view says. next is when to look again though
// nothing changes; 0: never.
func (d *Door) projectView(ctx context.Context, view *state.View) (next time.Duration, err error) {
	for p := range view.StrongProjects() {
		if p.Tags.Mode != state.StrongTags || !view.MayRest(p, d.cfg.Site) {
			continue
		}
		again, err := d.projectProject(ctx, view, p)
		if errors.Is(err, errAway) {
			continue // this site leaves it since
		}
		if err != nil {
			return 0, fmt.Errorf("project %s: %w", p.Name, err)
		}
		if again > 0 && (next == 0 || again < next) {
			next = again
		}
	}
	return next, nil
}

// noteAll looks after noteOverruled until ctx ends. It reads whole projects, which no
// strong push waits for.
func (d *Door) noteAll(ctx context.Context) {
	// What came before the last end of this process may not have been looked at.
	d.projected.mu.Lock()
	for p := range d.cfg.State.View().Projects() {
		if p.Tags.Base != 0 {
			d.projected.beside[p.PID] = true
		}
	}
	d.projected.mu.Unlock()
	for {
		changed := d.cfg.State.Changed()
		next, err := d.noteOverruled(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			d.log.Error("what lost to strong tags of before could not be noted: trying again", "error", err)
		}
		var due <-chan time.Time
		if next > 0 {
			due = time.After(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-due:
		case <-d.projected.note:
		}
	}
}

// noteOverruled looks at what came beside the state's words in projects whose tags
// are eventual now: no word of the state ends it any more, and who wrote it has to
// hear that it lost.
func (d *Door) noteOverruled(ctx context.Context) (next time.Duration, err error) {
	var due []identity.ProjectID
	d.projected.mu.Lock()
	view := d.cfg.State.View()
	maps.DeleteFunc(d.projected.ruled, func(pid identity.ProjectID, _ bool) bool {
		p, ok := view.ProjectByPID(pid)
		return !ok || p.Purged()
	})
	for pid := range d.projected.beside {
		p, ok := view.ProjectByPID(pid)
		switch {
		case !ok || p.Purged():
			delete(d.projected.beside, pid)
			delete(d.projected.noted, pid)
		case p.Deleted():
			// if it is restored
		case p.Tags.Mode == state.StrongTags || p.Tags.Switching():
			// projectProject's, or not decided yet: if the mode ends
		default:
			if wait := d.projected.noted[pid].Add(lateEvery).Sub(d.cfg.Now()); wait > 0 && wait <= lateEvery {
				if next == 0 || wait < next {
					next = wait
				}
				continue
			}
			due = append(due, pid)
		}
	}
	d.projected.mu.Unlock()
	if len(due) == 0 {
		return next, nil
	}
	// The state here may be the older one: it may not have heard of the switch whose
	// words came with the entries.
	if _, err := d.cfg.Control.CatchUp(ctx); err != nil {
		if ctx.Err() == nil {
			d.log.Debug("what lost to strong tags of before cannot be told without the others", "error", err)
		}
		return switchRetry, nil
	}
	for _, pid := range due {
		view := d.cfg.State.View()
		p, ok := view.ProjectByPID(pid)
		if !ok || p.Tags.Mode != state.EventualTags || p.Tags.Switching() {
			continue
		}
		d.projected.mu.Lock()
		delete(d.projected.beside, pid)
		d.projected.noted[pid] = d.cfg.Now()
		d.projected.mu.Unlock()
		sw, one := ordered(view, p)
		if one == nil {
			one = d.cat.NoteOverruled(ctx, pid, sw)
		}
		if one != nil {
			d.projected.mu.Lock()
			d.projected.beside[pid] = true
			d.projected.mu.Unlock()
			next = cmp.Or(min(next, lateEvery), lateEvery)
			err = errors.Join(err, fmt.Errorf("project %s: %w", p.Name, one))
		}
	}
	return next, err
}

// ordered says what the last switch to strong tags ordered.
func ordered(view *state.View, p state.Project) (catalog.Ordered, error) {
	sw := catalog.Ordered{Before: p.Tags.LateBefore}
	if p.Tags.Mode == state.StrongTags && sw.Before != 0 {
		// The mode went on up to this view: who wrote after it knows a newer one. What says
		// less is of a history that a restore or recovery took back, where it had ended.
		sw.Before = view.Index() + 1
	}
	if err := sw.Seen.UnmarshalBinary(p.Tags.Seen); err != nil {
		return sw, fmt.Errorf("what the switch of project %s ordered: %w", p.Name, err)
	}
	sw.Taken = func(repo, tag string) (v catalog.Vector) {
		// The state took no other bytes.
		_ = v.UnmarshalBinary(view.Taken(p.PID, repo, tag))
		return v
	}
	return sw, nil
}

func (d *Door) projectProject(ctx context.Context, view *state.View, p state.Project) (next time.Duration, err error) {
	d.projected.mu.Lock()
	d.projected.ours[p.PID] = true // from now on news are noted, whatever becomes of this
	at, known := d.projected.at[p.PID]
	dirty := d.projected.dirty[p.PID]
	delete(d.projected.dirty, p.PID)
	ruled := d.projected.ruled[p.PID]
	if ahead, ok := d.projected.ahead[p.PID]; ok && ahead <= view.Index() {
		// The mode goes on where a site had seen it end: in a history that was lost.
		delete(d.projected.ahead, p.PID)
		ruled = true
	}
	delete(d.projected.ruled, p.PID)
	lookedAt := d.projected.late[p.PID]
	d.projected.mu.Unlock()
	defer func() {
		if err != nil {
			d.projected.mu.Lock()
			d.projected.ruled[p.PID] = ruled || d.projected.ruled[p.PID]
			d.projected.dirty[p.PID] = true // read anew what the catalogue has
			d.projected.mu.Unlock()
		}
	}()
	if !known || dirty {
		// The vector may have been dropped, or adopted from a peer.
		if at, err = d.cat.StrongSeen(p.PID); err != nil {
			return 0, err
		}
	}
	// Nobody is late to a project that leaves the mode: what comes then may be later. Nor
	// to one that was created strong.
	due := p.Tags.LateBefore != 0 && p.Tags.Base != 0 && (!known || ruled || dirty && len(p.Tags.Late) > 0)
	late := due && !p.Tags.Switching()
	if due && !late {
		d.projected.mu.Lock()
		d.projected.ruled[p.PID] = true // if the switch is called off
		d.projected.mu.Unlock()
	}
	if late {
		if wait := lookedAt.Add(lateEvery).Sub(d.cfg.Now()); wait > 0 && !lookedAt.IsZero() && at >= p.Tags.Base {
			late, next = false, min(wait, lateEvery)
			d.projected.mu.Lock()
			d.projected.ruled[p.PID] = true
			d.projected.mu.Unlock()
		}
	}
	switch {
	case at < p.Tags.Base || late:
		err = d.projectAll(ctx, view, p, at)
		lookedAt = d.cfg.Now()
	case at < p.Tags.Seq:
		var rows []catalog.StrongTag
		for t := range view.StrongTagsSince(p.PID, at) {
			rows = append(rows, row(t))
		}
		err = d.write(ctx, view, p, rows, at)
	}
	if err != nil {
		return 0, err
	}
	d.projected.mu.Lock()
	d.projected.at[p.PID] = max(at, p.Tags.Seq)
	d.projected.late[p.PID] = lookedAt
	d.projected.mu.Unlock()
	return next, nil
}

// write puts rows into the catalogue and tells of what is new.
func (d *Door) write(ctx context.Context, view *state.View, p state.Project, rows []catalog.StrongTag, from uint64) error {
	sw, err := ordered(view, p)
	if err != nil {
		return err
	}
	sw.Ahead = func(aclIndex uint64) {
		d.projected.mu.Lock()
		defer d.projected.mu.Unlock()
		if least, ok := d.projected.ahead[p.PID]; !ok || aclIndex < least {
			d.projected.ahead[p.PID] = aclIndex
		}
	}
	var refs []catalog.ManifestRef
	err = d.atHome(p.PID, func() (err error) {
		refs, err = d.cat.PutStrong(ctx, p.PID, rows, sw, from, p.Tags.Seq)
		return err
	})
	if d.cfg.Pushed != nil {
		for _, r := range refs {
			d.cfg.Pushed(p.PID, r.Repo, r.Digest)
		}
	}
	return err
}

// projectAll compares all tags: those of the state, and those of the catalogue
// that the state does not know, which are gone since the base at the latest (G5).
func (d *Door) projectAll(ctx context.Context, view *state.View, p state.Project, from uint64) error {
	type name struct{ repo, tag string }
	known := map[name]bool{}
	var rows []catalog.StrongTag
	for t := range view.StrongTagsSince(p.PID, 0) {
		known[name{t.Repository, t.Name}] = true
		rows = append(rows, row(t))
	}
	err := d.cat.EachTag(p.PID, nil, func(t catalog.TagState) error {
		if !known[name{t.Repo, t.Name}] {
			rows = append(rows, catalog.StrongTag{Repo: t.Repo, Name: t.Name, Seq: p.Tags.Base})
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	return d.write(ctx, view, p, rows, from)
}

func row(t state.StrongTag) catalog.StrongTag {
	return catalog.StrongTag{Repo: t.Repository, Name: t.Name, Digest: digest.Digest(t.Digest), Seq: t.Seq, Stamp: t.Stamp, Actor: t.Actor, ACLIndex: t.ACLIndex}
}
