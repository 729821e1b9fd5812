package swarm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/budget"
	"github.com/portolan/portolan/transfer/places"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// DefaultStall is the stall time of a Config that names none: some round
	// trips of the worst link, or one retransmission back-off of TCP.
	DefaultStall = 10 * time.Second
	// DefaultAnswer is how long OpenBlob waits for the first checked unit while a
	// holder shows signs of life: a unit of 1 MiB over a link of 1 Mbit/s, three
	// times over.
	DefaultAnswer = 30 * time.Second
	// lookAfter and lifeWithin: when nothing came so long after the request, those
	// who were asked have so long for a sign of life. A client is told within a
	// second that nobody answers.
	lookAfter  = 400 * time.Millisecond
	lifeWithin = 500 * time.Millisecond
	// lookAgain is how often they are looked at from then on.
	lookAgain = time.Second
	// retryAfter is what clients are told when no holder can be reached: about
	// the time in which a restarted node is back.
	retryAfter = 5 * time.Second

	// maxFlights bounds all flights, waiting ones included.
	maxFlights = 4096
	// maxPassing bounds the flights that pass through a full disk's node, each with
	// passWindow in memory.
	maxPassing = 4
	// maxBadRoots bounds the memory of lists that turned out to be false.
	maxBadRoots = 1024
)

// ErrClosed is returned when the swarm is shutting down.
var ErrClosed = errors.New("the node is shutting down")

// ErrBusy is returned when too many blobs are on their way or waiting.
var ErrBusy = fmt.Errorf("more than %d blobs are being fetched: try again later", maxFlights)

// ErrBadHolders is returned when those that have a blob sent wrong bytes.
var ErrBadHolders = errors.New("no holder sent the right bytes")

// Holders says whom to ask for a blob.
type Holders interface {
	// Holders gives the nodes that are thought to have the blob, best first. It
	// answers from memory; hints may be wrong. size is 0 if unknown.
	Holders(ctx context.Context, d digest.Digest, pid identity.ProjectID, size int64) []identity.NodeID
}

// Pacer holds bytes back for the sake of the links. *budget.Budgets is one. Both
// wait until some of n bytes may go, at least one, and say how many.
type Pacer interface {
	Send(ctx context.Context, to identity.NodeID, c budget.Class, n int) (int, error)
	Receive(ctx context.Context, c budget.Class, n int) (int, error)
}

// Swarm fetches blobs from peers and serves them to peers.
type Swarm struct {
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	sessions *sessions
	server   *server
	pipes    *pipes
	crowds   *crowds
	watching *watching
	batches  *batches
	swaps    *swaps
	landings landings
	uplink   uplink
	arrivals arrivals
	allowed  allowed
	suspects suspects
	roots    roots
	doubting doubting
	buffers  *buffers
	passing  chan struct{} // a slot for each flight that passes through
	// keep begins a partial blob; tests make it a full disk.
	keep func(context.Context, units.Record, *units.List) (*store.Partial, error)
	// storeAgain is storeAgainAfter, but in tests.
	storeAgain time.Duration

	ctx    context.Context // ends with Run; every flight's context derives from it
	cancel context.CancelFunc

	// Lock order: Swarm.mu, then flight.mu.
	mu       sync.Mutex
	closed   bool
	flights  map[digest.Digest]*flight
	turns    *places.Places // of flights that nobody waits for
	running  int            // flights, and batches, under way
	orphans  orphans
	badRoots map[[32]byte]struct{}
	wg       sync.WaitGroup
}

