package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

const (
	// InlineMax is the size up to which a blob is a row and not a file.
	InlineMax = catalog.MaxInlineBlob

	// LeaseFor is how long the end of an upload, a mount or a HEAD keeps a blob in
	// its repository before a manifest has to name it (catalogue.md, collecting).
	LeaseFor = 24 * time.Hour

	// DefaultMaxUploads bounds the sessions that clients may leave open: each
	// costs a file and some memory, and a start lists them (10 ms).
	DefaultMaxUploads = 10_000
	// DefaultMaxUploadsPerUser is one user's share: a build farm under one name has
	// some hundreds open, and ten such users still find room.
	DefaultMaxUploadsPerUser = 1_000

	// DefaultUploadsKeptFor and PartialsKeptFor bound how long what nobody goes on
	// with takes up space. A partial is worth more: it saves WAN traffic.
	DefaultUploadsKeptFor = 24 * time.Hour
	PartialsKeptFor       = 7 * 24 * time.Hour
	// QuarantineKeptFor is how long people can look at a damaged file.
	QuarantineKeptFor = 7 * 24 * time.Hour
)

// Class says why this store holds a blob: home, placed or cached.
type Class = catalog.Class

// The classes a fetch may commit with.
const (
	Placed = catalog.Placed
	Cached = catalog.Cached
)

// Link names the repository that an upload is made for.
type Link struct {
	PID  identity.ProjectID
	Repo string // path below the project
}

// Descriptor is what an upload came to.
type Descriptor struct {
	Digest digest.Digest
	Size   int64
}

// Config says where a store is and whose it is.
type Config struct {
	Dir       string             // the store's own directory; made if it is not there
	Identity  *identity.Identity // signs the records of what is taken in here
	Logger    *slog.Logger       // default slog.Default
	Now       func() time.Time   // judges leases and the age of uploads; default time.Now
	MaxUpload int64              // bytes of one upload; default and bound: units.MaxSize
	// MaxUploads bounds the open uploads, MaxUploadsPerUser those of one user; zero:
	// the defaults. UploadsKeptFor is how long one stays that nobody goes on with.
	MaxUploads, MaxUploadsPerUser int
	UploadsKeptFor                time.Duration
	Catalog                       catalog.Options // Logger and Now are filled in if unset
	// Bucket is where blobs above InlineMax are kept; nil: in Dir. A store stays
	// where it was made.
	Bucket *blobs.Backend
	// ScrubRate is how many bytes a second are read again to find bit rot; zero:
	// DefaultScrubRate, below: none.
	ScrubRate int64
	// Metrics takes the store's; nil: none are published.
	Metrics prometheus.Registerer
}

// Store is one store. Close it after everything that uses it has stopped.
type Store struct {
	id    identity.StoreID
	node  *identity.Identity
	log   *slog.Logger
	now   func() time.Time
	files *blobs.Store
	cat   *catalog.Catalog
	disk  *space
	locks keyLocks // by digest: installing and removing a blob's file and row

	keep    blobs.Keep // how long leftovers stay
	checks  *checks    // of files against their unit lists
	damaged *atomic.Uint64
	doubted *atomic.Uint64
	doubts  *doubts // blobs that are to be read again
	probes  *probes // attempts to write
	memory  *memory // for units of a bucket's blobs while they are checked
	scrub   *scrubber
}

