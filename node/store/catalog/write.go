package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// deleteChunk bounds the tags that one request of a large deletion removes, so
// that it fits into a transaction.
const deleteChunk = 500

// PutManifest adds a manifest, sets its tags, and adds again the children that
// an index has here, all with one dot in one transaction (invariant 9). It is
// durable when it returns. Whether the blobs are there is the caller's to check;
// one whose collection has begun since then is ErrDeleting, and nothing was
// written: check again (invariant 18).
func (c *Catalog) PutManifest(ctx context.Context, p Put) (Dot, error) {
	w, err := newPutWork(p)
	if err != nil {
		return Dot{}, err
	}
	var dot Dot
	err = c.submit(ctx, func(b *batch) error {
		dot = b.dot(p.PID)
		return w.run(b, dot)
	})
	if err != nil {
		return Dot{}, fmt.Errorf("catalog: put manifest %s into %s: %w", p.Digest, p.Repo, err)
	}
	return dot, nil
}

// putWork is a checked Put.
type putWork struct {
	Put
	key      entryKey
	tags     []string
	value    []byte   // of the manifest
	tagValue []byte   // of its tags
	children []string // raw digests
	blobs    [][]byte // raw digests of what it refers to, and its own if the bytes are a blob
}

func newPutWork(p Put) (*putWork, error) {
	w := &putWork{Put: p}
	raw, err := rawDigest(p.Digest)
	if err != nil {
		return nil, err
	}
	if err := checkName("repository", p.Repo); err != nil {
		return nil, err
	}
	if len(p.Bytes) > MaxInlineManifest {
		return nil, fmt.Errorf("%w: manifest of %d bytes; above %d it must be a blob", ErrInvalid, len(p.Bytes), MaxInlineManifest)
	}
	if p.Bytes != nil && int64(len(p.Bytes)) != p.Size {
		return nil, fmt.Errorf("%w: manifest of %d bytes with size %d", ErrInvalid, len(p.Bytes), p.Size)
	}
	if p.Bytes != nil && p.Digest.Algorithm().FromBytes(p.Bytes) != p.Digest {
		return nil, fmt.Errorf("%w: the manifest's bytes do not have the digest %s", ErrInvalid, p.Digest)
	}
	if p.Bytes == nil {
		w.blobs = append(w.blobs, raw)
	}
	w.key = entryKey{kindManifest, p.Repo, string(raw)}
	v := &rowpb.ManifestValue{MediaType: p.MediaType, Size: p.Size, ArtifactType: p.ArtifactType, Home: p.Home}
	if p.Subject != "" {
		if v.Subject, err = rawDigest(p.Subject); err != nil {
			return nil, err
		}
	}
	for _, r := range p.Refs {
		raw, err := rawDigest(r.Digest)
		if err != nil {
			return nil, err
		}
		v.Refs = append(v.Refs, &rowpb.Ref{Digest: raw, Size: r.Size, Kind: uint32(r.Kind)})
		if r.Kind == RefBlob {
			w.blobs = append(w.blobs, raw)
		}
		if r.Kind == RefManifest && r.Digest != p.Digest && !slices.Contains(w.children, string(raw)) {
			w.children = append(w.children, string(raw))
		}
	}
	if w.value, err = deterministic.Marshal(v); err != nil {
		return nil, err
	}
	if _, err := decodeManifest(w.value); err != nil {
		return nil, err
	}
	w.tagValue, err = deterministic.Marshal(&rowpb.TagValue{Digest: raw})
	if err != nil {
		return nil, err
	}
	for _, t := range p.Tags {
		if err := checkName("tag", t); err != nil {
			return nil, err
		}
		if !slices.Contains(w.tags, t) {
			w.tags = append(w.tags, t)
		}
	}
	return w, nil
}

