package sync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// DefaultPoll is how often heads are compared when nothing hints at a need.
	DefaultPoll = 6 * time.Second
	// DefaultTruth is how often hints about a peer's blobs are compared with what it
	// holds. Each side reads all of its rows about them then.
	DefaultTruth = time.Hour
	// pullProjectWithin bounds PullProject: a client's push waits for it.
	pullProjectWithin = 2 * time.Second
	// hungGrace is what a site gets of it that used all of it up the last time and
	// has not answered anything since: enough for the round trip of a link that
	// has just come back.
	hungGrace = 300 * time.Millisecond
)

var (
	// ErrUnknownProject is returned for a project that the control state here, or
	// at the asked node, does not have or does not allow there.
	ErrUnknownProject = errors.New("project unknown at this site")
	// ErrNotContent is returned for a node that stores no content.
	ErrNotContent = errors.New("the node is no content node of this mesh")
)

// Host is what a Sync needs of a data plane (plane.Of makes one of a *peer.Host).
type Host interface {
	Handle(protocol string, handle plane.Handler)
	Open(ctx context.Context, to identity.NodeID, protocol string) (plane.Stream, error)
	Connected(id identity.NodeID) bool
}

// Announcer is the gossip: hints only.
type Announcer interface {
	// Announce sends to every live member, at once, best effort.
	Announce(kind byte, payload []byte)
	// Alive says whether the node was heard of lately.
	Alive(id identity.NodeID) bool
	// RTT gives the round trip to it.
	RTT(id identity.NodeID) (time.Duration, bool)
}

// Config is what a Sync needs.
type Config struct {
	// Self is this node, Site its site.
	Self identity.NodeID
	Site string
	// Dir takes one small file that says that the first exchange was done.
	Dir string
	// Store is this node's store; its catalogue is what is kept equal.
	Store *store.Store
	// State is the control state: members, projects, residency.
	State *state.State
	Host  Host
	// Announcer may be nil: then polls alone find what is new.
	Announcer Announcer
	// Truth is how often hints about a peer's blobs are compared with what it holds;
	// zero: DefaultTruth.
	Truth time.Duration
	// Poll is how often heads are compared without a hint; zero: DefaultPoll.
	Poll time.Duration
	// Now is this node's clock.
	Now    func() time.Time
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer

	// Of tests. Zero: the constant.
	keepStream time.Duration
}

// Sync exchanges catalogues and feeds with all other content nodes.
type Sync struct {
	cfg     Config
	log     *slog.Logger
	cat     *catalog.Catalog
	poll    time.Duration
	metrics *metrics

	mu         sync.Mutex
	links      map[identity.NodeID]*link
	unseen     map[identity.NodeID]map[identity.ProjectID]*catalog.Unseen // what nodes say that they wrote
	parked     map[identity.ProjectID]bool                                // hinted at, unknown to the control state
	projects   uint64                                                     // raft index up to which links know what projects there are, and where
	pulling    map[identity.ProjectID]chan struct{}                       // closed when the pull under way ends; see courtesy
	anew       map[identity.ProjectID]time.Time                           // pulled anew without a loss of its own; see stubborn
	dropping   map[identity.ProjectID]bool                                // see Drop
	forgetting map[identity.ProjectID]bool                                // see lostRows
	halfForgot map[identity.ProjectID]bool                                // whose vector could not be dropped, or not with all that follows
	notForgot  chan struct{}                                              // capacity 1: there is one more of them
	life       context.Context                                            // of Run; nil before
	first      chan struct{}
	firstDone  bool
	began      time.Time // by this node's clock
	peersSet   bool      // the control state names this node: the list of peers is whole

	onPeers   []func()
	onHolders []func()
	onApplied []func(identity.ProjectID, catalog.Applied)
	onPulled  []func(identity.ProjectID)
	onExplain func(identity.ProjectID, string, digest.Digest) string
	onReason  func(identity.ProjectID) string
	unhook    []func() // of the catalogue's callbacks
	pushes    pushHooks

	hints    hints
	expected *expectations
	asking   sharedAsks
	provers  *provers // for others
	proving  *provers // by others
	sums     ownSums
	clock    clock
}

