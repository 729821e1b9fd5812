package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// A reference says that a project names a digest, and any member site can write
// one. A proof says that content of this store is the project's (invariant 23):
// its bytes were taken in for it, or a site of it has shown that it has them. Who
// reads on behalf of a project gets what has both.
//
// The first project of a blob stands in the blob's row, so that content of one
// project, as most is, costs no row more; the others have one each.

// Proven reports whether content that is here is a project's.
func (c *Catalog) Proven(pid identity.ProjectID, d digest.Digest) (bool, error) {
	_, err := c.BlobIn(pid, d)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// BlobIn is Blob for content that is the project's; what is here for other
// projects alone is ErrNotFound.
func (c *Catalog) BlobIn(pid identity.ProjectID, d digest.Digest) (BlobRow, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return BlobRow{}, err
	}
	var row BlobRow
	err = c.view(func(r reader) (err error) {
		row, err = r.blobIn(pid, raw)
		return err
	})
	row.Digest = d
	return row, err
}

// ContentIn is Content for bytes that are the project's.
func (c *Catalog) ContentIn(pid identity.ProjectID, d digest.Digest) ([]byte, bool, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return nil, false, err
	}
	var out []byte
	err = c.view(func(r reader) (err error) {
		out, err = r.contentIn(pid, raw)
		return err
	})
	return out, out != nil, err
}

func (r reader) blobIn(pid identity.ProjectID, raw []byte) (BlobRow, error) {
	return blobIn(r.get, pid, raw)
}

func blobIn(get func([]byte) ([]byte, error), pid identity.ProjectID, raw []byte) (BlobRow, error) {
	key := prefixDigest(tabBlob, raw)
	value, err := get(key)
	if err != nil {
		return BlobRow{}, err
	}
	if value == nil {
		return BlobRow{}, ErrNotFound
	}
	pb := &rowpb.Blob{}
	if err := proto.Unmarshal(value, pb); err != nil {
		return BlobRow{}, fmt.Errorf("%w: %w", damaged(key), err)
	}
	row := blobFromPB("", pb)
	if row.State == Present {
		if ok, err := proven(get, pid, raw, row); ok || err != nil {
			return row, err
		}
	}
	return BlobRow{}, ErrNotFound
}

func (r reader) contentIn(pid identity.ProjectID, raw []byte) ([]byte, error) {
	return contentIn(r.get, pid, raw)
}

func contentIn(get func([]byte) ([]byte, error), pid identity.ProjectID, raw []byte) ([]byte, error) {
	if _, err := blobIn(get, pid, raw); err != nil {
		if errors.Is(err, ErrNotFound) {
			err = nil
		}
		return nil, err
	}
	return get(prefixDigest(tabContent, raw))
}

// proven reports whether a blob, whose row is given, is a project's.
func (r reader) proven(pid identity.ProjectID, raw []byte, row BlobRow) (bool, error) {
	return proven(r.get, pid, raw, row)
}

func (b *batch) proven(pid identity.ProjectID, raw []byte, row BlobRow) (bool, error) {
	get := b.get
	if b.c.arriving.noBlob(raw) {
		get = func([]byte) ([]byte, error) { return nil, nil }
	}
	return proven(get, pid, raw, row)
}

func proven(get func([]byte) ([]byte, error), pid identity.ProjectID, raw []byte, row BlobRow) (bool, error) {
	if pid.IsZero() || row.For == pid {
		return !pid.IsZero(), nil
	}
	value, err := get(keyProof(raw, pid))
	return value != nil, err
}

// Prove notes, durably, that a blob that is here is a project's. Only who has
// seen it may say so: see invariant 23.
func (c *Catalog) Prove(ctx context.Context, d digest.Digest, pid identity.ProjectID) error {
	return c.onBlob(ctx, jobRequest, "note whose content is", d, func(b *batch, raw []byte, row BlobRow) error {
		changed, err := b.prove(raw, &row, pid)
		if err != nil || !changed {
			return err
		}
		return b.setBlob(raw, row)
	})
}

// prove notes that a blob is a project's. changed: in the row, which the caller
// is to write.
func (b *batch) prove(raw []byte, row *BlobRow, pid identity.ProjectID) (changed bool, err error) {
	known, err := b.proven(pid, raw, *row)
	if err != nil || known || pid.IsZero() {
		return false, err
	}
	if row.For.IsZero() {
		row.For = pid
		return true, nil
	}
	b.c.arriving.noteBlob(raw)
	b.set(keyProof(raw, pid), []byte{})
	return false, nil
}

