package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// Blob is an open blob. Its owner closes it.
type Blob interface {
	io.ReadSeekCloser
	io.ReaderAt
	// Size is the length in bytes.
	Size() int64
	// File is the file behind it, for sendfile, or nil if the bytes are in memory.
	// It shares the read position.
	File() *os.File
}

// osFile gives the embedded field a name that leaves File to the method.
type osFile = os.File

type fileBlob struct {
	*osFile
	size int64
}

func (b *fileBlob) Size() int64    { return b.size }
func (b *fileBlob) File() *os.File { return b.osFile }

type memoryBlob struct{ *bytes.Reader }

func (memoryBlob) Close() error   { return nil }
func (memoryBlob) File() *os.File { return nil }

// Stat gives a blob's size, or ErrNotFound. It reads the row alone.
func (s *Store) Stat(_ context.Context, d digest.Digest) (int64, error) {
	row, err := s.row(d)
	return row.Size, err
}

func (s *Store) row(d digest.Digest) (catalog.BlobRow, error) {
	if err := units.CheckDigest(d); err != nil {
		return catalog.BlobRow{}, err
	}
	row, err := s.cat.Blob(d)
	if err != nil {
		return catalog.BlobRow{}, fmt.Errorf("blob %s: %w", d, mapCatalogError(err))
	}
	if row.State != catalog.Present {
		return catalog.BlobRow{}, fmt.Errorf("blob %s: %w", d, ErrNotFound)
	}
	return row, nil
}

// Open opens a blob. A file that is missing or has the wrong size is put aside,
// its row is removed, and the answer is ErrCorrupt: no wrong byte is served and
// the next question finds ErrNotFound, so that it is fetched anew. Wrong bytes
// are found while they are read: then Read and ReadAt return ErrCorrupt instead.
func (s *Store) Open(ctx context.Context, d digest.Digest) (Blob, error) {
	row, err := s.row(d)
	if err != nil {
		return nil, err
	}
	if row.Inline {
		b, ok, err := s.cat.Content(d)
		if err != nil {
			return nil, fmt.Errorf("blob %s: %w", d, mapCatalogError(err))
		}
		if ok && d.Algorithm().FromBytes(b) == d {
			return memoryBlob{bytes.NewReader(b)}, nil
		}
		return nil, s.lost(ctx, row, fmt.Errorf("%w (%s: its row does not have its bytes)", ErrCorrupt, d))
	}
	return s.openFile(ctx, row)
}

// lost corrects the row of a blob that is not what the row says, and gives the
// error for whoever asked.
func (s *Store) lost(ctx context.Context, row catalog.BlobRow, cause error) error {
	return s.lostUnless(ctx, row, cause, func(now catalog.BlobRow) (bool, error) {
		if now.Inline {
			return false, nil
		}
		return s.files.Has(ctx, row.Digest, now.Size)
	})
}

// lostUnless is lost, unless the blob was repaired since somebody found it
// damaged: repaired is asked under the digest's lock, with the row as it is. Its
// error says that nobody knows: the row stays.
func (s *Store) lostUnless(ctx context.Context, row catalog.BlobRow, cause error, repaired func(catalog.BlobRow) (bool, error)) error {
	unlock := s.locks.lock(row.Digest)
	defer unlock()
	now, err := s.row(row.Digest)
	if err != nil {
		return err // somebody else was faster, or it is being deleted
	}
	good, err := repaired(now)
	if err != nil {
		return err
	}
	if good {
		// Replaced by a good copy in the meantime.
		return fmt.Errorf("blob %s was repaired just now, ask again: %w", row.Digest, ErrNotFound)
	}
	// After it is put aside: who opens blobs anew then opens no damaged one.
	defer s.damaged.Add(1)
	s.log.Error("a stored blob is damaged", "digest", row.Digest, "store", s.id, "error", cause)
	if !now.Inline {
		if err := s.files.Quarantine(row.Digest); err != nil {
			return errors.Join(cause, err)
		}
	}
	// The row's removal also tells the other sites that this store no longer
	// holds the blob.
	if err := s.cat.LostBlob(ctx, row.Digest); err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return errors.Join(cause, mapCatalogError(err))
	}
	return cause
}

// Damaged is how many blobs were found damaged, and put aside, since Open. Who
// keeps blobs open for long opens them anew when it has grown: a file that was put
// aside can still be read.
func (s *Store) Damaged() uint64 { return s.damaged.Load() }

// Record gives what a receiver needs to check a blob unit by unit: its signed
// record and list. ErrNoRecord: the blob can only be checked whole.
func (s *Store) Record(ctx context.Context, d digest.Digest) (units.Record, *units.List, error) {
	row, err := s.row(d)
	if err != nil {
		return units.Record{}, nil, err
	}
	if row.Record != nil && !row.Inline {
		rec, err := units.ParseRecord(row.Record)
		if err != nil {
			return units.Record{}, nil, err
		}
		list, err := s.files.List(ctx, rec)
		if err == nil {
			return rec, list, nil
		}
		if errors.Is(err, ErrUnavailable) {
			return units.Record{}, nil, err
		}
		// The sidecar is gone or damaged. It can be made from the blob.
		s.log.Warn("the unit list of a blob is made anew", "digest", d, "error", err)
	}
	return s.relist(ctx, row)
}

