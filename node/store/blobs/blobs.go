package blobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// Sentinel errors; package store re-exports them with the same identity.
var (
	ErrNotFound        = errors.New("not found in this store")
	ErrNoSpace         = errors.New("no space left in this store: free some space on its disk, then try again")
	ErrDigestMismatch  = errors.New("content does not have the digest it was sent under: send it again")
	ErrUploadBusy      = errors.New("another request is writing to this upload: wait for it, then ask for the offset")
	ErrTooManyUploads  = errors.New("too many uploads are open at this store: try again later")
	ErrUploadShare     = errors.New("this user has as many uploads open as one user may: finish or cancel some, or wait until they expire")
	ErrTooLarge        = errors.New("content is larger than this store takes")
	ErrCorrupt         = errors.New("stored content is damaged: it was put aside and has to be fetched or pushed again")
	ErrFetchBusy       = errors.New("this content is being fetched already")
	ErrIncomplete      = errors.New("not all units of this content have arrived")
	errClosed          = errors.New("handle is closed")
	errUnsyncedUpload  = errors.New("the disk did not keep what was written: the upload was given up, start it again")
	errUnsyncedPartial = errors.New("the disk did not keep what was written: the fetch starts anew")
)

const (
	dirPerm  = 0o750
	filePerm = 0o640

	// copyBuffer is the piece in which uploads are read, written and hashed:
	// small enough for the second-level cache, large enough to make system
	// calls rare.
	copyBuffer = 256 << 10

	// maxCopyBuffers bounds those in use, since a slow client has its own for long.
	// Further ones get smallBuffer, with which copying costs a tenth more.
	maxCopyBuffers = 256
	smallBuffer    = 32 << 10

	// checkpointEvery bounds what a crash makes a client or peer send again, and
	// keeps the disk writing so that the sync at the end is short.
	checkpointEvery = 64 << 20
)

// Config says where a Store is and what bounds it.
type Config struct {
	Dir    string           // the store's directory
	Logger *slog.Logger     // required
	Now    func() time.Time // judges the age of uploads and partials

	MaxUpload  int64 // bytes of one upload, at most units.MaxSize
	MaxUploads int   // uploads open at once
	// MaxPerOwner bounds the uploads that one Owner has open; 0: no bound.
	MaxPerOwner int
	SmallMax    int // up to here the last Append of an upload touches no file

	// Space is asked before so many bytes are added; an error refuses them. Nil:
	// the disk alone says when it is full.
	Space func(bytes int64) error

	// Backend is where finished blobs go; nil: the disk. The caller of Open calls
	// Prove before anything else.
	Backend *Backend
	StoreID string // whose objects those of the backend are
}

// Store is the files of one store.
type Store struct {
	cfg     Config
	log     *slog.Logger
	place   place    // of finished blobs: disk or objects
	disk    *disk    // also where it is not the place: uploads are below its dir
	objects *objects // nil: finished blobs are on the disk

	bufs sync.Pool            // of *[]byte, copyBuffer long
	busy chan struct{}        // one for each of them that an append uses
	sync func(*os.File) error // syncData; tests let it fail
	// probing has room for one: whoever writes or removes the files of a probe.
	probing chan struct{}
	// every is checkpointEvery; tests have less.
	every int64

	mu       sync.Mutex
	uploads  map[string]*Upload // those touched since the start
	nUploads int                // sessions open, those from before the start included
	shares   map[Owner]int      // of them, by owner
	earlier  map[Owner][]string // ids of sessions from before the start, also of those that have ended since
	partials map[digest.Digest]*Partial
}

// Open makes the directories, counts the uploads left from before, and reads
// nothing else: its cost does not grow with the number of blobs.
func Open(cfg Config) (*Store, error) {
	s := &Store{
		cfg:      cfg,
		log:      cfg.Logger,
		sync:     syncData,
		every:    checkpointEvery,
		busy:     make(chan struct{}, maxCopyBuffers),
		probing:  make(chan struct{}, 1),
		uploads:  make(map[string]*Upload),
		shares:   make(map[Owner]int),
		earlier:  make(map[Owner][]string),
		partials: make(map[digest.Digest]*Partial),
	}
	s.disk = &disk{dir: cfg.Dir, dirs: newDirs(cfg.Dir), now: func() time.Time { return s.cfg.Now() }}
	s.place = s.disk
	if s.cfg.Space == nil {
		s.cfg.Space = func(int64) error { return nil }
	}
	s.bufs.New = func() any { b := make([]byte, copyBuffer); return &b }
	dirs := []string{"uploads", "partial", "quarantine"}
	if cfg.Backend != nil {
		s.objects = newObjects(cfg)
		s.place = s.objects
		dirs = append(dirs, dirDoubtful)
		if most := cfg.Backend.MaxObject; most > 0 && most < s.cfg.MaxUpload {
			s.cfg.MaxUpload = most
		}
	} else {
		for _, alg := range units.Algorithms() {
			dirs = append(dirs, filepath.Join("blobs", alg.String()), filepath.Join("units", alg.String()))
		}
	}
	for _, d := range dirs {
		if err := s.disk.dirs.keep(filepath.Join(cfg.Dir, d)); err != nil {
			return nil, err
		}
	}
	names, err := readNames(filepath.Join(cfg.Dir, "uploads"))
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if id, ok := strings.CutSuffix(n, extData); ok {
			if owner, err := parseID(id); err == nil {
				s.count(owner, 1)
				if owner != NodeOwner {
					s.earlier[owner] = append(s.earlier[owner], id)
				}
			}
		}
	}
	return s, nil
}