func (w *putWork) run(b *batch, dot Dot) error {
	for _, raw := range w.blobs {
		row, found, err := b.blob(raw)
		if err != nil {
			return err
		}
		if found && row.State == Deleting {
			return fmt.Errorf("%w: %s", ErrDeleting, digestOrEmpty(raw))
		}
	}
	if w.Bytes != nil {
		if err := b.putContent([]byte(w.key.name), w.Bytes, Home, w.PID); err != nil {
			return err
		}
	}
	for _, child := range w.children {
		k := entryKey{kindManifest, w.Repo, child}
		e, err := b.entry(w.PID, k)
		if err != nil {
			return err
		}
		if cw := e.winner(); cw != nil {
			if err := b.write(w.PID, k, e, dot, w.sibling(cw.value)); err != nil {
				return err
			}
		}
	}
	e, err := b.entry(w.PID, w.key)
	if err != nil {
		return err
	}
	if err := b.write(w.PID, w.key, e, dot, w.sibling(w.value)); err != nil {
		return err
	}
	for _, tag := range w.tags {
		k := entryKey{kindTag, w.Repo, tag}
		e, err := b.entry(w.PID, k)
		if err != nil {
			return err
		}
		if err := b.write(w.PID, k, e, dot, w.sibling(w.tagValue)); err != nil {
			return err
		}
	}
	return nil
}

func (w *putWork) sibling(value []byte) *sibling {
	return &sibling{value: value, actor: w.Actor, aclIndex: w.ACLIndex}
}

// write puts one new sibling (nil: none) in the place of all that it has seen
// (invariant 1).
func (b *batch) write(pid identity.ProjectID, k entryKey, old *entry, dot Dot, s *sibling) error {
	if err := b.heardOf(pid, k, old); err != nil {
		return err
	}
	stamp := old.nextStamp(b.c.now())
	if s != nil {
		s.dot, s.stamp = dot, stamp
	}
	new := old.next(dot, stamp, s, all)
	if k.kind == kindTag && old != nil {
		b.unordered(pid, k, old).keepLosers(new, stamp)
	}
	return b.save(pid, k, old, new)
}

// DeleteTag removes what this site has seen of a tag; a push elsewhere that it
// has not seen survives.
func (c *Catalog) DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag, actor string, aclIndex uint64) error {
	return c.DeleteTagOf(ctx, pid, repo, tag, "", actor, aclIndex)
}

// DeleteTagOf is DeleteTag of a tag that says this digest, compared in the step that
// removes it: ErrNotFound if it says another one. Empty: whatever it says.
func (c *Catalog) DeleteTagOf(ctx context.Context, pid identity.ProjectID, repo, tag string, of digest.Digest, actor string, aclIndex uint64) error {
	dot, err := c.deleteTag(ctx, pid, repo, tag, of)
	if err == nil {
		c.log.Debug("tag deleted", "project", pid, "repository", repo, "tag", tag, "actor", actor, "acl_index", aclIndex, "dot", dot)
	}
	return err
}

func (c *Catalog) deleteTag(ctx context.Context, pid identity.ProjectID, repo, tag string, of digest.Digest) (Dot, error) {
	var dot Dot
	if err := errors.Join(checkName("repository", repo), checkName("tag", tag)); err != nil {
		return dot, err
	}
	err := c.submitAs(ctx, jobFreeing, func(b *batch) error {
		k := entryKey{kindTag, repo, tag}
		e, err := b.entry(pid, k)
		if err != nil {
			return err
		}
		if !e.live() || of != "" && digestOrEmpty(e.says()) != of {
			return ErrNotFound
		}
		dot = b.dot(pid)
		return b.write(pid, k, e, dot, nil)
	})
	if err != nil {
		return Dot{}, fmt.Errorf("catalog: delete tag %s of %s: %w", tag, repo, err)
	}
	return dot, nil
}

// DeleteManifest removes a manifest and what it has seen of the tags that say
// it. A tag that concurrent writes set to several digests keeps the others.
func (c *Catalog) DeleteManifest(ctx context.Context, pid identity.ProjectID, repo string, d digest.Digest, actor string, aclIndex uint64) error {
	dot, err := c.deleteManifest(ctx, pid, repo, d)
	if err == nil {
		c.log.Debug("manifest deleted", "project", pid, "repository", repo, "digest", d, "actor", actor, "acl_index", aclIndex, "dot", dot)
	}
	return err
}

