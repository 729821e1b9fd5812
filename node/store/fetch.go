package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// Partial is a blob that arrives unit by unit, in any order. Put, Has, Complete
// and ReadAt may be called from many goroutines. Its owner ends it with Close
// (what came is kept for the next BeginFetch) or Abandon (it is removed), also
// after Commit; ReadAt works until then.
type Partial struct {
	*blobs.Partial
	s *Store
}

// BeginFetch opens the partial blob that rec describes and takes up what an
// earlier fetch left. It checks rec's signature and that list belongs to it;
// whether the signer is a member is the caller's question. One at a time per
// digest: ErrFetchBusy. The space is reserved first: ErrNoSpace.
func (s *Store) BeginFetch(_ context.Context, rec units.Record, list *units.List) (*Partial, error) {
	if err := rec.Verify(); err != nil {
		return nil, err
	}
	p, err := s.files.BeginFetch(rec, list)
	if err != nil {
		return nil, err
	}
	return &Partial{Partial: p, s: s}, nil
}

// FetchBegan says whether an earlier fetch of a digest left units to go on with:
// they need not be asked for together with the record.
func (s *Store) FetchBegan(d digest.Digest) bool {
	return units.CheckDigest(d) == nil && s.files.Began(d)
}

// Commit makes the complete partial a blob of this store, and of the project that
// all its units came for (Serve), if there is one. When it returns nil the blob
// outlives a power cut. The record that it came under is kept and served to others.
func (p *Partial) Commit(ctx context.Context, class Class) error {
	if !p.Complete() {
		return p.Install(ctx) // which says what is missing
	}
	rec := p.Record()
	raw, err := rec.MarshalBinary()
	if err != nil {
		return err
	}
	row := catalog.BlobRow{Digest: rec.Digest, Size: rec.Size, Class: class, Record: raw, For: p.Origin()}
	unlock := p.s.locks.lock(rec.Digest)
	defer unlock()
	if rec.Size <= InlineMax {
		b := make([]byte, rec.Size)
		if n, err := p.ReadAt(b, 0); n < len(b) {
			return fmt.Errorf("read back %s: %w", rec.Digest, err)
		}
		row.Record = nil // made on demand: one unit
		if err := p.s.putInline(ctx, row, b, nil); err != nil {
			return err
		}
		p.Drop()
		return nil
	}
	if here, err := p.s.present(ctx, rec.Digest); err != nil {
		return err
	} else if here {
		row.Record = nil // the row keeps the one whose list is here
		if err := p.s.commitRow(ctx, row, nil, nil); err != nil {
			return err
		}
		p.Drop()
		return nil
	}
	if err := p.Install(ctx); err != nil {
		return err
	}
	if err := p.s.commitRow(ctx, row, nil, nil); err != nil {
		derr := p.s.dropOrphan(ctx, rec.Digest)
		if derr != nil {
			p.Leave()
		}
		return errors.Join(err, derr)
	}
	p.s.installed(rec.Digest, rec.Size, p.Fresh())
	if p.s.files.Remote() {
		p.Drop() // what was staged is in the bucket now
	}
	return nil
}

// PutFetched stores a small blob that came whole from a peer, on behalf of a
// project.
func (s *Store) PutFetched(ctx context.Context, pid identity.ProjectID, d digest.Digest, b []byte, class Class) error {
	c, err := Check(d, b)
	if err != nil {
		return err
	}
	return s.PutChecked(ctx, pid, c, class)
}

// Checked is a blob's bytes that were found to have its digest. The zero value is
// none.
type Checked struct {
	d digest.Digest
	b []byte
}

// Check hashes bytes. They must not be changed from then on. ErrDigestMismatch: they
// are another blob's.
func Check(d digest.Digest, b []byte) (Checked, error) {
	if err := units.CheckDigest(d); err != nil {
		return Checked{}, err
	}
	if got := d.Algorithm().FromBytes(b); got != d {
		return Checked{}, fmt.Errorf("%w: expected %s, got %d bytes of %s", ErrDigestMismatch, d, len(b), got)
	}
	if b == nil {
		b = []byte{}
	}
	return Checked{d, b}, nil
}

// Bytes are not to be changed; nil: of the zero value.
func (c Checked) Bytes() []byte { return c.b }

// PutChecked is PutFetched for bytes that need not be hashed again.
func (s *Store) PutChecked(ctx context.Context, pid identity.ProjectID, c Checked, class Class) error {
	d, b := c.d, c.b
	if b == nil {
		return fmt.Errorf("%w: nothing was checked", ErrDigestMismatch)
	}
	if len(b) <= InlineMax {
		unlock := s.locks.lock(d)
		defer unlock()
		return s.putInline(ctx, catalog.BlobRow{Digest: d, Size: int64(len(b)), Class: class, For: pid}, b, nil)
	}
	h := units.NewHasher(d.Algorithm())
	if _, err := h.Write(b); err != nil {
		return err
	}
	list, err := h.List()
	if errors.Is(err, units.ErrUnavailable) {
		if _, err = s.putWhole(ctx, d, b, class, nil); err == nil && !pid.IsZero() {
			err = s.cat.Prove(ctx, d, pid)
		}
		return err
	}
	if err != nil {
		return err
	}
	rec, err := units.Sign(list, s.node.ID, s.node)
	if err != nil {
		return err
	}
	p, err := s.BeginFetch(ctx, rec, list)
	if err != nil {
		return err
	}
	p.Serve(pid)
	for i := range list.Units() {
		off, n := list.Span(i)
		if err := p.Put(i, b[off:off+n]); err != nil {
			return errors.Join(err, p.Abandon())
		}
	}
	if err := p.Commit(ctx, class); err != nil {
		return errors.Join(err, p.Abandon())
	}
	return p.Close()
}
