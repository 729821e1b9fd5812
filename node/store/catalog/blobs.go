package catalog

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// Life of a blob's row. Every arrow is one transaction of the only writer, so a
// PUT, mount or lease and a collection can't both succeed.
//
//	       PutBlob                    MarkDeleting
//	absent --------> present --------------------------> deleting
//	   ^     again: class, lease       no reference,        | (the file is
//	   |                               lease or pin         |  unlinked now)
//	   +---------------------- RemoveBlob ------------------+

// PutBlob notes that the store durably holds a blob, with its bytes if inline
// (up to MaxInlineBlob), and gives the lease in the same transaction. A row that
// is there keeps the more responsible class. While a file is being deleted it
// returns ErrDeleting.
func (c *Catalog) PutBlob(ctx context.Context, row BlobRow, inline []byte, lease *Lease) error {
	raw, err := rawDigest(row.Digest)
	if err != nil {
		return err
	}
	if row.Class < Home || row.Class > Cached || row.Size < 0 {
		return fmt.Errorf("%w: blob row with class %d and size %d", ErrInvalid, row.Class, row.Size)
	}
	if len(inline) > MaxInlineManifest || (inline != nil && int64(len(inline)) != row.Size) {
		return fmt.Errorf("%w: %d inline bytes for a blob of size %d", ErrInvalid, len(inline), row.Size)
	}
	if lease != nil {
		if err := checkName("repository", lease.Repo); err != nil {
			return err
		}
	}
	err = c.submit(ctx, func(b *batch) error {
		old, found, err := b.blob(raw)
		if err != nil {
			return err
		}
		if found && old.State == Deleting && !old.Inline {
			return ErrDeleting
		}
		new := row
		// The content of one that is being deleted is gone.
		new.State, new.Inline = Present, inline != nil || old.Inline && old.State == Present
		new.For = identity.ProjectID{}
		if found && old.State == Present {
			new.For = old.For
		}
		if _, err := b.prove(raw, &new, row.For); err != nil {
			return err
		}
		if lease != nil { // who gave the bytes
			if _, err := b.prove(raw, &new, lease.PID); err != nil {
				return err
			}
		}
		changed := !found || old.State != Present
		if found && old.State == Deleting {
			b.del(prefixDigest(tabDeleting, raw))
		}
		if found && old.State == Present {
			if new.Class = min(new.Class, old.Class); new.Class != old.Class {
				changed = true
			}
			if new.Record == nil {
				new.Record = old.Record
			}
		}
		if err := b.setBlob(raw, new); err != nil {
			return err
		}
		if inline != nil {
			b.set(prefixDigest(tabContent, raw), inline)
		}
		if changed {
			if err := b.addFeed(raw, new.Class); err != nil {
				return err
			}
		}
		if lease != nil {
			return b.lease(raw, row.Size, *lease)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("catalog: put blob %s: %w", row.Digest, err)
	}
	return nil
}

// putContent keeps a small manifest's bytes, which came for a project. No feed
// names them: they go wherever their entry goes.
func (b *batch) putContent(raw, bytes []byte, class Class, pid identity.ProjectID) error {
	old, found, err := b.blob(raw)
	if err != nil {
		return err
	}
	if !found || old.State != Present {
		old.For = identity.ProjectID{}
	}
	changed, err := b.prove(raw, &old, pid)
	if err != nil {
		return err
	}
	if found && old.State == Present && old.Inline && old.Class <= class {
		if changed {
			err = b.setBlob(raw, old)
		}
		return err
	}
	if found && old.State == Present {
		class = min(class, old.Class)
	}
	if found && old.State == Deleting {
		b.del(prefixDigest(tabDeleting, raw))
	}
	b.set(prefixDigest(tabContent, raw), bytes)
	return b.setBlob(raw, BlobRow{Size: int64(len(bytes)), State: Present, Class: class, Record: old.Record, Inline: true, For: old.For})
}

// SetClass changes why the store holds a blob.
func (c *Catalog) SetClass(ctx context.Context, d digest.Digest, class Class) error {
	if class < Home || class > Cached {
		return fmt.Errorf("%w: class %d", ErrInvalid, class)
	}
	return c.onBlob(ctx, jobRequest, "classify", d, func(b *batch, raw []byte, row BlobRow) error {
		if row.Class == class {
			return nil
		}
		row.Class = class
		if err := b.addFeed(raw, class); err != nil {
			return err
		}
		return b.setBlob(raw, row)
	})
}

// Demote makes a placed blob a cached one, unless a lease or a pin promises it to
// somebody; it reports whether it did.
func (c *Catalog) Demote(ctx context.Context, d digest.Digest) (done bool, err error) {
	err = c.onBlob(ctx, jobFreeing, "demote", d, func(b *batch, raw []byte, row BlobRow) error {
		promised, err := b.promised(raw)
		if done = err == nil && !promised && row.Class == Placed; !done {
			return err
		}
		row.Class = Cached
		if err := b.addFeed(raw, Cached); err != nil {
			return err
		}
		return b.setBlob(raw, row)
	})
	return done && err == nil, err
}

// onBlob runs fn if the blob is present, else it returns ErrNotFound.
func (c *Catalog) onBlob(ctx context.Context, kind jobKind, verb string, d digest.Digest, fn func(b *batch, raw []byte, row BlobRow) error) error {
	raw, err := rawDigest(d)
	if err != nil {
		return err
	}
	err = c.submitAs(ctx, kind, func(b *batch) error {
		row, found, err := b.blob(raw)
		if err != nil {
			return err
		}
		if !found || row.State != Present {
			return ErrNotFound
		}
		return fn(b, raw, row)
	})
	if err != nil {
		return fmt.Errorf("catalog: %s blob %s: %w", verb, d, err)
	}
	return nil
}

// Blob gives the row of a blob that this store holds.
func (c *Catalog) Blob(d digest.Digest) (BlobRow, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return BlobRow{}, err
	}
	var row BlobRow
	err = c.view(func(r reader) error {
		pb := &rowpb.Blob{}
		ok, err := r.message(prefixDigest(tabBlob, raw), pb)
		if err != nil {
			return err
		}
		if row = blobFromPB(d, pb); !ok || row.State != Present {
			row = BlobRow{}
			return ErrNotFound
		}
		return nil
	})
	return row, err
}

// Content gives bytes that are kept in the catalogue, small manifests and blobs:
// one point read, since the bytes are there while the blob is present and no
// longer.
func (c *Catalog) Content(d digest.Digest) ([]byte, bool, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return nil, false, err
	}
	var out []byte
	err = c.view(func(r reader) (err error) {
		out, err = r.content(raw)
		return err
	})
	return out, out != nil, err
}

