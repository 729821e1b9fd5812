package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// A file is checked against its unit list while it is read, unless that was done
// lately and the file is the same: a disk that changes bytes must not get them
// to a client. What was checked is served by sendfile.
const (
	// checkedFor is how long a check is believed.
	checkedFor = 24 * time.Hour
	// maxChecks bounds the files whose checks are remembered: some 200 bytes each,
	// and 128 more per GiB. Those beyond are checked again.
	maxChecks = 50_000
)

// check is what is known of one file. It is shared by all that read it.
type check struct {
	file os.FileInfo // nil: an object of a bucket
	size int64       // of the object
	at   time.Time

	mu   sync.Mutex
	good []uint64 // bit i: unit i has its digest
	left int      // units that were not checked
}

func (c *check) has(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left == 0 || c.good[i/64]&(1<<(i%64)) != 0
}

func (c *check) set(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left > 0 && c.good[i/64]&(1<<(i%64)) == 0 {
		c.good[i/64] |= 1 << (i % 64)
		if c.left--; c.left == 0 {
			c.good = nil
		}
	}
}

func (c *check) done() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left == 0
}

// checks remembers them.
type checks struct {
	now   func() time.Time
	known *lru.Cache[digest.Digest, *check]
	// turns bounds the units in memory: they are checked one after another by each
	// core, whatever the number of readers.
	turns   chan struct{}
	buffers sync.Pool // of *[]byte
}

func newChecks(now func() time.Time) (*checks, error) {
	known, err := lru.New[digest.Digest, *check](maxChecks)
	c := &checks{now: now, known: known, turns: make(chan struct{}, runtime.GOMAXPROCS(0))}
	c.buffers.New = func() any { return new([]byte) }
	return c, err
}

// of gives the check of a file, a new one if the file is not the one that was
// checked or if that was long ago.
func (c *checks) of(d digest.Digest, file os.FileInfo) *check {
	if k, ok := c.known.Get(d); ok && k.file != nil && sameFile(k.file, file) && c.now().Sub(k.at) < checkedFor {
		return k
	}
	k := newCheck(file.Size())
	k.file, k.at = file, c.now()
	c.known.Add(d, k)
	return k
}

func newCheck(size int64) *check {
	n := int((size + units.UnitSizeFor(size) - 1) / units.UnitSizeFor(size))
	return &check{size: size, good: make([]uint64, (n+63)/64), left: n}
}

// passed notes that a file was just written by somebody who hashed all of it.
func (c *checks) passed(d digest.Digest, file os.FileInfo) {
	c.known.Add(d, &check{file: file, at: c.now()})
}

// ofObject is of for an object of a bucket. Objects do not change: the digest is
// all there is to tell them apart by.
func (c *checks) ofObject(d digest.Digest, size int64) *check {
	if k, ok := c.known.Get(d); ok && k.file == nil && k.size == size && c.now().Sub(k.at) < checkedFor {
		return k
	}
	k := newCheck(size)
	k.at = c.now()
	c.known.Add(d, k)
	return k
}

// passedObject is passed for an object.
func (c *checks) passedObject(d digest.Digest, size int64) {
	c.known.Add(d, &check{size: size, at: c.now()})
}

func sameFile(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && changedAt(a) == changedAt(b)
}

// checkedBlob reads a file whose check is not done.
type checkedBlob struct {
	f    *os.File
	s    *Store
	ctx  context.Context
	row  catalog.BlobRow
	list *units.List
	c    *check
	off  int64
}

func (b *checkedBlob) Size() int64    { return b.row.Size }
func (b *checkedBlob) File() *os.File { return nil } // nobody may read past the check
func (b *checkedBlob) Close() error   { return b.f.Close() }

func (b *checkedBlob) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += b.off
	case io.SeekEnd:
		off += b.row.Size
	}
	if off < 0 {
		return 0, fmt.Errorf("blob %s: seek to %d", b.row.Digest, off)
	}
	b.off = off
	return off, nil
}

// Read reads within one unit, so that the first bytes wait for one check.
func (b *checkedBlob) Read(p []byte) (int, error) {
	if b.off >= b.row.Size {
		return 0, io.EOF
	}
	end := (b.off/b.list.UnitSize + 1) * b.list.UnitSize
	n, err := b.ReadAt(p[:min(int64(len(p)), end-b.off)], b.off)
	b.off += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (b *checkedBlob) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("blob %s: read at %d", b.row.Digest, off)
	}
	last := min(off+int64(len(p)), b.row.Size) - 1
	for i := off / b.list.UnitSize; i <= last/b.list.UnitSize && off <= last; i++ {
		if err := b.verify(int(i)); err != nil {
			return 0, err
		}
	}
	n, err := b.f.ReadAt(p, off)
	return n, b.spoiled(err)
}

