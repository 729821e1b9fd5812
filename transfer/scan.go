package transfer

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

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
	// scanWorkers bounds the processors that look at what a whole scan reads, beside
	// the one that reads: nobody waits for it for longer than seconds, and others have
	// work for the rest. A scan that follows a small change takes one.
	scanWorkers = 4
	// scanPage is how many entries are read at a time by those who list.
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

// depth says how soon a scan comes.
type depth uint8

const (
	// patient waits its turn.
	patient depth = iota
	// settled waits its turn as well, and is quick then: a pull brought more than the
	// inbox takes.
	settled
	// whole comes now: at the start, after a change of rules.
	whole
)

// scans are the projects to be scanned.
type scans struct {
	now func() time.Time

	mu   sync.Mutex
	due  map[identity.ProjectID]depth
	rest map[identity.ProjectID]time.Time
	over map[identity.ProjectID]bool // the inbox was full, and a pull goes on
	wake chan struct{}
}

func newScans(now func() time.Time) scans {
	return scans{now: now, due: map[identity.ProjectID]depth{}, rest: map[identity.ProjectID]time.Time{}, over: map[identity.ProjectID]bool{}, wake: make(chan struct{}, 1)}
}

// ask asks for a scan, unless one that comes as soon is due already.
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

// overflowed notes that something of a project has to be looked for when the pull
// has ended that brought it: a scan before that would be one of many.
func (s *scans) overflowed(pid identity.ProjectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over[pid] = true
}

// settle asks for the scan that overflowed put off. One after another of them takes
// a tenth of a processor, like patient ones (T8).
func (s *scans) settle(pid identity.ProjectID) {
	s.mu.Lock()
	over := s.over[pid]
	delete(s.over, pid)
	s.mu.Unlock()
	if over {
		s.ask(pid, settled)
	}
}

// forget is for a project that is not for this site any more. What is due finds
// that out.
func (s *scans) forget(pid identity.ProjectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rest, pid)
	delete(s.over, pid)
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
	return identity.ProjectID{}, patient, false, wait
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
		workers := 1
		if how >= settled {
			workers = min(runtime.GOMAXPROCS(0), scanWorkers)
		}
		begun := time.Now()
		err := r.scanProject(ctx, pid, workers)
		took := time.Since(begun)
		r.metrics.scans.Observe(took.Seconds())
		switch {
		case err == nil:
		case ctx.Err() != nil || errors.Is(err, catalog.ErrClosed):
			return
		default:
			r.log.Error("a project could not be scanned for what is wanted here: trying again", "pid", pid, "error", err)
			r.scans.ask(pid, patient)
			took = max(took, time.Second)
		}
		r.scans.done(pid, took*time.Duration(1+workers)) // one more reads
		if _, ok := r.relevant(pid); !ok {
			r.scans.forget(pid)
		}
	}
}

// scanProject queues what of a project is wanted and not wholly here. It goes by
// what manifests lack and not by what rules want: of most, nothing is missing,
// and then nobody needs to know who wants them. It reads pages, so that nothing
// is held up by it.
func (r *Reconciler) scanProject(ctx context.Context, pid identity.ProjectID, workers int) error {
	p, ok := r.relevant(pid)
	if !ok {
		return nil
	}
	h := newHeld(r.cat, pid, workers)
	return r.cat.PassManifests(ctx, pid, workers, func() func(*catalog.Sighting) error {
		repo, matches := "", false
		return func(m *catalog.Sighting) error {
			if repo != string(m.Repo()) {
				// All that an artifact takes with it is of its repository.
				repo = string(m.Repo())
				matches = p.Matches(repo)
			}
			return r.scanManifest(ctx, p, m, h, matches)
		}
	})
}

// scanManifest queues what wants a manifest, if something of it lacks here.
// matches: a rule may want something of its repository.
func (r *Reconciler) scanManifest(ctx context.Context, p *rules.Project, m *catalog.Sighting, h *held, matches bool) error {
	whole, err := h.has(ctx, m.Raw())
	if err != nil {
		return err
	}
	if !whole {
		// Small manifests come with their entries. A large one is a blob, and nobody
		// can pull by it until it is here.
		info, err := m.Info()
		if err != nil {
			return err
		}
		if err := r.wantBlob(large, p.PID, info.Repo, content{info.Digest, info.Size, info.Home}, info.At); err != nil {
			return err
		}
	}
	if !matches && string(m.Home()) != r.cfg.Site {
		return nil
	}
	if whole {
		err = m.EachRef(func(raw []byte, kind catalog.RefKind) (more bool, err error) {
			if kind == catalog.RefManifest {
				// A child that is known is looked at in its turn.
				whole, err = r.cat.HasChild(p.PID, m, raw)
			} else {
				whole, err = h.has(ctx, raw)
			}
			return whole, err
		})
	}
	if err != nil || whole {
		return err
	}
	info, err := m.Info()
	if err != nil {
		return err
	}
	return r.wantAbove(p, info)
}