func (r reader) content(raw []byte) ([]byte, error) {
	return r.get(prefixDigest(tabContent, raw))
}

// EachBlob calls fn for every row, also those in state Deleting.
func (c *Catalog) EachBlob(fn func(BlobRow) error) error {
	return c.walk([]byte{tabBlob}, true, func(_ reader, key, value []byte) (func() error, error) {
		d, ok := parseDigestKey(key)
		pb := &rowpb.Blob{}
		if err := proto.Unmarshal(value, pb); err != nil || !ok {
			return nil, damaged(key)
		}
		return func() error { return fn(blobFromPB(d, pb)) }, nil
	})
}

// BlobsAfter gives the rows of the next n blobs that are present, in the order of
// their keys; an empty digest: from the first one on.
func (c *Catalog) BlobsAfter(d digest.Digest, n int) ([]BlobRow, error) {
	start := []byte{tabBlob}
	if d != "" {
		raw, err := rawDigest(d)
		if err != nil {
			return nil, err
		}
		start = append(prefixDigest(tabBlob, raw), 0) // the first key behind it
	}
	var out []BlobRow
	err := c.view(func(r reader) error {
		return r.scan([]byte{tabBlob}, start, true, func(key, value []byte) (bool, error) {
			d, ok := parseDigestKey(key)
			pb := &rowpb.Blob{}
			if err := proto.Unmarshal(value, pb); err != nil || !ok {
				return false, damaged(key)
			}
			if row := blobFromPB(d, pb); row.State == Present {
				out = append(out, row)
			}
			return len(out) < n, nil
		})
	})
	return out, err
}

// MarkDeleting begins the collection of a blob: from now on it is absent to
// everyone. It returns ErrInUse if a manifest refers to it, or a lease or pin
// holds it.
func (c *Catalog) MarkDeleting(ctx context.Context, d digest.Digest) error {
	return c.onBlob(ctx, jobFreeing, "delete", d, func(b *batch, raw []byte, row BlobRow) error {
		if used, err := b.used(raw); err != nil || used {
			if err == nil {
				err = ErrInUse
			}
			return err
		}
		// Nobody names it: who does so from now on has to show it anew.
		row.State, row.For = Deleting, identity.ProjectID{}
		if err := b.dropProofs(raw); err != nil {
			return err
		}
		b.set(prefixDigest(tabDeleting, raw), []byte{})
		if row.Inline {
			b.del(prefixDigest(tabContent, raw))
		}
		if err := b.addFeed(raw, Gone); err != nil {
			return err
		}
		return b.setBlob(raw, row)
	})
}