// New makes a Sync; Run starts it.
func New(cfg Config) (*Sync, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Poll == 0 {
		cfg.Poll = DefaultPoll
	}
	cfg.keepStream = cmp.Or(cfg.keepStream, keepStream)
	if cfg.Truth == 0 {
		cfg.Truth = DefaultTruth
	}
	s := &Sync{
		cfg: cfg, log: cfg.Logger, cat: cfg.Store.Catalog(), poll: cfg.Poll,
		links:    map[identity.NodeID]*link{},
		parked:   map[identity.ProjectID]bool{},
		unseen:   map[identity.NodeID]map[identity.ProjectID]*catalog.Unseen{},
		pulling:  map[identity.ProjectID]chan struct{}{},
		anew:     map[identity.ProjectID]time.Time{},
		dropping: map[identity.ProjectID]bool{}, forgetting: map[identity.ProjectID]bool{}, halfForgot: map[identity.ProjectID]bool{}, notForgot: make(chan struct{}, 1),
		first:    make(chan struct{}),
		began:    cfg.Now(),
		expected: newExpectations(), provers: newProvers(proofsAtOnce, 1), proving: newProvers(provesAtOnce, provesEach),
	}
	s.hints.init()
	s.clock.init(cfg.Now())
	switch _, err := os.Stat(s.markerPath()); {
	case err == nil:
		s.firstDone = true
		close(s.first)
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("read the mark of the first exchange: %w", err)
	}
	var err error
	if s.metrics, err = newMetrics(s, cfg.Registerer); err != nil {
		return nil, err
	}
	s.unhook = []func(){s.cat.OnLocalWrite(s.hints.onLocalWrite), s.cat.OnCommit(s.hints.onCommit), s.cat.OnFeed(s.hints.onFeed)}
	return s, nil
}

// Run serves this package's protocols, until the host closes, and keeps links to
// all content nodes until ctx ends.
func (s *Sync) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.life = ctx
	s.mu.Unlock()
	s.cfg.Host.Handle(catalogueProtocol, s.serveCatalogue)
	s.cfg.Host.Handle(feedProtocol, s.serveFeed)
	s.cfg.Host.Handle(askProtocol, s.serveAsk)
	var wg sync.WaitGroup
	defer s.metrics.unregister()
	defer func() {
		for _, f := range s.unhook {
			f()
		}
	}()
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.announce(ctx) })
	wg.Go(func() { s.audit(ctx) })
	wg.Go(func() { s.dropGone(ctx) })
	wg.Go(func() { s.watchClock(ctx) })
	for {
		changed := s.cfg.State.Changed()
		s.followMembers(ctx, &wg)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// followMembers starts links to new content nodes, ends those to removed ones,
// and makes heads due when projects came, went or moved.
func (s *Sync) followMembers(ctx context.Context, wg *sync.WaitGroup) {
	view := s.cfg.State.View()
	want := map[identity.NodeID]bool{}
	for _, n := range view.Nodes() {
		if !n.Witness && n.ID != s.cfg.Self {
			want[n.ID] = true
		}
	}
	_, self := view.Node(s.cfg.Self)
	if _, removed := view.Removed(s.cfg.Self); removed {
		clear(want) // nobody would answer
	}
	projects := view.ResidenceChangedAt()

	s.mu.Lock()
	for id, l := range s.links {
		if !want[id] {
			l.cancel()
			delete(s.links, id)
			delete(s.unseen, id)
		}
	}
	for id := range want {
		if s.links[id] != nil {
			continue
		}
		l := newLink(s, id)
		lctx, cancel := context.WithCancel(ctx)
		l.cancel = cancel
		s.links[id] = l
		wg.Go(func() { l.run(lctx); s.dropGone(ctx) })
	}
	due := s.projects != projects
	s.projects = projects
	s.peersSet = self
	for pid := range s.parked {
		if s.mayRestHere(view, pid) {
			delete(s.parked, pid)
			due = true
		}
	}
	links := s.linkList()
	s.mu.Unlock()
	if due {
		for _, l := range links {
			wake(l.headsDue)
		}
	}
	s.checkFirst()
}

// linkList is called with mu held.
func (s *Sync) linkList() []*link {
	out := make([]*link, 0, len(s.links))
	for _, l := range s.links {
		out = append(out, l)
	}
	return out
}

func (s *Sync) link(id identity.NodeID) *link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links[id]
}

