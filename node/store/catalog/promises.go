package catalog

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// leaseSlack is by how much a lease may end before what was asked for: HEADs of
// the same blob renew it once in so long instead of syncing the disk each time.
const leaseSlack = time.Hour

// Lease keeps a blob that is present from collection, and visible in the
// repository, until l.Until, less leaseSlack at most. A lease is never shortened.
func (c *Catalog) Lease(ctx context.Context, d digest.Digest, l Lease) error {
	if err := checkName("repository", l.Repo); err != nil {
		return err
	}
	// Even if the answer is from before a collection's mark: MarkDeleting reads the
	// lease that is there as well, so it can't win against it.
	if long, err := c.leasedFor(d, l); err != nil || long {
		return err
	}
	return c.onBlob(ctx, jobRequest, "lease", d, func(b *batch, raw []byte, row BlobRow) error { return b.lease(raw, row.Size, l) })
}

// RenewLease is Lease for a blob that the repository has: ErrNotFound if it was
// taken out of it meanwhile, so that asking for a blob can't bring it back.
func (c *Catalog) RenewLease(ctx context.Context, d digest.Digest, l Lease) error {
	if err := checkName("repository", l.Repo); err != nil {
		return err
	}
	if long, err := c.leasedFor(d, l); err != nil || long {
		return err
	}
	return c.onBlob(ctx, jobRequest, "lease", d, func(b *batch, raw []byte, row BlobRow) error {
		if _, ok, err := c.linked(b.reader, raw, l.PID, l.Repo); err != nil {
			return err
		} else if !ok {
			return ErrNotFound
		}
		return b.lease(raw, row.Size, l)
	})
}

// leasedFor reports whether a blob that is present has a lease which is as good
// as the one asked for.
func (c *Catalog) leasedFor(d digest.Digest, l Lease) (bool, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return false, err
	}
	long := false
	err = c.view(func(r reader) error {
		blob, lease := &rowpb.Blob{}, &rowpb.Lease{}
		if ok, err := r.message(prefixDigest(tabBlob, raw), blob); err != nil || !ok || BlobState(blob.State) != Present {
			return err
		}
		ok, err := r.message(keyLease(raw, l.PID, l.Repo), lease)
		long = ok && !time.UnixMilli(lease.UntilUnixMs).Before(l.Until.Add(-leaseSlack)) && lease.UntilUnixMs > c.now().UnixMilli()
		return err
	})
	return long, err
}

func (b *batch) lease(raw []byte, size int64, l Lease) error {
	key, pb := keyLease(raw, l.PID, l.Repo), &rowpb.Lease{}
	if _, err := b.message(key, pb); err != nil {
		return err
	}
	if until := l.Until.UnixMilli(); until > pb.UntilUnixMs {
		return b.setMessage(key, &rowpb.Lease{UntilUnixMs: until, Size: size})
	}
	return nil
}

// EndLease takes a blob out of a repository before its lease is over. While a
// manifest of the repository refers to it, it is ErrInUse, and the lease goes on.
func (c *Catalog) EndLease(ctx context.Context, d digest.Digest, pid identity.ProjectID, repo string) error {
	if err := checkName("repository", repo); err != nil {
		return err
	}
	return c.onBlob(ctx, jobFreeing, "end the lease of", d, func(b *batch, raw []byte, _ BlobRow) error {
		named, err := b.any(prefixRefRepo(raw, pid, repo))
		if err == nil && named {
			err = ErrInUse
		}
		if err != nil {
			return err
		}
		b.del(keyLease(raw, pid, repo))
		return nil
	})
}

// Pin durably promises another store to keep a blob that is present.
func (c *Catalog) Pin(ctx context.Context, p Pin) error {
	return c.onBlob(ctx, jobRequest, "pin", p.Digest, func(b *batch, raw []byte, _ BlobRow) error {
		key, pb := keyPin(raw, p.For, p.PID, p.Dot), &rowpb.Pin{}
		if _, err := b.message(key, pb); err != nil {
			return err
		}
		pb.UntilUnixMs = max(pb.UntilUnixMs, p.Until.UnixMilli())
		return b.setMessage(key, pb)
	})
}

// Pins gives the promises that hold for a blob.
func (c *Catalog) Pins(d digest.Digest) ([]Pin, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return nil, err
	}
	var out []Pin
	err = c.view(func(r reader) error {
		return r.pins(raw, func(p Pin) bool { out = append(out, p); return true })
	})
	return out, err
}

// EachPin calls fn with every promise that holds, and whether the store that it was
// made to said, as far as its feed was read here, that it holds the blob for good. A
// feed does not tell for which projects: a copy of another project's content is
// none that anybody of this one can read (invariant 23).
func (c *Catalog) EachPin(fn func(p Pin, placed bool) error) error {
	err := c.walk([]byte{tabPin}, true, func(r reader, key, value []byte) (func() error, error) {
		nothing := func() error { return nil }
		p, err := decodePin(key, value)
		if err != nil {
			return nothing, err
		}
		if over, err := r.pinOver(p); over || err != nil {
			return nothing, err
		}
		placed, err := r.placedAt(p.Digest, p.For)
		return func() error { return fn(p, placed) }, err
	})
	if err != nil {
		return fmt.Errorf("catalog: promises to other stores: %w", err)
	}
	return nil
}

// placedAt reports whether another store said that it holds a blob for good.
func (r reader) placedAt(d digest.Digest, store identity.StoreID) (bool, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return false, err
	}
	hint, row := &rowpb.Hint{}, &rowpb.StoreRow{}
	if ok, err := r.message(prefixDigest(tabHint, raw), hint); err != nil || !ok {
		return false, err
	}
	ok, err := r.message(keyStore(store), row)
	return ok && hasBit(hint.Placed, row.Number), err
}

// EndPins ends promises that EachPin gave, but those that were given again since,
// for longer.
func (c *Catalog) EndPins(ctx context.Context, pins []Pin) error {
	for some := range slices.Chunk(pins, maxExpired) {
		err := c.submitAs(ctx, jobFreeing, func(b *batch) error {
			for _, p := range some {
				if err := b.endPin(p); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("catalog: end promises to other stores: %w", err)
		}
	}
	return nil
}

func (b *batch) endPin(p Pin) error {
	raw, err := rawDigest(p.Digest)
	if err != nil {
		return err
	}
	key, pb := keyPin(raw, p.For, p.PID, p.Dot), &rowpb.Pin{}
	if ok, err := b.message(key, pb); err != nil || !ok || pb.UntilUnixMs > p.Until.UnixMilli() {
		return err
	}
	b.del(key)
	return nil
}

func (r reader) pins(raw []byte, fn func(Pin) (more bool)) error {
	return r.scan(prefixDigest(tabPin, raw), nil, true, func(key, value []byte) (bool, error) {
		p, err := decodePin(key, value)
		if err != nil {
			return false, err
		}
		over, err := r.pinOver(p)
		return over || fn(p), err
	})
}

func decodePin(key, value []byte) (Pin, error) {
	p, ok := parsePin(key)
	pb := &rowpb.Pin{}
	if err := proto.Unmarshal(value, pb); err != nil || !ok {
		return p, damaged(key)
	}
	p.Until = time.UnixMilli(pb.UntilUnixMs)
	return p, nil
}