func (b *batch) used(raw []byte) (bool, error) {
	if used, err := b.any(prefixDigest(tabRef, raw)); err != nil || used {
		return used, err
	}
	return b.promised(raw)
}

// promised reports whether a lease or a pin holds a blob.
func (b *batch) promised(raw []byte) (bool, error) {
	used, nowMs := false, b.c.now().UnixMilli()
	err := b.scan(prefixDigest(tabLease, raw), nil, true, func(key, value []byte) (bool, error) {
		pb := &rowpb.Lease{}
		if err := proto.Unmarshal(value, pb); err != nil {
			return false, damaged(key)
		}
		used = pb.UntilUnixMs >= nowMs
		return !used, nil
	})
	if err != nil || used {
		return used, err
	}
	err = b.pins(raw, func(Pin) bool { used = true; return false })
	return used, err
}

// Deletings gives up to n blobs whose collection has begun and not ended: what a
// crash interrupted is finished from here, without a walk over all blobs.
func (c *Catalog) Deletings(n int) ([]digest.Digest, error) {
	var out []digest.Digest
	err := c.view(func(r reader) error {
		return r.scan([]byte{tabDeleting}, nil, false, func(key, _ []byte) (bool, error) {
			d, ok := parseDigestKey(key)
			if !ok {
				return false, damaged(key)
			}
			out = append(out, d)
			return len(out) < n, nil
		})
	})
	return out, err
}

// IsDeleting reports whether the collection of a blob has begun and not ended.
func (c *Catalog) IsDeleting(d digest.Digest) (bool, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return false, err
	}
	is := false
	err = c.view(func(r reader) error {
		pb := &rowpb.Blob{}
		ok, err := r.message(prefixDigest(tabBlob, raw), pb)
		is = ok && BlobState(pb.State) == Deleting
		return err
	})
	return is, err
}

// RemoveBlob ends a collection, once the file is gone.
func (c *Catalog) RemoveBlob(ctx context.Context, d digest.Digest) error {
	raw, err := rawDigest(d)
	if err != nil {
		return err
	}
	return c.submitAs(ctx, jobFreeing, func(b *batch) error {
		row, found, err := b.blob(raw)
		if err != nil || !found {
			return err
		}
		if row.State != Deleting {
			return fmt.Errorf("catalog: remove blob %s: %w: it was put again", d, ErrInUse)
		}
		b.del(prefixDigest(tabDeleting, raw))
		b.removeBlob(raw)
		return nil
	})
}

// LostBlob removes the row of a blob whose bytes turned out to be gone or bad,
// whoever uses it: it has to be fetched again.
func (c *Catalog) LostBlob(ctx context.Context, d digest.Digest) error {
	return c.onBlob(ctx, jobFreeing, "forget", d, func(b *batch, raw []byte, row BlobRow) error {
		b.keepProofs(raw, row)
		b.removeBlob(raw)
		return b.addFeed(raw, Gone)
	})
}

func (b *batch) removeBlob(raw []byte) {
	b.del(prefixDigest(tabBlob, raw))
	b.del(prefixDigest(tabContent, raw))
}

func (b *batch) blob(raw []byte) (BlobRow, bool, error) {
	if b.c.arriving.noBlob(raw) {
		return BlobRow{}, false, nil
	}
	pb := &rowpb.Blob{}
	ok, err := b.message(prefixDigest(tabBlob, raw), pb)
	return blobFromPB("", pb), ok, err
}

func (b *batch) setBlob(raw []byte, row BlobRow) error {
	b.c.arriving.noteBlob(raw)
	return b.setMessage(prefixDigest(tabBlob, raw), &rowpb.Blob{
		Size: row.Size, State: uint32(row.State), Class: uint32(row.Class), Record: row.Record, Inline: row.Inline, ProvenFor: forPB(row.For),
	})
}

func blobFromPB(d digest.Digest, pb *rowpb.Blob) BlobRow {
	return BlobRow{Digest: d, Size: pb.Size, State: BlobState(pb.State), Class: Class(pb.Class), Record: pb.Record, Inline: pb.Inline, For: projectFromPB(pb.ProvenFor)}
}
