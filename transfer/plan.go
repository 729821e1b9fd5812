package transfer

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

const (
	// maxClosure bounds the manifests that one artifact can take with it: an index
	// of 10,000 manifests, each signed and attested, still fits.
	maxClosure = 50_000
	// referrerPage is how many referrers are read at a time.
	referrerPage = 256
	// lookChunk is how many blobs are looked up in one snapshot.
	lookChunk = 256
)

// content is one blob that belongs to an artifact, or the bytes of a manifest.
type content struct {
	digest digest.Digest
	size   int64
	home   string // site that accepted the manifest that names it
}

// closure is everything that belongs to an artifact, as far as the catalogue
// here knows it.
type closure struct {
	manifests []catalog.ManifestInfo
	blobs     []content
	bytes     []content       // of the manifests
	absent    []digest.Digest // manifests that an index names and the catalogue lacks
}

// closure walks from one manifest to the manifests below it and to their
// referrers; with alone, only the manifest itself is taken. catalog.ErrNotFound:
// the first manifest is not there.
func (r *Reconciler) closure(pid identity.ProjectID, repo string, root digest.Digest, alone bool) (*closure, error) {
	c := new(closure)
	seen := map[digest.Digest]bool{root: true}
	todo := []digest.Digest{root}
	for len(todo) > 0 {
		d := todo[0]
		todo = todo[1:]
		info, refs, err := r.cat.ManifestWithRefs(pid, repo, d)
		if errors.Is(err, catalog.ErrNotFound) && d != root {
			c.absent = append(c.absent, d)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d, err)
		}
		c.manifests = append(c.manifests, info)
		c.bytes = append(c.bytes, content{d, info.Size, info.Home})
		follow := func(d digest.Digest) error {
			if alone || seen[d] {
				return nil
			}
			if len(seen) >= maxClosure {
				return fmt.Errorf("artifact %s takes more than %d manifests with it", root, maxClosure)
			}
			seen[d] = true
			todo = append(todo, d)
			return nil
		}
		for _, ref := range refs {
			if ref.Kind == catalog.RefManifest {
				if err := follow(ref.Digest); err != nil {
					return nil, err
				}
			} else if !seen[ref.Digest] {
				seen[ref.Digest] = true
				c.blobs = append(c.blobs, content{ref.Digest, ref.Size, info.Home})
			}
		}
		if alone {
			continue
		}
		for after := digest.Digest(""); ; {
			page, err := r.cat.Referrers(pid, repo, d, "", after, referrerPage)
			if err != nil {
				return nil, fmt.Errorf("referrers of %s: %w", d, err)
			}
			for _, m := range page {
				if err := follow(m.Digest); err != nil {
					return nil, err
				}
				after = m.Digest
			}
			if len(page) < referrerPage {
				break
			}
		}
	}
	return c, nil
}

// lacking gives what of a closure's content this store does not hold for good:
// absent blobs, those that are here for other projects alone (a fetch has them
// proven, and moves no byte), and cached ones that only have to be promised.
func (r *Reconciler) lacking(pid identity.ProjectID, c *closure) (fetch, promote []content, err error) {
	all := slices.Concat(c.bytes, c.blobs)
	for part := range slices.Chunk(all, lookChunk) {
		ds := make([]digest.Digest, len(part))
		for i, b := range part {
			ds[i] = b.digest
		}
		rows, err := r.cat.BlobsIn(pid, ds)
		if err != nil {
			return nil, nil, err
		}
		for i, row := range rows {
			switch {
			case row.State != catalog.Present:
				fetch = append(fetch, part[i])
			case row.Class == catalog.Cached:
				promote = append(promote, part[i])
			}
		}
	}
	return fetch, promote, nil
}