func (s *Sync) allLinks() []*link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linkList()
}

// mayRestHere: the control state knows the project and lets it rest here.
func (s *Sync) mayRestHere(view *state.View, pid identity.ProjectID) bool {
	p, ok := view.ProjectByPID(pid)
	return ok && view.MayRest(p, s.cfg.Site)
}

// takes says whether a node may be sent what is here of a project: it is shared
// with it, and may rest at its site. A site that leaves the project only gives.
func (s *Sync) takes(view *state.View, pid identity.ProjectID, node identity.NodeID) *Refusal {
	if r := s.shared(view, pid, node); r != nil {
		return r
	}
	n, _ := view.Node(node)
	if p, _ := view.ProjectByPID(pid); !view.MayRest(p, n.Site) {
		return refusal(Refusal_CODE_RESIDENCY, "project "+p.Name+" leaves site "+n.Site+", and is not sent there any more")
	}
	return nil
}

// shared says whether a project may be spoken of with a node: both sites hold it,
// and the node is a content node. It is asked at both ends.
func (s *Sync) shared(view *state.View, pid identity.ProjectID, node identity.NodeID) *Refusal {
	n, ok := view.Node(node)
	if !ok || n.Witness {
		return refusal(Refusal_CODE_NOT_A_PEER, "the asking node is no content node of this mesh")
	}
	p, ok := view.ProjectByPID(pid)
	if !ok {
		return refusal(Refusal_CODE_UNKNOWN, "site "+s.cfg.Site+" does not know project "+pid.String()+" yet")
	}
	for _, site := range []string{s.cfg.Site, n.Site} {
		if !p.Residence(site).Holds() {
			return refusal(Refusal_CODE_RESIDENCY, "project "+p.Name+" may not rest at site "+site)
		}
	}
	return nil
}

// PeersChanged tells that gossip saw a node come, go or come back: nodes that
// were out of reach are asked at once.
func (s *Sync) PeersChanged() {
	for _, l := range s.allLinks() {
		if l.isBack(s.cfg.Announcer == nil || s.cfg.Announcer.Alive(l.node)) {
			wake(l.headsDue)
			wake(l.feedDue)
		}
	}
}

// OnPeers has fn called, from a goroutine of Sync's, when a peer is in reach
// again. Call it before Run; fn must not block.
func (s *Sync) OnPeers(fn func()) { s.onPeers = append(s.onPeers, fn) }

// OnHolders has fn called when feeds brought something new. Call it before Run;
// fn must not block.
func (s *Sync) OnHolders(fn func()) { s.onHolders = append(s.onHolders, fn) }

// OnApplied has fn called after each page of another site's entries that was
// taken in. Call it before Run; fn must not block.
func (s *Sync) OnApplied(fn func(identity.ProjectID, catalog.Applied)) {
	s.onApplied = append(s.onApplied, fn)
}

// OnPulled has fn called after a pull of a project ended, also one that broke off:
// no page of it comes any more. Call it before Run; fn must not block.
func (s *Sync) OnPulled(fn func(identity.ProjectID)) { s.onPulled = append(s.onPulled, fn) }

// OnExplain has fn called to tell other nodes why an artifact is not wholly
// here. Call it before Run.
func (s *Sync) OnExplain(fn func(pid identity.ProjectID, repository string, d digest.Digest) string) {
	s.onExplain = fn
}

func (s *Sync) peersChanged() {
	for _, fn := range s.onPeers {
		fn()
	}
}

func (s *Sync) holdersChanged() {
	for _, fn := range s.onHolders {
		fn()
	}
}

// PullProject asks all peers that may hold the project for what is new in it
// and waits, two seconds at most, and less for a site that has let the last call
// wait for nothing. Calls at the same time share the work. It returns the names of
// the sites that did not answer: of what they have, nothing can be said.
func (s *Sync) PullProject(ctx context.Context, pid identity.ProjectID) (unreachable []string, err error) {
	view := s.cfg.State.View()
	if !s.mayRestHere(view, pid) {
		return nil, ErrUnknownProject
	}
	calls := map[*link]*call{}
	for _, l := range s.allLinks() {
		if s.shared(view, pid, l.node) == nil {
			calls[l] = l.request(pid)
		}
	}
	for _, l := range awaitLinks(ctx, pid, calls) {
		unreachable = append(unreachable, l.site())
	}
	slices.Sort(unreachable)
	return slices.Compact(unreachable), nil
}