func (c *Catalog) deleteManifest(ctx context.Context, pid identity.ProjectID, repo string, d digest.Digest) (Dot, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return Dot{}, err
	}
	if err := checkName("repository", repo); err != nil {
		return Dot{}, err
	}
	for {
		var dot Dot
		more := false
		err := c.submitAs(ctx, jobFreeing, func(b *batch) (err error) {
			dot, more, err = b.deleteManifest(pid, repo, raw)
			return err
		})
		if err != nil {
			return Dot{}, fmt.Errorf("catalog: delete manifest %s of %s: %w", d, repo, err)
		}
		if !more {
			return dot, nil
		}
	}
}

// deleteManifest removes up to deleteChunk tags; the manifest goes with the last
// of them, so that no tag is left that says a manifest which is gone.
func (b *batch) deleteManifest(pid identity.ProjectID, repo string, raw []byte) (dot Dot, more bool, err error) {
	k := entryKey{kindManifest, repo, string(raw)}
	e, err := b.entry(pid, k)
	if err != nil {
		return dot, false, err
	}
	if !e.live() {
		return dot, false, ErrNotFound
	}
	var tags []string
	err = b.scan(prefixTagOf(pid, repo, raw), nil, true, func(key, value []byte) (bool, error) {
		_, _, tag, ok := parseTagOf(key)
		if !ok || len(value) == 0 {
			return false, damaged(key)
		}
		if value[0] == roleKept {
			return true, nil
		}
		if len(tags) == deleteChunk {
			more = true
			return false, nil
		}
		tags = append(tags, tag)
		return true, nil
	})
	if err != nil {
		return dot, false, err
	}
	dot = b.dot(pid)
	for _, tag := range tags {
		tk := entryKey{kindTag, repo, tag}
		te, err := b.entry(pid, tk)
		if err != nil {
			return dot, false, err
		}
		if err := b.heardOf(pid, tk, te); err != nil {
			return dot, false, err
		}
		new := te.next(dot, te.nextStamp(b.c.now()), nil, func(s *sibling) bool { return bytes.Equal(tagDigest(s), raw) })
		if err := b.save(pid, tk, te, new); err != nil {
			return dot, false, err
		}
	}
	if more {
		return dot, true, nil
	}
	return dot, false, b.write(pid, k, e, dot, nil)
}

// DeleteRepository removes all tags and manifests of a repository that this site
// has seen, a bounded number per transaction: a reader may see it half gone, and
// after a crash it is repeated. It returns ErrNotFound if there were none.
func (c *Catalog) DeleteRepository(ctx context.Context, pid identity.ProjectID, repo, actor string, aclIndex uint64) error {
	if err := checkName("repository", repo); err != nil {
		return err
	}
	for first := true; ; first = false {
		found := false
		err := c.submitAs(ctx, jobFreeing, func(b *batch) (err error) {
			found, err = b.deleteSome(pid, repo)
			return err
		})
		if err == nil && !found && first {
			err = ErrNotFound
		}
		if err != nil {
			return fmt.Errorf("catalog: delete repository %s: %w", repo, err)
		}
		if !found {
			c.log.Debug("repository deleted", "project", pid, "repository", repo, "actor", actor, "acl_index", aclIndex)
			return nil
		}
	}
}

// deleteSome removes up to deleteChunk tags, or manifests when no tags are left;
// fewer if they refer to much, so that any repository can be deleted.
func (b *batch) deleteSome(pid identity.ProjectID, repo string) (bool, error) {
	for _, kd := range []kind{kindTag, kindManifest} {
		var keys []entryKey
		err := b.scan(prefixRepo(tabLive, pid, kd, repo), nil, false, func(key, _ []byte) (bool, error) {
			_, k, ok := parsePIDEntry(key)
			if !ok {
				return false, damaged(key)
			}
			keys = append(keys, k)
			return len(keys) < deleteChunk, nil
		})
		if err != nil {
			return false, err
		}
		if len(keys) == 0 {
			continue
		}
		dot := b.dot(pid)
		for _, k := range keys {
			if b.half() {
				break
			}
			e, err := b.entry(pid, k)
			if err != nil {
				return false, err
			}
			if err := b.write(pid, k, e, dot, nil); err != nil {
				return false, err
			}
		}
		return true, nil
	}
	return false, nil
}
