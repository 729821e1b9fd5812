package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// Extensions of an upload's files, see doc.go.
const (
	extData   = ".data"
	extCkpt   = ".ckpt"
	extCommit = ".commit"
	extList   = ".list"
)

// Upload is content on its way in. Its methods other than ID, Offset and
// Acquire may only be called between Acquire and Release.
//
//	open --Install--> installed --Discard--> gone
//	  \------------------Discard------------/
type Upload struct {
	s  *Store
	id string

	busy    sync.Mutex   // held by the one writer
	durable atomic.Int64 // what a crash can no longer take
	touched atomic.Int64 // unix nanoseconds by Config.Now
	files   atomic.Bool  // it has, or may have, files

	// Owned by the holder of busy.
	hasher *units.Hasher // nil until the first writer comes
	synced int           // bytes of hasher's states that are in the checkpoint file
	kept   int64         // offset of the last entry that a power cut cannot take
	data   *os.File
	ckpt   *os.File
	small  []byte // the whole content, if it never went to a file
	early  bool   // some of the bytes are from before the start
	lost   bool   // a sync failed, or the notes are in disorder: nobody knows what is on the disk
	moved  bool   // the file is a blob now
	gone   bool
}

// Upload finds an upload, also one from before a restart.
func (s *Store) Upload(id string) (*Upload, error) {
	if _, err := parseID(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if u, ok := s.uploads[id]; ok {
		return u, nil
	}
	u := &Upload{s: s, id: id}
	if err := u.recover(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNotFound
		}
		return nil, fmt.Errorf("upload %s: %w", id, err)
	}
	s.uploads[id] = u
	return u, nil
}

func (u *Upload) path(ext string) string { return u.s.path("uploads", u.id+ext) }

func (u *Upload) touch() { u.touched.Store(u.s.cfg.Now().UnixNano()) }

// Settle brings an upload whose commit came to nothing back to a state from
// which its client can go on or try again.
func (u *Upload) Settle() error {
	if u.gone {
		return nil
	}
	if u.lost {
		return u.Discard()
	}
	var err error
	if u.small != nil {
		err = u.back(u.durable.Load())
	} else {
		err = u.checkpoint(u.hasher.Size(), u.hasher.States())
	}
	if err != nil {
		return errors.Join(err, u.Discard())
	}
	return nil
}

func (u *Upload) open() (*os.File, error) {
	if u.data == nil {
		// Made here, when it is needed. Once there are bytes, a file that is gone must
		// not come back empty.
		flags := os.O_RDWR
		if u.durable.Load() == 0 {
			flags |= os.O_CREATE
		}
		u.files.Store(true)
		f, err := os.OpenFile(u.path(extData), flags, filePerm)
		if err != nil {
			return nil, err
		}
		u.data = f
	}
	return u.data, nil
}

func (u *Upload) close() {
	if u.data != nil {
		_ = u.data.Close() // synced before, or given up
		u.data = nil
	}
	if u.ckpt != nil {
		_ = u.ckpt.Close()
		u.ckpt = nil
	}
}

// ID is the upload's UUID.
func (u *Upload) ID() string { return u.id }

// Offset is the number of bytes that even a power cut leaves here. It grows
// while a writer is at work.
func (u *Upload) Offset() int64 { return u.durable.Load() }

// Acquire makes the caller the writer, or fails with ErrUploadBusy or, for an
// upload that has ended, ErrNotFound.
func (u *Upload) Acquire() error {
	if !u.busy.TryLock() {
		return fmt.Errorf("upload %s: %w", u.id, ErrUploadBusy)
	}
	if u.gone {
		u.busy.Unlock()
		return fmt.Errorf("upload %s: %w", u.id, ErrNotFound)
	}
	if u.hasher == nil {
		u.hasher = units.NewHasher(digest.Canonical)
	}
	u.touch()
	return nil
}

// Release ends what Acquire began.
func (u *Upload) Release() {
	u.close()
	u.touch()
	u.busy.Unlock()
}

// Append adds what r gives. When it returns, what it took is durable, also if r
// failed half way. If the disk is full, or the content too large, nothing of it
// is kept. With last set a small content stays in memory and syncing is left to
// Install: the caller commits at once.
func (u *Upload) Append(ctx context.Context, r io.Reader, last bool) (int64, error) {
	start := u.hasher.Size()
	n, err := u.append(ctx, r, last)
	switch {
	case err == nil && last:
		return n, nil
	case u.lost:
		return 0, errors.Join(err, u.Discard())
	case errors.Is(err, ErrNoSpace), errors.Is(err, ErrTooLarge):
		if u.back(start) != nil {
			return 0, errors.Join(err, u.Discard())
		}
		return 0, err
	}
	if cerr := u.checkpoint(u.hasher.Size(), u.hasher.States()); cerr != nil {
		if errors.Is(cerr, ErrNoSpace) && !u.lost {
			if u.back(start) == nil {
				return 0, cerr
			}
		}
		return 0, errors.Join(cerr, u.Discard())
	}
	return n, err
}