// relist hashes a blob again, signs what comes out and stores it. A blob that no
// longer has its digest is lost.
func (s *Store) relist(ctx context.Context, row catalog.BlobRow) (units.Record, *units.List, error) {
	open := s.openUnchecked
	if row.Inline {
		open = func(ctx context.Context, row catalog.BlobRow) (Blob, error) { return s.Open(ctx, row.Digest) }
	}
	b, err := open(ctx, row)
	if err != nil {
		return units.Record{}, nil, err
	}
	defer func() { _ = b.Close() }()
	return s.relistFrom(ctx, row, b)
}

// relistFrom reads the blob from where b stands, which is its beginning.
func (s *Store) relistFrom(ctx context.Context, row catalog.BlobRow, b Blob) (units.Record, *units.List, error) {
	h := units.NewHasher(row.Digest.Algorithm())
	if _, err := io.Copy(h, contextReader{ctx, b}); err != nil {
		return units.Record{}, nil, fmt.Errorf("read blob %s: %w", row.Digest, err)
	}
	if h.Digest() != row.Digest {
		return units.Record{}, nil, s.rotten(ctx, row, b.File())
	}
	list, err := s.describe(&row, h.List)
	if err == nil && list == nil {
		err = fmt.Errorf("blob %s: %w", row.Digest, ErrNoRecord)
	}
	if err != nil {
		return units.Record{}, nil, err
	}
	rec, err := units.ParseRecord(row.Record)
	if err != nil || row.Inline {
		return rec, list, err // small: made on demand, nothing to keep
	}
	row.For = identity.ProjectID{} // it may have been collected, and put again, meanwhile
	unlock := s.locks.lock(row.Digest)
	defer unlock()
	if now, err := s.row(row.Digest); err != nil || now.Size != row.Size {
		return rec, list, nil // collected meanwhile: what was read was right
	}
	if f := b.File(); f != nil {
		if st, err := f.Stat(); err == nil {
			s.checks.passed(row.Digest, st)
		}
	} else {
		s.checks.passedObject(row.Digest, row.Size)
	}
	if err := s.files.PutList(ctx, list); err != nil {
		return units.Record{}, nil, err
	}
	return rec, list, s.commitRow(ctx, row, nil, nil)
}

// rotten is lost for a file, f, of the right size and the wrong bytes. Reading it
// has taken a while: a good copy may have its name now, and stays.
func (s *Store) rotten(ctx context.Context, row catalog.BlobRow, f *os.File) error {
	if s.files.Remote() {
		return s.rottenObject(ctx, row)
	}
	return s.spoiled(ctx, row, f, errors.New("its bytes have another digest"))
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// ReadUnits opens n units of a blob, from unit first on, as one stream of length
// bytes; fewer if the blob ends before. Its owner closes it.
func (s *Store) ReadUnits(ctx context.Context, d digest.Digest, first, n int) (r io.ReadCloser, length int64, err error) {
	b, err := s.Open(ctx, d)
	if err != nil {
		return nil, 0, err
	}
	unit := units.UnitSizeFor(b.Size())
	off := int64(first) * unit
	if first < 0 || n < 1 || off > b.Size() || int64(first) > units.MaxSize/unit || int64(n) > units.MaxSize/unit {
		_ = b.Close()
		return nil, 0, fmt.Errorf("units %d+%d of %s, which has %d bytes: %w", first, n, d, b.Size(), ErrNotFound)
	}
	length = min(int64(n)*unit, b.Size()-off)
	if _, err := b.Seek(off, io.SeekStart); err != nil {
		_ = b.Close()
		return nil, 0, fmt.Errorf("read blob %s: %w", d, err)
	}
	var src io.Reader = b
	if f := b.File(); f != nil {
		src = f // io.Copy to a TCP connection can then use sendfile
	}
	if o, ok := b.(*objectBlob); ok {
		// While there is still a way to say that the bucket is away.
		if err := o.begin(); err != nil {
			_ = b.Close()
			return nil, 0, err
		}
	}
	return &unitReader{LimitedReader: io.LimitedReader{R: src, N: length}, c: b}, length, nil
}

type unitReader struct {
	io.LimitedReader
	c io.Closer
}

func (r *unitReader) Close() error { return r.c.Close() }

// mapCatalogError gives the catalogue's errors this package's identity.
func mapCatalogError(err error) error {
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return fmt.Errorf("%w (%w)", ErrNotFound, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w (%w)", ErrNoSpace, err)
	}
	return err
}