// Open opens the store at cfg.Dir, or makes one there. It reads no blob: its
// cost does not grow with what is stored.
//
// A store on a bucket proves first that the bucket is its own and can be written,
// read and deleted from. If a store that was there before cannot reach its bucket
// it is opened nevertheless: what is inline is served, and blobs are
// ErrUnavailable until the bucket answers. A bucket that answers no is an error.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxUpload <= 0 || cfg.MaxUpload > units.MaxSize {
		cfg.MaxUpload = units.MaxSize
	}
	if cfg.MaxUploads <= 0 {
		cfg.MaxUploads = DefaultMaxUploads
	}
	if cfg.MaxUploadsPerUser <= 0 {
		cfg.MaxUploadsPerUser = DefaultMaxUploadsPerUser
	}
	if cfg.UploadsKeptFor <= 0 {
		cfg.UploadsKeptFor = DefaultUploadsKeptFor
	}
	if cfg.Catalog.Logger == nil {
		cfg.Catalog.Logger = cfg.Logger
	}
	if cfg.Catalog.Now == nil {
		cfg.Catalog.Now = cfg.Now
	}
	for _, alg := range units.Algorithms() {
		if err := units.Available(alg); err != nil {
			cfg.Logger.Warn("blobs are stored without unit lists", "algorithm", alg, "error", err)
		}
	}
	id, made, err := loadID(cfg.Dir, placeOf(cfg.Bucket))
	if err != nil {
		return nil, err
	}
	seen, err := newChecks(cfg.Now)
	if err != nil {
		return nil, err
	}
	disk := newSpace(cfg.Dir, cfg.Logger)
	if cfg.Catalog.Space == nil {
		cfg.Catalog.Space, cfg.Catalog.Room = disk.catalog, disk.room()
	}
	files, err := blobs.Open(blobs.Config{
		Dir: cfg.Dir, Logger: cfg.Logger, Now: cfg.Now,
		MaxUpload: cfg.MaxUpload, MaxUploads: cfg.MaxUploads, MaxPerOwner: cfg.MaxUploadsPerUser, SmallMax: InlineMax,
		Space: disk.blobs, Backend: cfg.Bucket, StoreID: id.String(),
	})
	if err != nil {
		return nil, fmt.Errorf("open the store in %s: %w", cfg.Dir, err)
	}
	if err := files.Prove(ctx, !made); err != nil {
		var u *Unavailable
		if !made || !errors.As(err, &u) || u.Refused {
			return nil, fmt.Errorf("open the store in %s: %w", cfg.Dir, err)
		}
		cfg.Logger.Error("the store's bucket cannot be reached: pulls of small content go on, blobs are unavailable until it answers", "error", err)
	}
	cat, err := catalog.Open(filepath.Join(cfg.Dir, catalogDir), cfg.Catalog)
	if err != nil {
		return nil, fmt.Errorf("open the catalogue of the store in %s: %w", cfg.Dir, err)
	}
	// What the start has still to flush keeps its room; whatever grows asks again.
	if err := disk.hold(ballastBytes); err != nil && !errors.Is(err, ErrNoSpace) {
		return nil, errors.Join(fmt.Errorf("open the store in %s: %w", cfg.Dir, err), cat.Close())
	}
	held := newMemory(heldBytes)
	damaged, doubted := new(atomic.Uint64), new(atomic.Uint64)
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "portolan_store_damaged_blobs_total", Help: "Stored blobs that were found damaged, and put aside.",
		}, func() float64 { return float64(damaged.Load()) }), prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "portolan_store_doubted_blobs_total", Help: "Stored blobs that were read again because another node was sent wrong bytes of them.",
		}, func() float64 { return float64(doubted.Load()) }))
	}
	if cfg.Bucket != nil && cfg.Metrics != nil {
		cfg.Metrics.MustRegister(held.metric(), files)
	}
	scrub := newScrubber(cfg.Dir, cfg.ScrubRate, cfg.Now, cfg.Logger)
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(scrub)
	}
	return &Store{
		scrub: scrub,
		id:    id, node: cfg.Identity, log: cfg.Logger, now: cfg.Now, files: files, cat: cat, disk: disk, checks: seen, memory: held, damaged: damaged, doubted: doubted, doubts: newDoubts(), probes: newProbes(),
		keep: blobs.Keep{Uploads: cfg.UploadsKeptFor, Partials: PartialsKeptFor, Quarantine: QuarantineKeptFor},
	}, nil
}

// Close closes the catalogue. Blobs that are open stay readable.
func (s *Store) Close() error {
	s.doubts.end()
	s.probes.end()
	err := s.cat.Close()
	if err == nil {
		// For the next start, before others take it; if they have, that one sees.
		_ = s.disk.hold(0)
	}
	return err
}

// ID is the store's own id: it stays with the disk when the node's key changes.
func (s *Store) ID() identity.StoreID { return s.id }

// Catalog is the catalogue of this store.
func (s *Store) Catalog() *catalog.Catalog { return s.cat }