func (u *Upload) append(ctx context.Context, r io.Reader, last bool) (n int64, err error) {
	if last && u.hasher.Size() == 0 {
		// One byte more than fits tells whether it ends here.
		head := make([]byte, u.s.cfg.SmallMax+1)
		k, ended, err := fill(r, head)
		if ended {
			u.small = head[:k:k]
			_, err = u.hasher.Write(u.small)
			return int64(k), err
		}
		if werr := u.write(head[:k]); werr != nil {
			return 0, werr
		}
		n = int64(k)
		if err != nil {
			return n, fmt.Errorf("upload %s: read: %w", u.id, err)
		}
	}

	var syncing chan error // the one checkpoint under way beside the copying
	wait := func() error {
		if syncing == nil {
			return nil
		}
		err := <-syncing
		syncing = nil
		return err
	}
	defer func() {
		if werr := wait(); werr != nil {
			err = errors.Join(err, werr)
		}
	}()

	c := u.copier()
	defer func() {
		if cerr := c.end(); cerr != nil {
			err = errors.Join(err, cerr)
		}
	}()
	begun := u.hasher.Size()
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, ended, rerr := fill(r, c.room())
		if k > 0 {
			if err := c.take(k); err != nil {
				return n, err
			}
			n += int64(k)
		}
		if ended {
			return n, nil
		}
		if rerr != nil {
			return n, fmt.Errorf("upload %s: read: %w", u.id, rerr)
		}
		if c.size-begun >= u.s.every {
			if err := errors.Join(wait(), c.settle()); err != nil {
				return n, err
			}
			begun = c.size
			size, states := begun, u.hasher.States()
			syncing = make(chan error, 1)
			go func(done chan<- error) { done <- u.checkpoint(size, states) }(syncing)
		}
	}
}

// fill reads until b is full or r ends. Unlike io.ReadFull it tells r's end from
// a connection that broke, which also reads as io.ErrUnexpectedEOF.
func fill(r io.Reader, b []byte) (n int, ended bool, err error) {
	for n < len(b) {
		k, err := r.Read(b[n:])
		n += k
		if err == io.EOF {
			return n, n < len(b), nil
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, false, nil
}

// write adds b to file and hash.
func (u *Upload) write(b []byte) error {
	if err := u.put(b, u.hasher.Size()); err != nil {
		return err
	}
	_, err := u.hasher.Write(b)
	return err
}

// put adds b to the file, which has size bytes.
func (u *Upload) put(b []byte, size int64) error {
	if size+int64(len(b)) > u.s.cfg.MaxUpload {
		return fmt.Errorf("%w: at most %d bytes", ErrTooLarge, u.s.cfg.MaxUpload)
	}
	if err := u.s.cfg.Space(int64(len(b))); err != nil {
		return fmt.Errorf("upload %s: write at %d: %w", u.id, size, err)
	}
	f, err := u.open()
	if err == nil {
		_, err = f.WriteAt(b, size)
	}
	if err != nil {
		return fmt.Errorf("upload %s: write at %d: %w", u.id, size, mapError(err))
	}
	return nil
}

// Size is the number of bytes taken so far.
func (u *Upload) Size() int64 { return u.hasher.Size() }

// Algorithm is the one by which the bytes are hashed as they come.
func (u *Upload) Algorithm() digest.Algorithm { return u.hasher.Algorithm() }

// Fresh says whether all bytes were hashed in this process, as they came.
func (u *Upload) Fresh() bool { return !u.early }

// Small gives the content of an upload of at most SmallMax bytes.
func (u *Upload) Small() ([]byte, error) {
	if u.small != nil || u.hasher.Size() == 0 {
		return u.small, nil
	}
	f, err := u.open()
	if err != nil {
		return nil, err
	}
	b := make([]byte, u.hasher.Size())
	_, err = f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("upload %s: %w", u.id, err)
	}
	return b, nil
}

// Install makes the upload's file the blob d, whose digest the caller has
// compared, durably: list may be nil. The session's notes stay until Discard, so
// that a crash before the row's commit is found and cleaned up. If the place of
// blobs is [*Unavailable], or the row is not committed afterwards and Moved says
// no, the upload keeps all its bytes.
func (u *Upload) Install(ctx context.Context, d digest.Digest, list *units.List) error {
	f, err := u.open()
	if err != nil {
		return err
	}
	noted := make(chan error, 1)
	if u.s.objects == nil {
		// Promise: whatever a crash leaves of the steps below, the sweep finds which
		// digest it belongs to. Beside the bytes: the disk syncs both at once.
		go func() { noted <- writeFileSync(u.path(extCommit), []byte(d)) }()
	} else {
		noted <- nil // a bucket has notes of its own
	}
	// Promise: the bytes are on the disk before a name says that they are.
	err = u.s.sync(f)
	nerr := <-noted
	if err != nil {
		u.lost = true
		return fmt.Errorf("sync blob %s: %w", d, errors.Join(mapError(err), errUnsyncedUpload))
	}
	if nerr != nil {
		return nerr
	}
	b := &staged{digest: d, size: u.hasher.Size(), f: f, path: u.path(extData), list: list, tmp: u.path(extList)}
	err = u.s.place.install(ctx, b)
	if u.moved = b.moved; err != nil && u.moved {
		// The name may not stay: there is no upload to go on with.
		u.Leave()
	}
	return err
}

// Moved says that Install took the upload's file away: nothing is left to go on
// with.
func (u *Upload) Moved() bool { return u.moved }

// Leave ends an upload whose file was installed and whose name or row may be
// there or not: the notes stay for the sweep that can know.
func (u *Upload) Leave() {
	if !u.gone {
		u.end()
	}
}

// end makes the upload one that is no longer known.
func (u *Upload) end() {
	u.gone = true
	u.close()
	u.s.leave(u.id)
}

// Discard ends the upload and removes what is left of its files.
func (u *Upload) Discard() error {
	if u.gone {
		return nil
	}
	defer u.end()
	u.close()
	var errs []error
	if u.files.Load() {
		// .data first and .commit last: what a crash leaves in between is either a
		// session or a commit to be looked at, never an unknown file.
		for _, ext := range []string{extData, extList, extCkpt, extCommit} {
			if err := os.Remove(u.path(ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// age is the time since anybody touched the upload.
func (u *Upload) age(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, u.touched.Load()))
}
