package catalog

import (
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// Dropped is a manifest that lost a name or all of them: a tag says another one,
// or none, or its entry was deleted, here or elsewhere.
type Dropped struct {
	PID identity.ProjectID
	ManifestRef
	Gone bool  // the entry was deleted
	Refs []Ref // what it referred to, if Gone: nobody can ask for it any more
}

// maxDropped bounds what waits to be told. A repository of that many manifests
// is deleted in one go now and then; what does not fit is not told.
const maxDropped = 20_000

// OnDropped has fn called with manifests that lost names. It is a hint for those
// who keep content for a name: what was dropped just before a crash, or beyond
// maxDropped at a time, is never told. Calls come one at a time.
func (c *Catalog) OnDropped(fn func([]Dropped)) (cancel func()) {
	return c.watch(&watcher{dropped: fn})
}

// noteDropped compares two states of an entry.
func (b *batch) noteDropped(pid identity.ProjectID, k entryKey, old, new *entry) error {
	switch {
	case !old.live():
	case k.kind == kindTag:
		before, after := digestOrEmpty(old.says()), digestOrEmpty(new.says())
		if before != after && before != "" {
			b.dropped = append(b.dropped, Dropped{PID: pid, ManifestRef: ManifestRef{k.repo, before}})
		}
	case k.kind == kindManifest && !new.live():
		v, err := old.winner().manifestValue()
		if err != nil {
			return err
		}
		d := Dropped{PID: pid, ManifestRef: ManifestRef{k.repo, k.digest()}, Gone: true, Refs: refsOf(v)}
		b.dropped = append(b.dropped, d)
	}
	return nil
}

// Parent is a live manifest that refers to a digest.
type Parent struct {
	PID identity.ProjectID
	ManifestRef
}

// Parents gives up to n live manifests that refer to a digest, in any project;
// a manifest is not its own parent.
func (c *Catalog) Parents(d digest.Digest, n int) ([]Parent, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return nil, err
	}
	return c.parents(prefixDigest(tabRef, raw), n)
}

// ParentsIn is Parents in one repository.
func (c *Catalog) ParentsIn(pid identity.ProjectID, repo string, d digest.Digest, n int) ([]Parent, error) {
	raw, err := rawInRepo(repo, d)
	if err != nil {
		return nil, err
	}
	return c.parents(prefixRefRepo(raw, pid, repo), n)
}

func (c *Catalog) parents(prefix []byte, n int) ([]Parent, error) {
	var out []Parent
	if n = bound(n); n == 0 {
		return nil, nil
	}
	err := c.view(func(r reader) error {
		return r.scan(prefix, nil, false, func(key, _ []byte) (bool, error) {
			d, pid, repo, parent, ok := parseRef(key)
			if !ok {
				return false, damaged(key)
			}
			if parent != d {
				out = append(out, Parent{pid, ManifestRef{repo, parent}})
			}
			return len(out) < n, nil
		})
	})
	return out, err
}

func refsOf(v *rowpb.ManifestValue) []Ref {
	refs := make([]Ref, len(v.Refs))
	for i, r := range v.Refs {
		refs[i] = Ref{Digest: digestOrEmpty(r.Digest), Size: r.Size, Kind: RefKind(r.Kind)}
	}
	return refs
}