// New serves the blob protocol at once; Run must follow.
func New(cfg Config) (*Swarm, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Stall == 0 {
		cfg.Stall = DefaultStall
	}
	if cfg.Answer == 0 {
		cfg.Answer = DefaultAnswer
	}
	s := &Swarm{
		cfg: cfg, log: cfg.Logger, keep: cfg.Store.BeginFetch, storeAgain: storeAgainAfter,
		buffers: newBuffers(),
		passing: make(chan struct{}, maxPassing), turns: places.New(maxActive-aboveActive, aboveActive, maxActive),
		flights:  map[digest.Digest]*flight{},
		orphans:  orphans{of: map[string]int{}},
		badRoots: map[[32]byte]struct{}{},
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.metrics = newMetrics(s)
	if cfg.Registerer != nil {
		if err := s.metrics.register(cfg.Registerer); err != nil {
			s.cancel()
			return nil, fmt.Errorf("swarm: metrics: %w", err)
		}
	}
	s.pipes, s.crowds, s.watching = newPipes(), newCrowds(), newWatching(s)
	s.pipes.filled = cfg.Host.Filled
	s.sessions = newSessions(s.ctx, cfg.Host, cfg.Stall, s.pipes)
	s.sessions.pacer = cfg.Pacer
	s.batches, s.swaps = newBatches(s), newSwaps()
	s.server = newServer(cfg, supply{s}, s.metrics)
	s.server.crowds, s.server.uplink = s.crowds, &s.uplink
	s.server.circles, s.server.landings, s.server.soon, s.server.lively = newCircles(), &s.landings, s.soon, s.lively
	cfg.Host.Handle(Protocol, func(ctx context.Context, from identity.NodeID, st plane.Stream) { s.server.handle(ctx, from, st) })
	cfg.Host.Handle(HaveProtocol, s.serveHave)
	return s, nil
}

// Run works until ctx ends: then flights stop, what they have is kept for a
// resume, and their readers get an error.
func (s *Swarm) Run(ctx context.Context) error {
	tick := time.NewTicker(sessionIdle / 4)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.sessions.reap(time.Now().Add(-sessionIdle))
			continue
		case <-ctx.Done():
		}
		break
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.sessions.close()
	if s.cfg.Registerer != nil {
		for _, c := range s.metrics.all() {
			s.cfg.Registerer.Unregister(c)
		}
	}
	return nil
}

// Fetch brings a blob into the store and returns when it is durable there. One
// flight per digest serves all that ask. A caller whose context ends leaves the
// flight to the others, or to its fate (see OpenBlob). The error is
// store.ErrNotFound if no holder is known or none has it, *store.Unreachable if
// those that should have it can't be reached, store.ErrNoSpace, ErrBadHolders.
// The caller retries: a flight that has been under way keeps its units.
func (s *Swarm) Fetch(ctx context.Context, w Want) error {
	for again := false; ; {
		f, err := s.join(ctx, w, false)
		if err != nil {
			return err
		}
		err = s.fetched(ctx, f, w)
		if errors.Is(err, errContested) && !again && ctx.Err() == nil {
			again = true // the next flight goes by the other list
			continue
		}
		if f.pid == w.PID || ctx.Err() != nil {
			return err
		}
		// It came, or not, for another project.
	}
}

// fetched waits for a flight that the caller joined for.
func (s *Swarm) fetched(ctx context.Context, f *flight, w Want) error {
	defer s.leave(f, false, w.Subject)
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		f.wanted(w, -1)
		s.count(f)
	}()
	select {
	case <-f.done:
		if f.err == nil && w.Class == catalog.Placed && f.pid == w.PID && f.stored != catalog.Placed {
			// The flight may have begun for a client.
			kept, err := s.here(ctx, w.Digest, w.Class)
			if err == nil && !kept { // a cached copy, evicted in between
				err = fmt.Errorf("blob %s: %w", w.Digest, store.ErrNotFound)
			}
			return err
		}
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// here says whether the store has a blob, and makes the store responsible for it
// if that is asked.
func (s *Swarm) here(ctx context.Context, d digest.Digest, class catalog.Class) (bool, error) {
	row, err := s.cfg.Store.Catalog().Blob(d)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("%w: %w", errLocal, err)
	case row.State != catalog.Present:
		return false, nil
	}
	if class == catalog.Placed && row.Class == catalog.Cached {
		if err := s.cfg.Store.Catalog().SetClass(ctx, d, catalog.Placed); err != nil {
			return true, fmt.Errorf("%w: %w", errLocal, err)
		}
	}
	return true, nil
}