// PullFrom pulls what a node has of a project by now, however long that takes.
func (s *Sync) PullFrom(ctx context.Context, node identity.NodeID, pid identity.ProjectID) error {
	l := s.link(node)
	if l == nil {
		return fmt.Errorf("node %s is not in reach", node.Short())
	}
	return waitAll(ctx, []*call{l.request(pid)})
}

// awaitLinks waits for calls and gives the links whose call did not end well in
// time. A site that hangs is not worth two seconds of every client that asks for
// a tag which is not there: it has them once for a project, and then only a grace,
// until that pull ends or the peer answers anything else. The calls themselves go
// on; nothing that they bring is lost.
func awaitLinks(ctx context.Context, pid identity.ProjectID, calls map[*link]*call) (late []*link) {
	long, cancel := context.WithTimeout(ctx, pullProjectWithin)
	defer cancel()
	grace, cancelGrace := context.WithTimeout(ctx, hungGrace)
	defer cancelGrace()
	for l, c := range calls {
		within := long
		if l.hangs(pid) {
			within = grace
		}
		err := waitAll(within, []*call{c})
		if err == nil {
			continue
		}
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && !c.ended() {
			l.setHung(pid)
		}
		if !c.ended() || c.err != nil {
			late = append(late, l)
		}
	}
	return late
}

// FirstDone is closed when this store has once had everything that the peers in
// reach had: until then it knows too little to say that something is not there.
// It stays so over restarts.
func (s *Sync) FirstDone() <-chan struct{} { return s.first }

func (s *Sync) markerPath() string { return filepath.Join(s.cfg.Dir, "first-exchange") }

// checkFirst: every peer was tried, and one at least answered with all it had;
// a mesh of one has nobody to ask.
func (s *Sync) checkFirst() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.firstDone || !s.peersSet {
		return
	}
	reached := len(s.links) == 0
	for _, l := range s.links {
		st := l.state()
		if !st.attempted {
			return
		}
		reached = reached || st.err == nil && st.pullErr == nil
	}
	if !reached {
		return
	}
	// No fsync: losing the mark costs another first exchange, nothing else.
	if err := os.WriteFile(s.markerPath(), []byte("done\n"), 0o600); err != nil {
		s.log.Warn("the mark of the first exchange was not written: the next start waits for peers again", "error", err)
	}
	s.firstDone = true
	close(s.first)
	s.log.Info("first exchange of catalogues done", "peers", len(s.links))
}

// PeerStatus is what is known of one peer.
type PeerStatus struct {
	Node identity.NodeID
	Site string
	// Connected: there is a data connection now.
	Connected bool
	// ContactAt is when heads were last exchanged; zero: never since the start.
	ContactAt time.Time
	// SyncedAt is the time up to which everything that the peer had is here.
	SyncedAt time.Time
	// Offset is the peer's clock minus this node's, RTT the round trip in which
	// it was measured.
	Offset, RTT time.Duration
	// Error is why the last exchange failed; empty: it did not.
	Error string
}

// Peers gives the state of all peers, by site.
func (s *Sync) Peers() []PeerStatus {
	var out []PeerStatus
	for _, l := range s.allLinks() {
		st := l.state()
		p := PeerStatus{
			Node: l.node, Site: l.site(), Connected: s.cfg.Host.Connected(l.node),
			ContactAt: st.contactAt, SyncedAt: st.syncedAt, Offset: st.offset, RTT: st.rtt,
		}
		if err := cmp.Or(st.err, st.pullErr, st.feedErr); err != nil {
			p.Error = err.Error()
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int { return cmp.Compare(a.Site, b.Site) })
	return out
}

// Offsets gives the clocks of the peers that were reached, minus this node's.
func (s *Sync) Offsets() map[identity.NodeID]time.Duration {
	out := map[identity.NodeID]time.Duration{}
	for _, l := range s.allLinks() {
		if st := l.state(); !st.contactAt.IsZero() {
			out[l.node] = st.offset
		}
	}
	return out
}
