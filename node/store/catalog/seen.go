package catalog

import (
	"context"
	"fmt"
	"maps"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// Seen gives what this store has seen of a project and, if d is not empty, of the
// manifest.
func (c *Catalog) Seen(pid identity.ProjectID, repo string, d digest.Digest) (Vector, error) {
	var v Vector
	err := c.view(func(r reader) (err error) {
		if v, err = r.vector(tabVector, pid); err != nil || d == "" {
			return err
		}
		raw, err := rawInRepo(repo, d)
		if err != nil {
			return err
		}
		e, err := r.entry(pid, entryKey{kindManifest, repo, string(raw)})
		if err != nil || e == nil {
			return err
		}
		for inc, seq := range e.ctx {
			v[inc] = max(v[inc], seq)
		}
		return nil
	})
	return v, err
}

// SeenBeyond gives what a vector that was seen of the project has to be so that it covers
// a manifest as it is here; nil: it does already. An entry may be here before the project's
// vector says so: a page of a list is kept before the list is whole.
func (c *Catalog) SeenBeyond(pid identity.ProjectID, repo string, d digest.Digest, seen Vector) (Vector, error) {
	raw, err := rawInRepo(repo, d)
	if err != nil {
		return nil, err
	}
	var v Vector
	err = c.view(func(r reader) error {
		e, err := r.entry(pid, entryKey{kindManifest, repo, string(raw)})
		if err != nil || e == nil {
			return err
		}
		for inc, seq := range e.ctx {
			if seen[inc] >= seq {
				continue
			}
			if v == nil {
				v = maps.Clone(seen)
				if v == nil {
					v = Vector{}
				}
			}
			v[inc] = seq
		}
		return nil
	})
	return v, err
}

// DeleteManifestSeen removes of a manifest what a vector covers: not what was put
// after it was taken. Tags stay as they are.
func (c *Catalog) DeleteManifestSeen(ctx context.Context, pid identity.ProjectID, repo string, d digest.Digest, seen Vector) error {
	raw, err := rawInRepo(repo, d)
	if err != nil {
		return err
	}
	err = c.submitAs(ctx, jobFreeing, func(b *batch) error {
		k := entryKey{kindManifest, repo, string(raw)}
		e, err := b.entry(pid, k)
		if err != nil {
			return err
		}
		if !e.live() {
			return ErrNotFound
		}
		return b.deleteSeen(pid, k, e, b.dot(pid), seen)
	})
	if err != nil {
		return fmt.Errorf("catalog: delete manifest %s of %s: %w", d, repo, err)
	}
	return nil
}

func (b *batch) deleteSeen(pid identity.ProjectID, k entryKey, e *entry, dot Dot, seen Vector) error {
	return b.save(pid, k, e, e.next(dot, e.nextStamp(b.c.now()), nil, func(s *sibling) bool { return seen.Covers(s.dot) }))
}