// OpenBlob opens a blob that is here or on its way. The reader blocks until the
// unit it stands in is checked, fails when the flight fails (the answer to the
// client must then be aborted, never completed), and ends with ctx. Errors are
// those of Fetch; all come within Config.Answer, and within a second if no holder
// shows a sign of life.
//
// A reader that is closed does not stop the flight if others wait for the blob,
// or if more than a quarter is here: then it goes on in the background. For each
// subject, and in all, some do; beyond them what came is kept for the next flight. Of
// less than a quarter it is dropped.
func (s *Swarm) OpenBlob(ctx context.Context, w Want) (Blob, error) {
	for {
		b, err := s.openIn(ctx, w.Digest, w.PID)
		if err == nil {
			return b, nil
		}
		if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrCorrupt) {
			return nil, err
		}
		f, err := s.join(ctx, w, true)
		if err != nil {
			return nil, err
		}
		if f.pid != w.PID {
			if err := s.outlast(ctx, f, w); err != nil {
				return nil, err
			}
			continue
		}
		r, err := s.await(ctx, f, w)
		if errors.Is(err, store.ErrNoSpace) {
			return s.passThrough(ctx, w)
		}
		return r, err
	}
}

func (s *Swarm) unreachable(nodes []identity.NodeID) *store.Unreachable {
	u := &store.Unreachable{RetryAfter: retryAfter}
	seen := map[string]bool{}
	for _, n := range nodes {
		site := n.Short()
		if s.cfg.SiteOf != nil && s.cfg.SiteOf(n) != "" {
			site = s.cfg.SiteOf(n)
		}
		if !seen[site] {
			seen[site] = true
			u.Sites = append(u.Sites, site)
		}
	}
	sort.Strings(u.Sites)
	return u
}

// join finds or starts the digest's flight and counts the caller in.
func (s *Swarm) join(ctx context.Context, w Want, reader bool) (*flight, error) {
	if err := units.CheckDigest(w.Digest); err != nil {
		return nil, err
	}
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		f := s.flights[w.Digest]
		if f != nil && f.dropped {
			// It ends; a new one may begin when it has let go of its partial.
			s.mu.Unlock()
			select {
			case <-f.done:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		if f == nil {
			if len(s.flights) >= maxFlights {
				s.mu.Unlock()
				return nil, ErrBusy
			}
			f = newFlight(s, w)
			s.flights[w.Digest] = f
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				f.run()
			}()
		}
		f.joined(w, reader)
		s.mu.Unlock()
		return f, nil
	}
}

// Progress is a blob on its way.
type Progress struct {
	Digest  digest.Digest
	Done    int64 // bytes that are here and checked
	Total   int64 // 0: not known yet
	Class   catalog.Class
	Readers int             // clients that read it as it arrives
	From    identity.NodeID // whose unit came last; zero: nobody's yet
	Since   time.Time
}

// Progress lists the blobs on their way, oldest first.
func (s *Swarm) Progress() []Progress {
	s.mu.Lock()
	out := make([]Progress, 0, len(s.flights))
	for _, f := range s.flights {
		out = append(out, f.progress())
	}
	s.mu.Unlock()
	sort.Slice(out, func(i, j int) bool { return out[i].Since.Before(out[j].Since) })
	return out
}

func (s *Swarm) site(node identity.NodeID) string {
	if s.cfg.SiteOf == nil {
		return ""
	}
	return s.cfg.SiteOf(node)
}

func (s *Swarm) isBadRoot(root [32]byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, bad := s.badRoots[root]
	return bad
}

func (s *Swarm) addBadRoot(root [32]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.badRoots) >= maxBadRoots {
		clear(s.badRoots) // they are found out again
	}
	s.badRoots[root] = struct{}{}
}
