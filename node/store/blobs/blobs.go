package blobs

import (
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
}

// Store is the files of one store.
type Store struct {
	cfg  Config
	log  *slog.Logger
	bufs sync.Pool            // of *[]byte, copyBuffer long
	sync func(*os.File) error // syncData; tests let it fail

	mu       sync.Mutex
	uploads  map[string]*Upload // those touched since the start
	nUploads int                // sessions open, those from before the start included
	shares   map[Owner]int      // of them, by owner
	partials map[digest.Digest]*Partial
}

// Open makes the directories, counts the uploads left from before, and reads
// nothing else: its cost does not grow with the number of blobs.
func Open(cfg Config) (*Store, error) {
	s := &Store{
		cfg:      cfg,
		log:      cfg.Logger,
		sync:     syncData,
		uploads:  make(map[string]*Upload),
		shares:   make(map[Owner]int),
		partials: make(map[digest.Digest]*Partial),
	}
	if s.cfg.Space == nil {
		s.cfg.Space = func(int64) error { return nil }
	}
	s.bufs.New = func() any { b := make([]byte, copyBuffer); return &b }
	dirs := []string{"uploads", "partial", "quarantine"}
	for _, alg := range units.Algorithms() {
		dirs = append(dirs, filepath.Join("blobs", alg.String()), filepath.Join("units", alg.String()))
	}
	for _, d := range dirs {
		if err := makeDir(filepath.Join(cfg.Dir, d)); err != nil {
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
			}
		}
	}
	return s, nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}

func (s *Store) blobPath(d digest.Digest) string {
	return s.path("blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

func (s *Store) listPath(d digest.Digest) string {
	return s.path("units", d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
}

// stem is a digest as the name of a file that lies beside those of other
// algorithms: sha512-<hex>.
func stem(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// Open opens the file of a blob that has size bytes according to its row. A file
// that is missing or has another size is ErrCorrupt: it was acknowledged once.
func (s *Store) Open(d digest.Digest, size int64) (*os.File, error) {
	f, err := os.Open(s.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s: its file is gone)", ErrCorrupt, d)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", d, err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open blob %s: %w", d, err)
	}
	if st.Size() != size {
		_ = f.Close()
		return nil, fmt.Errorf("%w (%s: its file has %d bytes instead of %d)", ErrCorrupt, d, st.Size(), size)
	}
	return f, nil
}

// Has says whether a file of this size is there, without opening it.
func (s *Store) Has(d digest.Digest, size int64) bool {
	st, err := os.Stat(s.blobPath(d))
	return err == nil && st.Size() == size
}

// Stat gives the file of a blob.
func (s *Store) Stat(d digest.Digest) (os.FileInfo, error) { return os.Stat(s.blobPath(d)) }

// List reads the unit list that rec names. A blob of one unit has no file.
func (s *Store) List(rec units.Record) (*units.List, error) {
	b, err := os.ReadFile(s.listPath(rec.Digest))
	if alg := rec.Digest.Algorithm(); errors.Is(err, fs.ErrNotExist) && units.ListBytes(alg, rec.Size) == units.ListBytes(alg, 0) {
		if b, err = (&units.List{}).MarshalBinary(); err != nil {
			return nil, err
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("unit list of %s: %w", rec.Digest, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read the unit list of %s: %w", rec.Digest, err)
	}
	return units.ParseList(rec, b)
}

// PutList stores a list that was made anew for a blob that is here.
func (s *Store) PutList(l *units.List) error {
	final := s.listPath(l.Digest)
	if err := makeDir(filepath.Dir(final)); err != nil {
		return err
	}
	return s.installList(l, final+extTmp)
}

// installList makes the list durable. It comes before the blob's own rename, so
// that a blob with a row never lacks the list that its record names.
func (s *Store) installList(l *units.List, tmp string) error {
	if l == nil || l.Units() == 1 {
		return nil
	}
	b, err := l.MarshalBinary()
	if err != nil {
		return err
	}
	if err := writeFileSync(tmp, b); err != nil {
		return fmt.Errorf("write the unit list of %s: %w", l.Digest, err)
	}
	if err := s.moveInto(tmp, s.listPath(l.Digest)); err != nil {
		return fmt.Errorf("store the unit list of %s: %w", l.Digest, err)
	}
	return nil
}

// moveInto renames a synced file to its final name and makes the name durable.
func (s *Store) moveInto(tmp, final string) error {
	err := os.Rename(tmp, final)
	if errors.Is(err, fs.ErrNotExist) {
		// The first blob of this first byte.
		if err := makeDir(filepath.Dir(final)); err != nil {
			return err
		}
		err = os.Rename(tmp, final)
	}
	if err != nil {
		return mapError(err)
	}
	// Promise: the name survives a power cut. Without this the bytes are on the
	// disk and nothing points at them.
	return syncDir(filepath.Dir(final))
}

// Remove unlinks a blob and its list, durably: the caller removes the row after.
func (s *Store) Remove(d digest.Digest) error {
	for _, p := range []string{s.blobPath(d), s.listPath(d)} {
		err := os.Remove(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove blob %s: %w", d, err)
		}
		// Promise: no file without a row comes back after a power cut.
		if err := syncDir(filepath.Dir(p)); err != nil {
			return err
		}
	}
	return nil
}

// Quarantine puts a damaged blob's file aside, for people to look at, so that
// nobody is served from it and its name is free for a good copy.
func (s *Store) Quarantine(d digest.Digest) error {
	to := s.path("quarantine", fmt.Sprintf("%s.%d", stem(d), s.cfg.Now().UnixNano()))
	err := os.Rename(s.blobPath(d), to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("put blob %s aside: %w", d, err)
	}
	return syncDir(filepath.Dir(s.blobPath(d)))
}

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
	return syncDir(filepath.Dir(path))
}

// mapError turns the system's ways of saying "full" into ErrNoSpace.
func mapError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w (%w)", ErrNoSpace, err)
	}
	return err
}

// makeDir makes a directory and its parents durable.
func makeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return mapError(err)
	}
	// Promise: what is renamed into the new directory is found after a power cut.
	return syncDir(parent)
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
