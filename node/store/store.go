package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

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
}

// Store is one store. Close it after everything that uses it has stopped.
type Store struct {
	id    identity.StoreID
	node  *identity.Identity
	log   *slog.Logger
	now   func() time.Time
	files *blobs.Store
	cat   *catalog.Catalog
	locks keyLocks // by digest: installing and removing a blob's file and row

	keep   blobs.Keep // how long leftovers stay
	checks *checks    // of files against their unit lists
}

// Open opens the store at cfg.Dir, or makes one there. It reads no blob: its
// cost does not grow with what is stored.
func Open(_ context.Context, cfg Config) (*Store, error) {
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
	id, err := loadID(cfg.Dir)
	if err != nil {
		return nil, err
	}
	seen, err := newChecks(cfg.Now)
	if err != nil {
		return nil, err
	}
	disk := newSpace(cfg.Dir, cfg.Logger)
	if cfg.Catalog.Space == nil {
		cfg.Catalog.Space = disk.catalog
	}
	files, err := blobs.Open(blobs.Config{
		Dir: cfg.Dir, Logger: cfg.Logger, Now: cfg.Now,
		MaxUpload: cfg.MaxUpload, MaxUploads: cfg.MaxUploads, MaxPerOwner: cfg.MaxUploadsPerUser, SmallMax: InlineMax,
		Space: disk.blobs,
	})
	if err != nil {
		return nil, fmt.Errorf("open the store in %s: %w", cfg.Dir, err)
	}
	cat, err := catalog.Open(filepath.Join(cfg.Dir, "catalog"), cfg.Catalog)
	if err != nil {
		return nil, fmt.Errorf("open the catalogue of the store in %s: %w", cfg.Dir, err)
	}
	return &Store{
		id: id, node: cfg.Identity, log: cfg.Logger, now: cfg.Now, files: files, cat: cat, checks: seen,
		keep: blobs.Keep{Uploads: cfg.UploadsKeptFor, Partials: PartialsKeptFor, Quarantine: QuarantineKeptFor},
	}, nil
}

// Close closes the catalogue. Blobs that are open stay readable.
func (s *Store) Close() error { return s.cat.Close() }

// ID is the store's own id: it stays with the disk when the node's key changes.
func (s *Store) ID() identity.StoreID { return s.id }

// Catalog is the catalogue of this store.
func (s *Store) Catalog() *catalog.Catalog { return s.cat }

// idFile holds the version of the layout and the id, one line each:
//
//	portolan store 1
//	<uuid>
//
// History: 1, the first.
const (
	idFile   = "store.id"
	idPrefix = "portolan store "
	idHeader = idPrefix + "1"
)

// loadID reads the store's id, or makes one, durably: holders' hints at other
// sites name it.
func loadID(dir string) (identity.StoreID, error) {
	path := filepath.Join(dir, idFile)
	b, err := os.ReadFile(path)
	if err == nil {
		head, rest, _ := strings.Cut(string(b), "\n")
		if head != idHeader {
			if strings.HasPrefix(head, idPrefix) {
				return identity.StoreID{}, fmt.Errorf("the store in %s was written by a newer version of Portolan: start that version", dir)
			}
			return identity.StoreID{}, fmt.Errorf("%s is damaged: put it back from a backup, or move the store's directory away to start with an empty one", path)
		}
		return identity.ParseStoreID(strings.TrimSpace(rest))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return identity.StoreID{}, fmt.Errorf("open the store: %w", err)
	}
	// Without an id a directory with blobs is one that lost a file, not a new one.
	if _, err := os.Stat(filepath.Join(dir, "catalog")); err == nil {
		return identity.StoreID{}, fmt.Errorf("the store in %s has content but no %s: put the file back from a backup", dir, idFile)
	}
	id := identity.NewStoreID()
	if err := blobs.WriteFile(path, []byte(idHeader+"\n"+id.String()+"\n")); err != nil {
		return identity.StoreID{}, fmt.Errorf("make a store in %s: %w", dir, err)
	}
	return id, nil
}
