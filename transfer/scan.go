package transfer

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
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
	// whole comes now: at the start, after a change of rules.
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
func (s *scans) take() (pid identity.ProjectID, ok bool, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for pid := range s.due {
		left := s.rest[pid].Sub(now)
		if left <= 0 {
			delete(s.due, pid)
			return pid, true, 0
		}
		if wait == 0 || left < wait {
			wait = left
		}
	}
	return identity.ProjectID{}, false, wait
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
		pid, ok, wait := r.scans.take()
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
		err := r.scanProject(ctx, pid)
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
		r.scans.done(pid, took)
	}
}

// scanProject queues what of a project is wanted and not wholly here. It goes by
// what manifests lack and not by what rules want: of most, nothing is missing,
// and then nobody needs to know who wants them. It reads pages, so that nothing
// is held up by it.
func (r *Reconciler) scanProject(ctx context.Context, pid identity.ProjectID) error {
	p, ok := r.relevant(pid)
	if !ok {
		return nil
	}
	h := newHeld(r.cat, pid)
	repo, matches := "", false
	return r.cat.EachManifestWithRefs(pid, func(m catalog.ManifestInfo, refs []catalog.Ref) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if repo != m.Repo {
			// All that an artifact takes with it is of its repository.
			repo, matches = m.Repo, p.Matches(m.Repo)
		}
		return r.scanManifest(p, m, refs, h, matches)
	})
}

// scanManifest queues what wants a manifest, if something of it lacks here.
// matches: a rule may want something of its repository.
func (r *Reconciler) scanManifest(p *rules.Project, m catalog.ManifestInfo, refs []catalog.Ref, h *held, matches bool) error {
	whole, err := h.has(m.Digest)
	if err != nil {
		return err
	}
	if !whole {
		// Small manifests come with their entries. A large one is a blob, and nobody
		// can pull by it until it is here.
		if err := r.wantBlob(large, p.PID, m.Repo, content{m.Digest, m.Size, m.Home}, m.At); err != nil {
			return err
		}
	}
	if !matches && m.Home != r.cfg.Site {
		return nil
	}
	for _, ref := range refs {
		if !whole {
			break
		}
		if ref.Kind == catalog.RefManifest {
			// A child that is known is looked at in its turn.
			_, err = r.cat.Manifest(p.PID, m.Repo, ref.Digest)
			whole = err == nil
			if errors.Is(err, catalog.ErrNotFound) {
				err = nil
			}
		} else {
			whole, err = h.has(ref.Digest)
		}
		if err != nil {
			return err
		}
	}
	if whole {
		return nil
	}
	return r.wantAbove(p, m)
}

// pointReads is how many blobs a scan looks up one by one before it reads all
// rows of blobs at once: a small project must not cost what the store holds, and
// a large one not a point read for each of its blobs.
const pointReads = 20_000

// held says which blobs of a project this store holds for good. What comes or goes while a
// scan runs is noticed by those who bring it, and by the store's feed.
type held struct {
	cat   *catalog.Catalog
	pid   identity.ProjectID
	reads int
	seed  maphash.Seed // random, so that nobody can make digests that collide
	all   []uint64     // sorted hashes of digests, once there were pointReads
}

func newHeld(cat *catalog.Catalog, pid identity.ProjectID) *held {
	return &held{cat: cat, pid: pid, seed: maphash.MakeSeed()}
}

func (h *held) has(d digest.Digest) (bool, error) {
	if h.reads++; h.reads <= pointReads {
		row, err := h.cat.BlobIn(h.pid, d)
		if errors.Is(err, catalog.ErrNotFound) {
			return false, nil
		}
		return err == nil && keeps(row), err
	}
	if h.all == nil {
		if err := h.readAll(); err != nil {
			return false, err
		}
	}
	_, found := slices.BinarySearch(h.all, maphash.String(h.seed, string(d)))
	return found, nil
}

// readAll takes eight bytes for each blob.
func (h *held) readAll() error {
	h.all = []uint64{}
	var shared []uint64 // with other projects
	err := h.cat.EachProof(h.pid, func(d digest.Digest) error {
		shared = append(shared, maphash.String(h.seed, string(d)))
		return nil
	})
	if err != nil {
		return err
	}
	slices.Sort(shared)
	err = h.cat.EachBlob(func(row catalog.BlobRow) error {
		if !keeps(row) {
			return nil
		}
		hash := maphash.String(h.seed, string(row.Digest))
		if row.For != h.pid {
			if _, found := slices.BinarySearch(shared, hash); !found {
				return nil
			}
		}
		h.all = append(h.all, hash)
		return nil
	})
	slices.Sort(h.all)
	return err
}

// keeps: a cached copy has to be promised before it counts.
func keeps(row catalog.BlobRow) bool {
	return row.State == catalog.Present && (row.Class == catalog.Home || row.Class == catalog.Placed)
}