// unprove: a blob is a project's no longer, which is dropped here.
func (b *batch) unprove(raw []byte, pid identity.ProjectID) error {
	row, found, err := b.blob(raw)
	if err != nil {
		return err
	}
	b.del(keyProof(raw, pid))
	if !found || row.For != pid {
		return nil
	}
	row.For = identity.ProjectID{}
	return b.setBlob(raw, row)
}

// dropProofs removes all proofs of a blob that is collected, but the row's.
func (b *batch) dropProofs(raw []byte) error {
	return b.scan(prefixDigest(tabProof, raw), nil, false, func(key, _ []byte) (bool, error) {
		b.del(key)
		return true, nil
	})
}

// keepProofs takes the row's proof out of a row that goes: whose content a blob
// is stays true when its bytes are lost, and when they come back for another
// project.
func (b *batch) keepProofs(raw []byte, row BlobRow) {
	if !row.For.IsZero() {
		b.c.arriving.noteBlob(raw)
		b.set(keyProof(raw, row.For), []byte{})
	}
}

// Mount gives a blob that is a project's to a repository of another one, or of
// the same: both see it from now on. ErrNotFound: it is not here, or not from's.
// Whether that may be is the caller's to ask.
func (c *Catalog) Mount(ctx context.Context, d digest.Digest, from identity.ProjectID, l Lease) error {
	if err := checkName("repository", l.Repo); err != nil {
		return err
	}
	return c.onBlob(ctx, jobRequest, "mount", d, func(b *batch, raw []byte, row BlobRow) error {
		ok, err := b.proven(from, raw, row)
		if err != nil {
			return err
		}
		if !ok {
			return ErrNotFound
		}
		changed, err := b.prove(raw, &row, l.PID)
		if err == nil && changed {
			err = b.setBlob(raw, row)
		}
		if err != nil {
			return err
		}
		return b.lease(raw, row.Size, l)
	})
}

// EachProof calls fn with the raw digest of every blob that is a project's besides
// another one's: those whose row says so (BlobRow.For) are not among them.
func (c *Catalog) EachProof(pid identity.ProjectID, fn func(raw []byte) error) error {
	return c.walk([]byte{tabProof}, false, func(_ reader, key, _ []byte) (func() error, error) {
		d, of, ok := parseProof(key)
		if !ok {
			return nil, damaged(key)
		}
		return func() error {
			if of != pid {
				return nil
			}
			raw, err := rawDigest(d)
			if err != nil {
				return err
			}
			return fn(raw)
		}, nil
	})
}

// migrateChunk is how many references are looked at in one transaction.
const migrateChunk = 2000

// proveLinks is the step to schema 2, whose rows say whose content a blob is.
// Before, whatever a project named was its: so every project that names a blob
// here, or has a lease on it, keeps it. It may be cut short and begin anew.
func (c *Catalog) proveLinks() error {
	for _, tab := range []byte{tabRef, tabLease} {
		for start := []byte{tab}; start != nil; {
			if err := c.space(ToShrink); err != nil {
				return err
			}
			from := start
			start = nil
			err := c.db.Update(func(txn *badger.Txn) error {
				b := c.newBatch(txn)
				seen, n := "", 0
				err := b.scan([]byte{tab}, from, false, func(key, _ []byte) (bool, error) {
					if n++; n > migrateChunk {
						start = key
						return false, nil
					}
					d, pid, _, ok := cutDigestPID(key)
					if !ok {
						return false, damaged(key)
					}
					raw, err := rawDigest(d)
					if err != nil {
						return false, damaged(key)
					}
					// Keys of one digest and project follow one another.
					pair := string(raw) + string(pid[:])
					if pair == seen {
						return true, nil
					}
					seen = pair
					row, found, err := b.blob(raw)
					if err != nil || !found || row.State != Present {
						return true, err
					}
					changed, err := b.prove(raw, &row, pid)
					if err == nil && changed {
						err = b.setBlob(raw, row)
					}
					return true, err
				})
				if err != nil {
					return err
				}
				return (&group{txn: txn}).add(b)
			})
			if err != nil {
				return fmt.Errorf("catalog: note whose content blobs are: %w", err)
			}
		}
	}
	return nil
}

func keyProof(raw []byte, pid identity.ProjectID) []byte {
	return append(prefixDigest(tabProof, raw), pid[:]...)
}

func parseProof(key []byte) (d digest.Digest, pid identity.ProjectID, ok bool) {
	d, pid, rest, ok := cutDigestPID(key)
	return d, pid, ok && len(rest) == 0
}

func projectFromPB(b []byte) identity.ProjectID {
	pid, err := identity.ProjectIDFromBytes(b)
	if err != nil {
		return identity.ProjectID{}
	}
	return pid
}

// forPB is a project in a row; nil: none.
func forPB(pid identity.ProjectID) []byte {
	if pid.IsZero() {
		return nil
	}
	return pid[:]
}