// verify checks one unit unless it was. The bytes that are read next come from
// the same page cache.
func (b *checkedBlob) verify(i int) error {
	if b.c.has(i) {
		return nil
	}
	select {
	case b.s.checks.turns <- struct{}{}:
		defer func() { <-b.s.checks.turns }()
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	if b.c.has(i) {
		return nil // somebody else did it while we waited
	}
	off, n := b.list.Span(i)
	buf := b.s.checks.buffers.Get().(*[]byte)
	defer b.s.checks.buffers.Put(buf)
	if int64(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	data := (*buf)[:n]
	if k, err := b.f.ReadAt(data, off); int64(k) < n {
		return b.spoiled(err)
	}
	if err := b.list.Verify(i, data); err != nil {
		return b.spoiled(err)
	}
	b.c.set(i)
	return nil
}

// spoiled puts a file aside whose bytes are wrong, too few or unreadable, and
// gives the error for whoever reads it.
func (b *checkedBlob) spoiled(err error) error {
	if err == nil || errors.Is(err, io.EOF) && b.sound() || !spoils(err) {
		return err
	}
	return b.s.spoiled(context.WithoutCancel(b.ctx), b.row, b.f, err)
}

// sound: an end of file where the blob has its end.
func (b *checkedBlob) sound() bool {
	st, err := b.f.Stat()
	return err == nil && st.Size() == b.row.Size
}

// spoils reports whether an error of a read says that the file is no good.
func spoils(err error) bool {
	return errors.Is(err, units.ErrBadUnit) || errors.Is(err, syscall.EIO) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// spoiled is lost for an open file. A good copy that came meanwhile stays.
func (s *Store) spoiled(ctx context.Context, row catalog.BlobRow, f *os.File, why error) error {
	// The cause stays text: an io.EOF in it must not look like the end of the blob.
	cause := fmt.Errorf("%w (%s: %s)", ErrCorrupt, row.Digest, why.Error())
	s.checks.known.Remove(row.Digest)
	unlock := s.locks.lock(row.Digest)
	now, err := s.files.Stat(row.Digest)
	mine, merr := f.Stat()
	if err == nil && merr == nil && !os.SameFile(now, mine) {
		unlock()
		return cause // replaced: the next read gets the new one
	}
	err = s.files.Quarantine(row.Digest)
	unlock()
	if err != nil {
		return errors.Join(cause, err)
	}
	if err := s.lost(ctx, row, cause); !errors.Is(err, ErrNotFound) {
		return err
	}
	return cause // another reader was faster
}

// openUnchecked opens the file of a blob; only its size is known to be right.
func (s *Store) openUnchecked(ctx context.Context, row catalog.BlobRow) (Blob, error) {
	if s.files.Remote() {
		return s.newObjectBlob(ctx, row, nil), nil
	}
	f, err := s.files.Open(row.Digest, row.Size)
	if errors.Is(err, ErrCorrupt) {
		return nil, s.lost(ctx, row, err)
	}
	if err != nil {
		return nil, err
	}
	return &fileBlob{osFile: f, size: row.Size}, nil
}

// checkable says whether the bytes of a blob can be checked as they are read. If
// it was stored without a list, or this build cannot use lists, the client's own
// check is the only one.
func checkable(row catalog.BlobRow) bool {
	return row.Record != nil && units.Available(row.Digest.Algorithm()) == nil
}

// openFile opens a blob that is a file, to be served.
func (s *Store) openFile(ctx context.Context, row catalog.BlobRow) (Blob, error) {
	if s.files.Remote() {
		return s.openObject(ctx, row)
	}
	plain, err := s.openUnchecked(ctx, row)
	if err != nil {
		return nil, err
	}
	f := plain.File()
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c := s.checks.of(row.Digest, st)
	if c.done() || !checkable(row) {
		return plain, nil
	}
	rec, err := units.ParseRecord(row.Record)
	var list *units.List
	if err == nil {
		list, err = s.files.List(ctx, rec)
	}
	if err != nil {
		// The sidecar is gone or damaged: it is made anew from the blob, which checks
		// all of it.
		if err := s.remake(ctx, row, plain); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return plain, nil
	}
	return &checkedBlob{f: f, s: s, ctx: ctx, row: row, list: list, c: c}, nil
}

// remake makes a lost list anew, and leaves the file at its beginning.
func (s *Store) remake(ctx context.Context, row catalog.BlobRow, b Blob) error {
	s.log.Warn("the unit list of a blob is made anew", "digest", row.Digest)
	if _, _, err := s.relistFrom(ctx, row, b); err != nil {
		return err
	}
	_, err := b.Seek(0, io.SeekStart)
	return err
}

// installed ends a commit: the blob's row is there. fresh: its bytes were checked
// as they were written, just now. What has lain on the disk since an earlier start
// or fetch is checked when it is read.
func (s *Store) installed(d digest.Digest, size int64, fresh bool) {
	s.files.Settled(d)
	if !fresh {
		return
	}
	if s.files.Remote() {
		s.checks.passedObject(d, size)
	} else if st, err := s.files.Stat(d); err == nil {
		s.checks.passed(d, st)
	}
}
