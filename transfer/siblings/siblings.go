package siblings

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/semaphore"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/places"
	"github.com/portolan/portolan/transfer/swarm"
)

const (
	// maxRepositories bounds the repositories whose manifests are remembered, and
	// maxServed those of each: an index, its images for some platforms, and a few
	// tags that are pulled at the same time.
	maxRepositories = 4096
	maxServed       = 8
	// maxBegun bounds the images that are remembered as begun, and notAgain is how long
	// one is: what could not be had a moment ago is the clients' own to ask for.
	maxBegun = 4096
	notAgain = 10 * time.Minute
	// goneAfter: no client of an image has asked for anything for so long, or read
	// anything. A client that unpacks a large layer before it asks for the next takes
	// about a minute.
	goneAfter = 2 * time.Minute
	// maxImages bounds the images under way, imagesEach those of one subject.
	maxImages  = 32
	imagesEach = 4
	// maxFetches bounds the blobs under way, fetchesEach those of one image: one that
	// comes, and one whose unit list is here when it can.
	maxFetches  = 16
	fetchesEach = 2
)

// contents is what is asked of the catalogue.
type contents interface {
	ManifestWithRefs(pid identity.ProjectID, repo string, d digest.Digest) (catalog.ManifestInfo, []catalog.Ref, error)
	Linked(pid identity.ProjectID, repo string, d digest.Digest) (size int64, ok bool, err error)
	Proven(pid identity.ProjectID, d digest.Digest) (bool, error)
}

// Config is what New needs.
type Config struct {
	Catalog contents
	// Fetch brings a blob here: swarm.Fetch.
	Fetch func(context.Context, swarm.Want) error
	// MayRest says whether a project may rest at this site now.
	MayRest func(identity.ProjectID) bool
	Logger  *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

// Ask is a client's GET of a blob.
type Ask struct {
	Subject string // who asks: what is done ahead is bounded for each
	PID     identity.ProjectID
	Repo    string // below the project
	Digest  digest.Digest
	Missing bool // the blob is not here, and begins to come
}

// Siblings brings the rest of images.
type Siblings struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	fetches *semaphore.Weighted

	ctx    context.Context // ends with Run
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	served *simplelru.LRU[repository, []digest.Digest] // newest first
	begun  *simplelru.LRU[image, time.Time]
	pulls  map[image]*pull
	of     map[string]int // pulls, by subject
	wg     sync.WaitGroup
}

type repository struct {
	pid  identity.ProjectID
	name string
}

type image struct {
	repository
	manifest digest.Digest
}

// pull is an image whose blobs are being brought.
type pull struct {
	image
	subject string
	names   map[digest.Digest]bool
	clients int         // that are being given one of its blobs; guarded by Siblings.mu
	gone    *time.Timer // gives it up, while there is no client
}

