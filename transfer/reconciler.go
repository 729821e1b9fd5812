package transfer

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/places"
	"github.com/portolan/portolan/transfer/rules"
	"github.com/portolan/portolan/transfer/swarm"
	syncer "github.com/portolan/portolan/transfer/sync"
)

const (
	// maxActive bounds the blobs on their way to this store at a time, with those of
	// slow rules 64: few enough that artifacts complete one after the other, oldest
	// first.
	maxActive = 64 - slowAtOnce
	// artifactsAtOnce bounds the artifacts in work of which something larger than
	// a small blob is missing. One with few blobs must not leave the link idle; each
	// holds its list of blobs in memory.
	artifactsAtOnce = 16
	// aboveAtOnce of the places for blobs, and as many more for artifacts, artifactsMost
	// in all, are for each priority above most of what is under way: an image of that
	// may take hours.
	aboveAtOnce   = 4
	artifactsMost = 32
	// workers bounds the others in work, and maxSmall the small blobs that are on
	// their way, 48 MiB at most: they come in batches, of which the swarm asks for
	// as many ahead as a round trip needs. An artifact of 5 of them takes a round trip
	// and two commits, here and in front of it, and half a round trip more for what
	// comes from another receiver: with 500 ms of it, 512 a second. They
	// also find out which artifacts are bulk: looksAtOnce of them at a time, as that
	// takes a processor and holds lists of all that belongs to an artifact.
	workers     = 256
	maxSmall    = 1536
	looksAtOnce = 16
	// blobsAtOnce bounds the claimed blobs and large manifests on their way, and
	// keptAtOnce the blobs of pushes elsewhere that wait for this site. They have
	// workers and places of their own: a backfill may take hours.
	blobsAtOnce, keptAtOnce = 16, 64
	// maxInbox bounds the manifests that arrived and were not looked at yet.
	// Beyond it their projects are scanned instead.
	maxInbox = 10_000
	// hurryEvery, and hurryEach for each failed task, space out early retries: a
	// feed that brings thousands of batches must not make thousands of failed
	// tasks run for each.
	hurryEvery = 500 * time.Millisecond
	hurryEach  = time.Millisecond
)

// Fetcher brings blobs into the store (*swarm.Swarm).
type Fetcher interface {
	Fetch(ctx context.Context, w swarm.Want) error
	// Done gives how many bytes of a blob on its way are here and checked.
	Done(d digest.Digest) int64
	// CameIn gives how many bytes came of a blob on its way for the project, checked or
	// not: it moves with each piece.
	CameIn(d digest.Digest, pid identity.ProjectID) int64
}

// Exchange is what the reconciler needs of the catalogue exchange (*sync.Sync).
type Exchange interface {
	// OnApplied, OnPulled, OnPeers and OnHolders tell of news.
	OnApplied(fn func(identity.ProjectID, catalog.Applied))
	OnPulled(fn func(identity.ProjectID))
	OnPeers(fn func())
	OnHolders(fn func())
	pushExchange
	// OnExplain asks why something is not here, for other nodes.
	OnExplain(fn func(pid identity.ProjectID, repository string, d digest.Digest) string)
	// Expect hints at a blob's holder.
	Expect(d digest.Digest, site string)
	PullProject(ctx context.Context, pid identity.ProjectID) (unreachable []string, err error)
	PullFrom(ctx context.Context, node identity.NodeID, pid identity.ProjectID) error
	Peers() []syncer.PeerStatus
	Has(ctx context.Context, node identity.NodeID, q syncer.Question) (syncer.Answer, error)
	TagAt(ctx context.Context, node identity.NodeID, pid identity.ProjectID, repository, tag string) (digest.Digest, bool, error)
	Pin(ctx context.Context, node identity.NodeID, pid identity.ProjectID, blobs []digest.Digest, until time.Time) ([]bool, error)
}