// InBucket reports whether finished blobs go to a bucket.
func (s *Store) InBucket() bool { return s.cfg.Backend != nil }

// buffer gives what an append copies through, and the way to give it back.
func (s *Store) buffer() (b []byte, back func()) {
	select {
	case s.busy <- struct{}{}:
		p := s.bufs.Get().(*[]byte)
		return *p, func() { s.bufs.Put(p); <-s.busy }
	default:
		return make([]byte, smallBuffer), func() {}
	}
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}

// stem is a digest as the name of a file that lies beside those of other
// algorithms: sha512-<hex>.
func stem(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// Open opens the file of a blob that has size bytes according to its row. A file
// that is missing or has another size is ErrCorrupt: it was acknowledged once.
// Where Remote says yes there are no files: use OpenAt.
func (s *Store) Open(d digest.Digest, size int64) (*os.File, error) { return s.disk.open(d, size) }

// Has says whether a blob of this size is there, without opening it.
func (s *Store) Has(ctx context.Context, d digest.Digest, size int64) (bool, error) {
	return s.place.has(ctx, d, size)
}

// Stat gives the file of a blob; not where Remote says yes.
func (s *Store) Stat(d digest.Digest) (os.FileInfo, error) { return os.Stat(s.disk.blobPath(d)) }

// List reads the unit list that rec names. A blob of one unit has no file.
func (s *Store) List(ctx context.Context, rec units.Record) (*units.List, error) {
	if alg := rec.Digest.Algorithm(); units.ListBytes(alg, rec.Size) == units.ListBytes(alg, 0) {
		b, err := (&units.List{}).MarshalBinary()
		if err != nil {
			return nil, err
		}
		return units.ParseList(rec, b)
	}
	b, err := s.place.list(ctx, rec.Digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("unit list of %s: %w", rec.Digest, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read the unit list of %s: %w", rec.Digest, err)
	}
	return units.ParseList(rec, b)
}

// PutList stores a list that was made anew for a blob that is here.
func (s *Store) PutList(ctx context.Context, l *units.List) error {
	b, err := marshalList(l)
	if err != nil || b == nil {
		return err
	}
	final := s.disk.listPath(l.Digest)
	if s.objects == nil {
		if err := s.disk.dirs.keep(filepath.Dir(final)); err != nil {
			return err
		}
	}
	return s.place.putList(ctx, l.Digest, b, final+extTmp)
}

// Remove takes away a blob and its list, durably: the caller removes the row
// after. It is not for requests that a client waits for.
func (s *Store) Remove(ctx context.Context, d digest.Digest) error { return s.place.remove(ctx, d) }

// Drop removes what Install made of a blob whose row was not committed, now or
// by the next sweep.
func (s *Store) Drop(ctx context.Context, d digest.Digest) error { return s.place.drop(ctx, d) }

// Settled says that the row of an installed blob is committed.
func (s *Store) Settled(d digest.Digest) { s.place.settled(d) }

// Quarantine puts a damaged blob aside, for people to look at, so that nobody is
// served from it and its name is free for a good copy.
func (s *Store) Quarantine(d digest.Digest) error { return s.place.quarantine(d) }

// WriteFile writes a small file by rename, durably, and makes its directory.
func WriteFile(path string, b []byte) error {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := writeFileSync(path+extTmp, b); err != nil {
		return err
	}
	if err := os.Rename(path+extTmp, path); err != nil {
		return mapError(err)
	}
	// Promise: the file is there after a power cut.
	return syncDir(filepath.Dir(path))
}

// mapError turns the system's ways of saying "full" into ErrNoSpace.
func mapError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (%w)", ErrNoSpace, err)
	}
	return err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, mapError(err))
	}
	return nil
}

// writeFileSync writes a whole small file and syncs it. On an error nothing is
// left.
func writeFileSync(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return mapError(err)
	}
	_, err = f.Write(b)
	if err == nil {
		// Promise: once it gets its name it is whole.
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path)
		return mapError(err)
	}
	return nil
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return f.Readdirnames(-1)
}

// Dir is the store's directory.
func (s *Store) Dir() string { return s.cfg.Dir }
