package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// objectBlob reads a blob of a bucket: one request for all that is read in order.
// A unit that was not checked lately is held in memory until it is checked, and
// served from there. Like every Blob's, its read position is one goroutine's.
type objectBlob struct {
	s    *Store
	ctx  context.Context
	row  catalog.BlobRow
	list *units.List // nil: nothing to check against, or nothing to check
	c    *check
	off  int64

	body io.ReadCloser // nil: none is open
	at   int64         // where body stands
	held *heldUnit     // the unit that off is in, checked; its memory may be taken back
}

func (s *Store) newObjectBlob(ctx context.Context, row catalog.BlobRow, list *units.List) *objectBlob {
	return &objectBlob{s: s, ctx: ctx, row: row, list: list, c: s.checks.ofObject(row.Digest, row.Size)}
}

// openObject opens a blob of a bucket, to be served. It asks the bucket for the
// unit list alone, and that only if it has to be checked and is not remembered.
func (s *Store) openObject(ctx context.Context, row catalog.BlobRow) (Blob, error) {
	b := s.newObjectBlob(ctx, row, nil)
	if b.c.done() || !checkable(row) {
		return b, nil
	}
	rec, err := units.ParseRecord(row.Record)
	if err == nil {
		b.list, err = s.files.List(ctx, rec)
	}
	if err == nil {
		return b, nil
	}
	if errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
		return nil, err
	}
	// The list is gone or damaged, as on a disk.
	b.list = nil
	if err := s.remake(ctx, row, b); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

func (b *objectBlob) Size() int64    { return b.row.Size }
func (b *objectBlob) File() *os.File { return nil }

// Remote says that it costs a request to the bucket to read something twice.
func (b *objectBlob) Remote() bool { return true }

func (b *objectBlob) Close() error {
	b.letGo()
	return b.hangUp()
}

func (b *objectBlob) letGo() {
	if b.held != nil {
		b.s.memory.free(b.held)
		b.held = nil
	}
}

func (b *objectBlob) hangUp() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

func (b *objectBlob) Seek(off int64, whence int) (int64, error) {
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

// begin does what the first Read would have to, so that its error comes while an
// answer can still say so.
func (b *objectBlob) begin() error {
	if b.off >= b.row.Size {
		return nil
	}
	_, err := b.Read(nil)
	return err
}

// Read reads within one unit.
func (b *objectBlob) Read(p []byte) (int, error) {
	if b.off >= b.row.Size {
		return 0, io.EOF
	}
	end := b.row.Size
	if b.list != nil {
		i := int(b.off / b.list.UnitSize)
		start, n := b.list.Span(i)
		end = start + n
		if b.held != nil && b.held.unit != i {
			b.letGo()
		}
		if b.held == nil && !b.c.has(i) {
			if err := b.check(i); err != nil {
				return 0, err
			}
		}
		if b.held != nil {
			if n, ok := b.s.memory.copy(p, b.held, b.off-start); ok {
				b.off += int64(n)
				return n, nil
			}
			// Its memory was taken back for others. It is checked: on from the bucket.
			b.letGo()
		}
	}
	n, err := b.read(p[:min(int64(len(p)), end-b.off)], b.off)
	b.off += int64(n)
	return n, err
}

// ReadAt reads on a connection of its own.
func (b *objectBlob) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("blob %s: read at %d", b.row.Digest, off)
	}
	one := &objectBlob{s: b.s, ctx: b.ctx, row: b.row, list: b.list, c: b.c, off: off}
	n, err := io.ReadFull(one, p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	if cerr := one.Close(); err == nil {
		err = cerr
	}
	return n, err
}

// check reads unit i whole and checks it. Bytes that do not fit are asked for once
// more: what lies is the object, or what is between it and us.
func (b *objectBlob) check(i int) error {
	start, n := b.list.Span(i)
	held, err := b.s.memory.take(b.ctx, i, n)
	if err != nil {
		return err
	}
	for again := false; ; again = true {
		if err = b.readFull(held.bytes, start); err != nil {
			break
		}
		if err = b.list.Verify(i, held.bytes); err == nil {
			b.c.set(i)
			b.held = held
			b.s.memory.hold(held)
			return nil
		}
		if cerr := b.hangUp(); cerr != nil || again {
			break
		}
	}
	b.s.memory.drop(held)
	if errors.Is(err, units.ErrBadUnit) {
		return b.rotted(i, err)
	}
	return err
}