// Config is what a Reconciler needs.
type Config struct {
	// Self is this node, Site its site.
	Self  identity.NodeID
	Site  string
	Store *store.Store
	State *state.State
	Swarm Fetcher
	Sync  Exchange
	// PushesTold: the registry API calls Pushed for each manifest that it accepts.
	// Without it a project with rules is scanned after pushes made here, within
	// the bounds of scanShare.
	PushesTold bool
	// Now is this node's clock.
	Now    func() time.Time
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

// Reconciler keeps this store at what is wanted here.
type Reconciler struct {
	cfg     Config
	log     *slog.Logger
	cat     *catalog.Catalog
	queue   *queue
	gate    *gate
	pushes  pushGate
	shares  *shares
	limits  limits
	running running
	active  *places.Places      // for blobs, and
	small   *places.Places      // for small ones
	looks   *semaphore.Weighted // for finding out what an artifact lacks
	metrics *metrics
	unhook  []func()

	inbox    inbox
	scans    scans
	rules    atomic.Pointer[book]
	labels   *lru.Cache[digest.Digest, map[string]string] // manifests' annotations
	hurried  chan struct{}                                // capacity 1
	settles  chan struct{}                                // capacity 1
	feedNews chan struct{}                                // capacity 1
	goneNews chan struct{}                                // capacity 1

	waiting waiting
	// waitsFull and rootsCut say once that a bound was met.
	waitsFull, rootsCut sync.Once

	mu   sync.Mutex
	gone []catalog.Dropped // lost names, and were not looked at yet

	holdsSeen *state.View // by followHolds; Run's alone
}

// New makes a Reconciler and hooks it to the exchange; Run starts it.
func New(cfg Config) (*Reconciler, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	r := &Reconciler{
		cfg: cfg, log: cfg.Logger, cat: cfg.Store.Catalog(),
		queue: newQueue(cfg.Now), gate: newGate(), active: places.New(maxActive-aboveAtOnce, aboveAtOnce, maxActive),
		small: places.New(maxSmall, 0, maxSmall), looks: semaphore.NewWeighted(looksAtOnce),
		inbox: newInbox(), scans: newScans(cfg.Now),
		hurried: make(chan struct{}, 1), settles: make(chan struct{}, 1), feedNews: make(chan struct{}, 1), goneNews: make(chan struct{}, 1),
		waiting: newWaiting(), shares: newShares(),
	}
	r.queue.gone = func(k key) { r.waiting.drop(k); r.shares.end(k) }
	var err error
	if r.labels, err = lru.New[digest.Digest, map[string]string](maxLabelled); err != nil {
		return nil, err
	}
	if r.metrics, err = newMetrics(r, cfg.Registerer); err != nil {
		return nil, err
	}
	cfg.Sync.OnApplied(r.applied)
	cfg.Sync.OnPulled(r.pulled)
	hurry := func() { wake(r.hurried) }
	cfg.Sync.OnPeers(func() { hurry(); wake(r.settles) })
	cfg.Sync.OnHolders(hurry)
	cfg.Sync.OnExplain(r.explain)
	cfg.Sync.OnKeep(r.keep)
	cfg.Sync.OnHold(r.hold)
	cfg.Sync.OnPin(r.BeginPush)
	r.unhook = []func(){r.cat.OnLocalWrite(r.written), r.cat.OnFeed(func() { wake(r.feedNews) }), r.cat.OnDropped(r.dropped)}
	return r, nil
}

// Run works until ctx ends.
func (r *Reconciler) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer r.metrics.unregister()
	defer func() {
		for _, f := range r.unhook {
			f()
		}
	}()
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.limits.follow(r.cfg.State)
	r.followPause() // before the first attempt
	wg.Go(func() { r.readInbox(ctx) })
	wg.Go(func() { r.scan(ctx) })
	wg.Go(func() { r.hurryNowAndThen(ctx) })
	wg.Go(func() { r.watchLosses(ctx) })
	wg.Go(func() { r.letGo(ctx) })
	wg.Go(func() { r.settlePins(ctx) })
	for l, n := range [lanes]int{laneArtifacts: workers, laneBulk: artifactsMost, laneSlow: slowAtOnce, laneBlobs: blobsAtOnce, laneKept: keptAtOnce} {
		for range n {
			wg.Go(func() { r.work(ctx, lane(l)) })
		}
	}
	followed := followed{here: map[identity.ProjectID]*rules.Project{}}
	for {
		changed := r.cfg.State.Changed()
		r.followPause()
		r.limits.follow(r.cfg.State)
		r.followHolds()
		r.followRules(&followed)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// followed is what followRules knows.
type followed struct {
	book  *book
	index uint64                                // of the control state
	here  map[identity.ProjectID]*rules.Project // what holds here
}

// followRules asks for a scan of each project for which other rules hold here
// than before; at the start that is every project that may rest here. Unless rules
// or sites changed it looks only at projects that did.
func (r *Reconciler) followRules(f *followed) {
	view := r.cfg.State.View()
	book := r.book(view)
	if book != f.book {
		f.book, f.index = book, 0
	}
	changed := map[identity.ProjectID]bool{}
	for p := range view.ProjectsChangedSince(f.index) {
		if p.Deleted() || !view.MayRest(p, r.cfg.Site) {
			delete(f.here, p.PID)
			book.forget(p.PID)
			r.scans.forget(p.PID)
			continue
		}
		here := book.here(p)
		before, seen := f.here[p.PID]
		f.here[p.PID] = here
		if !seen || before != here && !before.Equal(here) {
			changed[p.PID] = true
			r.scans.ask(p.PID, whole)
		}
	}
	f.index = view.Index()
	if len(changed) > 0 {
		r.queue.reconsider(changed) // some may not be wanted any more
	}
}

// Pushed tells of a manifest that this site just accepted: an index may name
// manifests whose blobs are elsewhere. It does not block.
func (r *Reconciler) Pushed(pid identity.ProjectID, repository string, d digest.Digest) {
	r.applied(pid, catalog.Applied{NewManifests: []catalog.NewManifest{{ManifestRef: catalog.ManifestRef{Repo: repository, Digest: d}}}})
	r.pulled(pid) // nothing else says when it is over
}

// applied takes note of manifests that are new here, or that a tag says now: to
// rules that look at tags they are new, too.
func (r *Reconciler) applied(pid identity.ProjectID, a catalog.Applied) {
	p, ok := r.relevant(pid)
	var arrived []catalog.ManifestRef
	for _, m := range a.NewManifests {
		if !ok || r.concerns(p, m) {
			arrived = append(arrived, m.ManifestRef)
		}
	}
	lists := [][]catalog.ManifestRef{arrived, a.MissingBytes}
	if ok && p.NeedTags() {
		lists = append(lists, a.Retagged)
	}
	seen := map[catalog.ManifestRef]bool{} // most tags come with their manifests
	for _, list := range lists {
		for _, m := range list {
			if seen[m] {
				continue
			}
			seen[m] = true
			if !r.inbox.put(arrival{pid, m}) {
				r.scans.overflowed(pid)
				return
			}
		}
	}
}

// pulled ends what applied began: what did not fit into the inbox is found by one
// scan, when all is here.
func (r *Reconciler) pulled(pid identity.ProjectID) { r.scans.settle(pid) }

// concerns reports whether there may be something to do for a manifest that arrived: a
// first exchange brings hundreds of thousands for which there is nothing.
func (r *Reconciler) concerns(p *rules.Project, m catalog.NewManifest) bool {
	if !m.Whole || m.Home == r.cfg.Site || p.Matches(m.Repo) {
		return true
	}
	return r.waiting.isFor(key{artifact, p.PID, m.Repo, m.Digest})
}

// written is for pushes made here that nobody told of.
func (r *Reconciler) written(pid identity.ProjectID) {
	if r.cfg.PushesTold {
		return
	}
	if p, ok := r.relevant(pid); ok && !p.Empty() {
		r.scans.ask(pid, patient)
	}
}

// readInbox looks at manifests as they arrive: the cost of a push is that of
// what was pushed.
func (r *Reconciler) readInbox(ctx context.Context) {
	for {
		a, ok := r.inbox.take(ctx)
		if !ok {
			return
		}
		if err := r.arrived(a); err != nil && !errors.Is(err, catalog.ErrClosed) {
			r.log.Error("a manifest that arrived could not be looked at: scanning its project", "pid", a.pid, "repository", a.ref.Repo, "digest", a.ref.Digest, "error", err)
			r.scans.ask(a.pid, patient)
		}
	}
}

func (r *Reconciler) arrived(a arrival) error {
	p, ok := r.relevant(a.pid)
	if !ok {
		return nil
	}
	m, err := r.cat.Manifest(a.pid, a.ref.Repo, a.ref.Digest)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	// Small manifests come with their entries. A large one is a blob, and nobody
	// can pull by it until it is here.
	if err := r.wantBlob(large, p.PID, m.Repo, content{m.Digest, m.Size, m.Home}, m.At); err != nil {
		return err
	}
	r.wakeWaiting(a)
	return r.wantAbove(p, m)
}

// wantAbove queues what wants a manifest here: all artifacts that take it along
// (a referrer, or a child that came late, belongs where something above it is
// wanted), or, if this site accepted it and no rule wants it, the manifest alone.
func (r *Reconciler) wantAbove(p *rules.Project, m catalog.ManifestInfo) error {
	if m.Home == r.cfg.Site {
		if d, err := r.demand(p, m); err != nil {
			return err
		} else if d.None() {
			r.want(key{own, p.PID, m.Repo, m.Digest}, m.At, m.Home, rules.Demand{})
		}
	}
	if !p.Matches(m.Repo) {
		return nil
	}
	return r.roots(p, m, func(root catalog.ManifestInfo, d rules.Demand) bool {
		r.want(key{artifact, p.PID, root.Repo, root.Digest}, m.At, root.Home, d)
		return true
	})
}

// want queues a task; what does not fit is found by a scan later.
func (r *Reconciler) want(k key, at time.Time, home string, d rules.Demand) {
	terms, _, _ := d.At(r.cfg.Now())
	if r.queue.add(k, 0, at, terms) {
		r.queue.from(k, home)
	} else if k.kind == artifact {
		r.queue.refuse(home, at)
	}
}

func (r *Reconciler) wantBlob(k kind, pid identity.ProjectID, repo string, b content, at time.Time) error {
	fetch, promote, err := r.lacking(pid, &closure{blobs: []content{b}})
	if err != nil || len(fetch)+len(promote) == 0 {
		return err
	}
	r.cfg.Sync.Expect(b.digest, b.home)
	r.queue.add(key{k, pid, repo, b.digest}, b.size, at, rules.Terms{})
	return nil
}

// wakeWaiting makes artifacts that name this manifest try again.
func (r *Reconciler) wakeWaiting(a arrival) {
	absent := key{artifact, a.pid, a.ref.Repo, a.ref.Digest}
	for _, k := range r.waiting.roots(absent) {
		r.queue.again(k)
	}
}

// waitFor notes that an artifact names manifests that the catalogue lacks.
func (r *Reconciler) waitFor(root key, absent []digest.Digest) {
	if !r.waiting.note(root, absent) {
		r.waitsFull.Do(func() {
			r.log.Warn("more manifests are waited for than can be remembered: artifacts that name others find them by retrying", "most", maxWaits)
		})
	}
}

// lost has the projects looked through that name a blob which went.
func (r *Reconciler) lost(d digest.Digest) {
	for p := range r.cfg.State.View().Projects() {
		if _, _, linked, err := r.cat.LinkedIn(p.PID, d); err != nil || linked {
			r.scans.ask(p.PID, patient)
		}
	}
}

// hurryNowAndThen makes failed tasks try early when something changed.
func (r *Reconciler) hurryNowAndThen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.hurried:
		}
		failed := r.queue.hurry()
		t := time.NewTimer(hurryEvery + time.Duration(failed)*hurryEach)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// explain tells another node why something is not wholly here.
func (r *Reconciler) explain(pid identity.ProjectID, repository string, d digest.Digest) string {
	for _, k := range []kind{artifact, own} {
		if why := r.queue.explain(key{k, pid, repository, d}); why != "" {
			return why
		}
	}
	// What was cancelled is in no queue.
	if h, held, err := r.heldBack(r.cfg.State.View(), key{artifact, pid, repository, d}); err == nil && held {
		return r.sayHeld(h).Error()
	}
	return ""
}

// wake makes a channel of capacity one ready.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