// New makes it; Run must follow.
func New(cfg Config) (*Siblings, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Siblings{cfg: cfg, log: cfg.Logger, fetches: semaphore.NewWeighted(maxFetches), pulls: map[image]*pull{}, of: map[string]int{}}
	s.served, _ = simplelru.NewLRU[repository, []digest.Digest](maxRepositories, nil) // an error is a size below one
	s.begun, _ = simplelru.NewLRU[image, time.Time](maxBegun, nil)
	s.metrics = newMetrics()
	if err := s.metrics.register(cfg.Registerer); err != nil {
		return nil, fmt.Errorf("siblings: metrics: %w", err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Run works until ctx ends.
func (s *Siblings) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.metrics.unregister(s.cfg.Registerer)
	return nil
}

// Served notes that a client has a manifest now.
func (s *Siblings) Served(pid identity.ProjectID, repo string, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := repository{pid, repo}
	last, _ := s.served.Get(r)
	if len(last) > 0 && last[0] == d {
		return
	}
	next := make([]digest.Digest, 1, maxServed)
	next[0] = d
	for _, o := range last {
		if o != d && len(next) < maxServed {
			next = append(next, o)
		}
	}
	s.served.Add(r, next)
}

// Asked notes that a client gets a blob, and begins with the rest of its image if the
// blob is missing here. The caller calls what it returns when the client has the blob,
// or left. It does not wait for anything but the catalogue.
func (s *Siblings) Asked(a Ask) (end func()) {
	if a.Missing {
		s.consider(a)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var of []*pull
	for _, p := range s.pulls {
		if p.repository == (repository{a.PID, a.Repo}) && p.names[a.Digest] {
			p.clients++
			p.gone.Stop()
			of = append(of, p)
		}
	}
	if of == nil {
		return func() {}
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range of {
			if p.clients--; p.clients == 0 && s.pulls[p.image] == p {
				p.gone.Reset(goneAfter)
			}
		}
	})
}

// consider begins with the image that a missing blob is of: of those that name it, the
// one whose manifest was given out last.
func (s *Siblings) consider(a Ask) {
	r := repository{a.PID, a.Repo}
	s.mu.Lock()
	last, _ := s.served.Get(r)
	s.mu.Unlock()
	for _, m := range last {
		_, refs, err := s.cfg.Catalog.ManifestWithRefs(a.PID, a.Repo, m)
		if err != nil {
			continue // deleted since, or not readable: the client's request says so
		}
		p := &pull{image: image{r, m}, subject: a.Subject, names: map[digest.Digest]bool{}}
		var blobs []catalog.Ref
		for _, ref := range refs {
			if ref.Kind == catalog.RefBlob {
				p.names[ref.Digest] = true
				if ref.Digest != a.Digest {
					blobs = append(blobs, ref)
				}
			}
		}
		if p.names[a.Digest] {
			s.begin(p, blobs)
			return
		}
	}
}

// begin starts with an image, unless that was done lately or too many are under way.
func (s *Siblings) begin(p *pull, blobs []catalog.Ref) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.begun.Get(p.image); s.closed || ok && now.Sub(at) < notAgain || s.pulls[p.image] != nil {
		return
	}
	if len(s.pulls) >= maxImages || s.of[p.subject] >= imagesEach {
		s.metrics.images.WithLabelValues(imageRefused).Inc()
		return
	}
	s.begun.Add(p.image, now)
	s.pulls[p.image] = p
	s.of[p.subject]++
	s.metrics.images.WithLabelValues(imageBegun).Inc()
	ctx, cancel := context.WithCancel(s.ctx)
	p.gone = time.AfterFunc(goneAfter, cancel)
	s.wg.Go(func() {
		defer cancel()
		s.bring(ctx, p, blobs, now)
		s.mu.Lock()
		defer s.mu.Unlock()
		p.gone.Stop()
		delete(s.pulls, p.image)
		if s.of[p.subject]--; s.of[p.subject] == 0 {
			delete(s.of, p.subject)
		}
	})
}

// bring fetches what is missing of an image, in the order of its manifest. It ends
// with the first error that another blob would have as well.
func (s *Siblings) bring(ctx context.Context, p *pull, blobs []catalog.Ref, since time.Time) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	own := make(chan struct{}, fetchesEach)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, b := range blobs {
		select {
		case own <- struct{}{}:
		case <-ctx.Done():
			return
		}
		if s.fetches.Acquire(ctx, 1) != nil {
			return
		}
		wg.Go(func() {
			defer func() { s.fetches.Release(1); <-own }()
			result, err := s.fetch(ctx, p, b, since)
			s.metrics.blobs.WithLabelValues(result).Inc()
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				if ctx.Err() == nil {
					s.log.Debug("the rest of an image is not fetched ahead", "digest", p.manifest, "blob", b.Digest, "error", err)
				}
				stop(err)
			}
		})
	}
}

// fetch brings one blob, if the repository still names it and lacks it.
func (s *Siblings) fetch(ctx context.Context, p *pull, b catalog.Ref, since time.Time) (result string, err error) {
	if !s.cfg.MayRest(p.pid) {
		return blobFailed, errors.New("the project may not rest at this site")
	}
	_, named, err := s.cfg.Catalog.Linked(p.pid, p.name, b.Digest)
	if err != nil {
		return blobFailed, err
	}
	if !named {
		return blobFailed, fmt.Errorf("blob %s: %w", b.Digest, store.ErrNotFound)
	}
	here, err := s.cfg.Catalog.Proven(p.pid, b.Digest)
	if err != nil {
		return blobFailed, err
	}
	if here {
		return blobHere, nil
	}
	err = s.cfg.Fetch(ctx, swarm.Want{
		Digest: b.Digest, Size: b.Size, PID: p.pid, Class: catalog.Cached,
		Ahead: true, Subject: p.subject, Order: places.Order{At: since.UnixNano()},
	})
	switch {
	case err == nil:
		return blobBrought, nil
	case ctx.Err() != nil:
		return blobGivenUp, ctx.Err()
	}
	return blobFailed, err
}