// rotted is spoiled for an object whose unit i is wrong: unless it is right when
// it is looked at once more under the digest's lock.
func (b *objectBlob) rotted(i int, why error) error {
	ctx := context.WithoutCancel(b.ctx)
	cause := fmt.Errorf("%w (%s: %s)", ErrCorrupt, b.row.Digest, why.Error())
	b.s.checks.known.Remove(b.row.Digest)
	err := b.s.lostUnless(ctx, b.row, cause, func(now catalog.BlobRow) (bool, error) {
		if now.Inline || now.Size != b.row.Size {
			return true, nil
		}
		start, n := b.list.Span(i)
		unit := make([]byte, n)
		whole, err := b.s.again(ctx, now, start, func(r io.Reader) error {
			_, err := io.ReadFull(r, unit)
			return err
		})
		return whole && b.list.Verify(i, unit) == nil, err
	})
	if errors.Is(err, ErrNotFound) {
		return cause // another reader was faster, or there is a good copy now
	}
	return err
}

func (b *objectBlob) readFull(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := b.read(p, off)
		p, off = p[n:], off+int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// read reads from the bucket at off. A stream that breaks is opened anew where it
// broke, once for each time that bytes have come. p may be empty: then it sees to
// it that there is a stream.
func (b *objectBlob) read(p []byte, off int64) (int, error) {
	for broken := false; ; broken = true {
		if b.body == nil || b.at != off {
			if err := b.hangUp(); err != nil {
				b.s.log.Debug("an object's stream did not close", "digest", b.row.Digest, "error", err)
			}
			body, err := b.s.files.OpenAt(b.ctx, b.row.Digest, off)
			if errors.Is(err, fs.ErrNotExist) {
				if err = b.missing(); err == nil {
					err = b.s.files.Unavailable("it does not give what it has")
				}
			}
			if err != nil {
				return 0, err
			}
			b.body, b.at = body, off
		}
		if len(p) == 0 {
			return 0, nil
		}
		n, err := b.body.Read(p)
		b.at += int64(n)
		if n > 0 || err == nil {
			return n, nil // an error comes again
		}
		_ = b.hangUp()
		if errors.Is(err, io.EOF) {
			// The object ends before the blob does, or something between says so.
			if err = b.missing(); err != nil {
				return 0, err
			}
			err = b.s.files.Unavailable("it ends its answers early")
		}
		if broken || b.ctx.Err() != nil {
			return 0, err
		}
	}
}

// missing is asked when the bucket says that the object is not there, or when it
// ends early. Only if that is confirmed is the blob lost; nil: the object is there
// and whole.
func (b *objectBlob) missing() error {
	ctx := context.WithoutCancel(b.ctx)
	cause := b.s.files.Confirm(ctx, b.row.Digest, b.row.Size)
	if !errors.Is(cause, ErrCorrupt) {
		return cause
	}
	b.s.checks.known.Remove(b.row.Digest)
	err := b.s.lostUnless(ctx, b.row, cause, func(now catalog.BlobRow) (bool, error) {
		if now.Inline {
			return true, nil
		}
		// Once more, under the lock: a push may have brought it back.
		err := b.s.files.Confirm(ctx, now.Digest, now.Size)
		if errors.Is(err, ErrCorrupt) {
			return false, nil
		}
		return err == nil, err
	})
	if errors.Is(err, ErrNotFound) {
		return cause
	}
	return err
}

// rottenObject is rotten for a blob of a bucket: it is read once more under the
// lock. Only one whose list is lost, too, comes here.
func (s *Store) rottenObject(ctx context.Context, row catalog.BlobRow) error {
	cause := fmt.Errorf("%w (%s: its bytes have another digest)", ErrCorrupt, row.Digest)
	return s.lostUnless(ctx, row, cause, func(now catalog.BlobRow) (bool, error) {
		v := now.Digest.Verifier()
		whole, err := s.again(ctx, now, 0, func(r io.Reader) error {
			_, err := io.Copy(v, r)
			return err
		})
		return whole && v.Verified(), err
	})
}

// again has fn read an object from off under the digest's lock, which no other
// way to read may be used under. whole: it has the row's size.
func (s *Store) again(ctx context.Context, row catalog.BlobRow, off int64, fn func(io.Reader) error) (whole bool, err error) {
	if err := s.files.Confirm(ctx, row.Digest, row.Size); err != nil {
		if errors.Is(err, ErrCorrupt) {
			err = nil
		}
		return false, err
	}
	r, err := s.files.OpenAt(ctx, row.Digest, off)
	if err != nil {
		return false, err
	}
	err = fn(r)
	_ = r.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = s.files.Unavailable("it ends its answers early")
	}
	return err == nil, err
}

// URL gives a presigned URL at which the client of r can read the blob, or "" if
// it is not in a bucket that gives such URLs. What comes from there is not
// checked by this store: a client checks the digest.
func (s *Store) URL(r *http.Request, d digest.Digest) (string, error) {
	row, err := s.row(d)
	if err != nil || row.Inline {
		return "", err
	}
	return s.files.URL(r, d)
}
