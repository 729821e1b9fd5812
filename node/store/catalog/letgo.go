package catalog

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// LetGo is a digest that a dropped project referred to.
type LetGo struct {
	Digest digest.Digest
	Since  time.Time // when the project was dropped, by the clock here
}

// noteLetGo notes what an entry refers to that is dropped with its project.
func (b *batch) noteLetGo(pid identity.ProjectID, k entryKey, e *entry) error {
	if k.kind != kindManifest || !e.live() {
		return nil
	}
	for _, s := range e.sibs {
		v, err := s.manifestValue()
		if err != nil {
			return err
		}
		for _, r := range refsOf(v) {
			if err := b.letGo(pid, r.Digest); err != nil {
				return err
			}
		}
	}
	return b.letGo(pid, k.digest())
}

func (b *batch) letGo(pid identity.ProjectID, d digest.Digest) error {
	raw, err := rawDigest(d)
	if err == nil {
		err = b.unprove(raw, pid)
	}
	if err != nil {
		return err
	}
	b.set(prefixDigest(tabLetGo, raw), binary.BigEndian.AppendUint64(nil, uint64(b.c.now().UnixMilli())))
	return nil
}

// LetGos gives up to n digests that dropped projects referred to, from the first
// behind after. Each stays until EndLetGo: whether it is still needed is the
// caller's to find out.
func (c *Catalog) LetGos(after digest.Digest, n int) ([]LetGo, error) {
	start := []byte{tabLetGo}
	if after != "" {
		raw, err := rawDigest(after)
		if err != nil {
			return nil, err
		}
		start = append(prefixDigest(tabLetGo, raw), 0)
	}
	var out []LetGo
	if n = bound(n); n == 0 {
		return nil, nil
	}
	err := c.view(func(r reader) error {
		return r.scan([]byte{tabLetGo}, start, true, func(key, value []byte) (bool, error) {
			d, ok := parseDigestKey(key)
			if !ok || len(value) != 8 {
				return false, damaged(key)
			}
			out = append(out, LetGo{d, time.UnixMilli(int64(binary.BigEndian.Uint64(value)))})
			return len(out) < n, nil
		})
	})
	return out, err
}

// EndLetGo forgets that a digest was let go of.
func (c *Catalog) EndLetGo(ctx context.Context, ds []digest.Digest) error {
	for len(ds) > 0 {
		n := min(len(ds), maxExpired)
		part := ds[:n]
		ds = ds[n:]
		err := c.submitAs(ctx, jobFreeing, func(b *batch) error {
			for _, d := range part {
				raw, err := rawDigest(d)
				if err != nil {
					return err
				}
				b.del(prefixDigest(tabLetGo, raw))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// PinnedIn gives the blobs that other stores were promised on behalf of a project
// and that no manifest of it names here, as far as the promises still hold.
func (c *Catalog) PinnedIn(pid identity.ProjectID) ([]BlobRow, error) {
	var out []BlobRow
	nothing := func() error { return nil }
	err := c.walk([]byte{tabPin}, true, func(r reader, key, value []byte) (func() error, error) {
		p, err := decodePin(key, value)
		if err != nil || p.PID != pid {
			return nothing, err
		}
		if over, err := r.pinOver(p); over || err != nil {
			return nothing, err
		}
		raw, err := rawDigest(p.Digest)
		if err != nil {
			return nothing, err
		}
		if named, err := r.any(prefixRefPID(raw, pid)); named || err != nil {
			return nothing, err
		}
		pb := &rowpb.Blob{}
		ok, err := r.message(prefixDigest(tabBlob, raw), pb)
		if err != nil || !ok {
			return nothing, err
		}
		return func() error { out = append(out, blobFromPB(p.Digest, pb)); return nil }, nil
	})
	return out, err
}

// LeasedProjects gives the projects that have something here by a lease.
func (c *Catalog) LeasedProjects() (map[identity.ProjectID]bool, error) {
	out := map[identity.ProjectID]bool{}
	err := c.walk([]byte{tabLease}, false, func(_ reader, key, _ []byte) (func() error, error) {
		_, pid, _, ok := parseLease(key)
		if !ok {
			return nil, damaged(key)
		}
		return func() error { out[pid] = true; return nil }, nil
	})
	return out, err
}

// Named reports whether some live manifest, of any project, is the digest or
// refers to it.
func (c *Catalog) Named(d digest.Digest) (named bool, err error) {
	raw, err := rawDigest(d)
	if err != nil {
		return false, err
	}
	err = c.view(func(r reader) error {
		named, err = r.any(prefixDigest(tabRef, raw))
		return err
	})
	return named, err
}
