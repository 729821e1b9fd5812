package transfer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/rules"
)

const (
	// scanShare keeps scans that follow small changes to a tenth of one core: a
	// project is scanned again only after so many times what the last scan took.
	scanShare = 10
	// scanGather lets the changes of one push come together.
	scanGather = 50 * time.Millisecond
	// scanPage is how many entries are read at a time.
	scanPage = 256
)

// arrival is a manifest that is new here.
type arrival struct {
	pid identity.ProjectID
	ref catalog.ManifestRef
}

// inbox is the queue between the exchange, which must not wait, and the
// reconciler.
type inbox struct{ c chan arrival }

func newInbox() inbox { return inbox{make(chan arrival, maxInbox)} }

// put reports whether there was room.
func (b inbox) put(a arrival) bool {
	select {
	case b.c <- a:
		return true
	default:
		return false
	}
}

func (b inbox) take(ctx context.Context) (arrival, bool) {
	select {
	case <-ctx.Done():
		return arrival{}, false
	case a := <-b.c:
		return a, true
	}
}

// depth says how far a scan looks.
type depth uint8

const (
	// light leaves out artifacts that are known to be complete, and waits its turn.
	light depth = iota
	// thorough looks at every manifest, and waits its turn.
	thorough
	// whole looks at every manifest, now: at the start, after a change of rules.
	whole
)

// scans are the projects to be scanned.
type scans struct {
	now func() time.Time

	mu   sync.Mutex
	due  map[identity.ProjectID]depth
	rest map[identity.ProjectID]time.Time
	wake chan struct{}
}

func newScans(now func() time.Time) scans {
	return scans{now: now, due: map[identity.ProjectID]depth{}, rest: map[identity.ProjectID]time.Time{}, wake: make(chan struct{}, 1)}
}

// ask asks for a scan, unless one that looks as far is due already.
func (s *scans) ask(pid identity.ProjectID, how depth) {
	s.mu.Lock()
	defer wake(s.wake)
	defer s.mu.Unlock()
	before, there := s.due[pid]
	s.due[pid] = max(before, how)
	switch at := s.now().Add(scanGather); {
	case how == whole:
		delete(s.rest, pid)
	case !there && s.rest[pid].Before(at):
		s.rest[pid] = at
	}
}

// everything asks for a whole scan of all projects of the site.
func (s *scans) everything(view *state.View, site string) {
	for p := range view.Projects() {
		if view.MayRest(p, site) {
			s.ask(p.PID, whole)
		}
	}
}

// take gives a project whose time has come, or how long to wait for one; 0:
// there is none.
func (s *scans) take() (pid identity.ProjectID, how depth, ok bool, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for pid, how := range s.due {
		left := s.rest[pid].Sub(now)
		if left <= 0 {
			delete(s.due, pid)
			return pid, how, true, 0
		}
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return identity.ProjectID{}, light, false, wait
}

// done notes what a scan took.
func (s *scans) done(pid identity.ProjectID, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.due[pid] == whole {
		return // it was asked for meanwhile
	}
	s.rest[pid] = s.now().Add(scanShare * took)
}

// scan scans projects, one at a time, until ctx ends.
func (r *Reconciler) scan(ctx context.Context) {
	for {
		pid, how, ok, wait := r.scans.take()
		if !ok {
			var due <-chan time.Time
			var t *time.Timer
			if wait > 0 {
				t = time.NewTimer(wait)
				due = t.C
			}
			select {
			case <-ctx.Done():
			case <-due:
			case <-r.scans.wake:
			}
			if t != nil {
				t.Stop()
			}
			if ctx.Err() != nil {
				return
			}
			continue
		}
		begun := time.Now()
		err := r.scanProject(ctx, pid, how)
		took := time.Since(begun)
		r.metrics.scans.Observe(took.Seconds())
		switch {
		case err == nil:
		case ctx.Err() != nil || errors.Is(err, catalog.ErrClosed):
			return
		default:
			r.log.Error("a project could not be scanned for what is wanted here: trying again", "pid", pid, "error", err)
			r.scans.ask(pid, min(how, thorough)) // which waits its turn
			took = max(took, time.Second)
		}
		r.scans.done(pid, took)
	}
}

// scanProject queues what of a project is wanted and not wholly here. It reads
// pages, so that nothing is held up by it.
func (r *Reconciler) scanProject(ctx context.Context, pid identity.ProjectID, how depth) error {
	p, ok := r.relevant(pid)
	if !ok {
		return nil
	}
	for repo := ""; ; {
		repos, err := r.cat.Repositories(pid, repo, scanPage)
		if err != nil {
			return fmt.Errorf("repositories: %w", err)
		}
		for _, repo = range repos {
			if err := r.scanRepository(ctx, p, repo, how); err != nil {
				return err
			}
		}
		if len(repos) < scanPage {
			return nil
		}
	}
}

func (r *Reconciler) scanRepository(ctx context.Context, p *rules.Project, repo string, how depth) error {
	for after := digest.Digest(""); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		page, err := r.cat.Manifests(p.PID, repo, after, scanPage)
		if err != nil {
			return fmt.Errorf("manifests of %s: %w", repo, err)
		}
		for _, m := range page {
			after = m.Digest
			if err := r.scanManifest(p, m, how); err != nil {
				return err
			}
		}
		if len(page) < scanPage {
			return nil
		}
	}
}

func (r *Reconciler) scanManifest(p *rules.Project, m catalog.ManifestInfo, how depth) error {
	if err := r.wantBlob(large, p.PID, m.Repo, content{m.Digest, m.Size, m.Home}, m.At); err != nil {
		return err
	}
	k, d, err := r.wanted(p, m)
	if err != nil || k == 0 {
		return err
	}
	id := key{k, p.PID, m.Repo, m.Digest}
	if how == light && r.complete.Contains(id) {
		return nil
	}
	// One walk here saves a task for each of the many that are whole.
	c, err := r.closure(p.PID, m.Repo, m.Digest, k == own)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	fetch, promote, err := r.lacking(c)
	if err != nil {
		return err
	}
	if len(fetch)+len(promote)+len(c.absent) == 0 {
		r.isComplete(id)
		return nil
	}
	r.want(id, m.At, d)
	return nil
}
