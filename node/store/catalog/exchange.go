package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// pageVersion is raised when an older program would misread a page; it refuses
// such a page in words.
const pageVersion = 1

// Projects gives every project of which there are entries here.
func (c *Catalog) Projects() ([]identity.ProjectID, error) {
	var out []identity.ProjectID
	err := c.view(func(r reader) error {
		return r.scan([]byte{tabCheck}, nil, false, func(key, _ []byte) (bool, error) {
			pid, ok := parseCheck(key)
			if !ok {
				return false, damaged(key)
			}
			out = append(out, pid)
			return true, nil
		})
	})
	return out, err
}

// Vector gives what this store has seen of a project.
func (c *Catalog) Vector(pid identity.ProjectID) (Vector, error) {
	var v Vector
	err := c.view(func(r reader) (err error) { v, err = r.vector(tabVector, pid); return err })
	return v, err
}

// Check gives the stored sum of a project's live entries, which is equal at all
// stores that have seen the same, whatever tombstones each has purged. When two
// stores have equal vectors and unequal checks, each recounts (rule 7).
func (c *Catalog) Check(pid identity.ProjectID) (Check, error) {
	var sum sums
	err := c.view(func(r reader) (err error) { sum, err = r.sums(pid); return err })
	return sum.live, err
}

// Recount sums up all entries anew, tombstones and contexts included, and gives
// the stored sum of the same snapshot. If they differ this store lost rows: see
// DropVector. It reads the whole project.
func (c *Catalog) Recount(ctx context.Context, pid identity.ProjectID) (stored, counted Check, err error) {
	var was, is sums
	err = c.view(func(r reader) error {
		if was, err = r.sums(pid); err != nil {
			return err
		}
		is, err = r.recount(ctx, pid)
		return err
	})
	return was.all, is.all, err
}

func (r reader) recount(ctx context.Context, pid identity.ProjectID) (sums, error) {
	var sum sums
	err := r.scan(prefixPID(tabEntry, pid), nil, true, func(key, value []byte) (bool, error) {
		if sum.all.Count%1024 == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		_, k, ok := parsePIDEntry(key)
		if !ok {
			return false, damaged(key)
		}
		e, err := decodeEntry(k, value)
		if err != nil {
			return false, err
		}
		sum.put(e, k.suffix())
		return true, nil
	})
	return sum, err
}

// Checked is a page whose every part was checked, for Receiving.Take.
type Checked struct{ page *page }

// Check checks a page, and makes what it writes where nothing is here of an entry.
// It reads nothing, and may run while a page before is taken in.
func (r *Receiving) Check(p Page) (Checked, error) {
	checked, err := parsePage(p)
	if err == nil {
		err = checked.prepare(r.pid)
	}
	return Checked{checked}, err
}

func (p *page) prepare(pid identity.ProjectID) (err error) {
	for i := range p.entries {
		a := &p.entries[i]
		if a.fresh, err = prepare(pid, a.key, a.e, a.encoded); err != nil {
			return err
		}
	}
	return nil
}

// arrival is one checked entry of a page.
type arrival struct {
	key entryKey
	e   *entry
	// encoded is e as it came; nil: it has to be encoded anew.
	encoded []byte
	// fresh is what it writes where nothing is here of its key; nil: not made.
	fresh *prepared
}

// page is a checked Page.
type page struct {
	by       *Receiving // nil: a page that belongs to no exchange
	list     *rowpb.List
	entries  []arrival
	contents map[string][]byte // by raw digest
}

// parsePage checks all that a page says before anything of it is stored.
func parsePage(p Page) (*page, error) {
	pb := &rowpb.Page{}
	if err := proto.Unmarshal(p, pb); err != nil {
		return nil, fmt.Errorf("%w: page: %w", ErrInvalid, err)
	}
	if pb.Version != pageVersion {
		return nil, fmt.Errorf("%w: page of version %d, this node reads %d: update the older of the two nodes", ErrInvalid, pb.Version, pageVersion)
	}
	out := &page{contents: make(map[string][]byte, len(pb.Contents)), list: pb.List, entries: make([]arrival, 0, len(pb.Entries))}
	for _, k := range pb.Entries {
		key, ok := parseEntrySuffix(k.Key)
		if !ok {
			return nil, fmt.Errorf("%w: page with entry %q", ErrInvalid, k.Key)
		}
		e, err := decodeEntry(key, k.Entry)
		if err != nil {
			return nil, err
		}
		if len(e.ctx) == 0 {
			return nil, fmt.Errorf("%w: page with entry %q", ErrInvalid, k.Key)
		}
		a := arrival{key: key, e: e}
		if e.goneMs == 0 {
			a.encoded = k.Entry
		}
		e.goneMs = 0 // the sender's clock, and its time
		out.entries = append(out.entries, a)
	}
	for _, c := range pb.Contents {
		d, ok := parseDigest(c.Digest)
		if !ok || len(c.Bytes) > MaxInlineManifest || d.Algorithm().FromBytes(c.Bytes) != d {
			return nil, fmt.Errorf("%w: page with %d bytes that do not have the digest %s", ErrInvalid, len(c.Bytes), d)
		}
		out.contents[string(c.Digest)] = c.Bytes
	}
	return out, nil
}

// ApplyPage merges a page of a delta. Pages may come twice, late and in any
// order, and may fail to come, as long as Adopt is called only after all of them.
// Parts of a full list mean nothing here: they need a Receiving.
func (c *Catalog) ApplyPage(ctx context.Context, pid identity.ProjectID, p Page) (Applied, error) {
	checked, err := parsePage(p)
	if err != nil {
		return Applied{}, err
	}
	out, err := c.applyPage(ctx, pid, checked)
	if err != nil {
		return out, fmt.Errorf("catalog: apply a page to project %s: %w", pid, err)
	}
	return out, nil
}

// applyPage writes the page in one transaction. If that is too large, it goes in
// parts: what is pointed at before what points, so that a reader never finds a
// tag without its manifest.
func (c *Catalog) applyPage(ctx context.Context, pid identity.ProjectID, p *page) (Applied, error) {
	var out Applied
	err := c.submitAs(ctx, jobReceived, func(b *batch) (err error) {
		out, err = b.applyPage(pid, p)
		return err
	})
	if err == nil {
		return out, nil
	}
	if !errors.Is(err, ErrTooLarge) || len(p.entries) < 2 {
		return Applied{}, err // the committer may still write to out
	}
	order := slices.Clone(p.entries)
	slices.SortStableFunc(order, func(a, b arrival) int { return a.rank() - b.rank() })
	half := len(order) / 2
	out = Applied{}
	for _, entries := range [][]arrival{order[:half], order[half:]} {
		part, err := c.applyPage(ctx, pid, &page{by: p.by, entries: entries, contents: p.contents})
		if err != nil {
			return out, err
		}
		out.Entries += part.Entries
		out.Changed += part.Changed
		out.NewManifests = append(out.NewManifests, part.NewManifests...)
		out.MissingBytes = append(out.MissingBytes, part.MissingBytes...)
		out.Retagged = append(out.Retagged, part.Retagged...)
	}
	return out, nil
}

// rowsPerEntry is about how many rows an entry makes: a tag four, a manifest of
// three blobs ten. It is room, and no bound.
const rowsPerEntry = 8

// namedPerEntry is about how many of them are found again by their key.
const namedPerEntry = 2

// rank orders entries by who points at whom.
func (a arrival) rank() int {
	if a.key.kind == kindTag {
		return 2
	}
	for i := range a.e.sibs {
		v, err := a.e.sibs[i].manifestValue()
		if err == nil && slices.ContainsFunc(v.Refs, func(r *rowpb.Ref) bool { return RefKind(r.Kind) == RefManifest }) {
			return 1
		}
	}
	return 0
}

func (b *batch) applyPage(pid identity.ProjectID, p *page) (Applied, error) {
	out := Applied{Entries: len(p.entries)}
	purged, err := b.before.vector(tabPurged, pid)
	if err != nil {
		return out, err
	}
	if len(b.ops) == 0 {
		b.ops, b.at = make([]op, 0, rowsPerEntry*len(p.entries)), make(map[string]int, namedPerEntry*len(p.entries))
	}
	for _, a := range p.entries {
		here, err := b.entry(pid, a.key)
		if err != nil {
			return out, err
		}
		b.noteForeign(pid, a.key, here, a.e, purged, p.by)
		if here == nil && a.fresh != nil && len(purged) == 0 {
			// As in most of a first exchange: merged with nothing it stays as it is.
			out.Changed++
			if err := b.saveNew(pid, a.key, a.e, a.fresh); err != nil {
				return out, err
			}
			if a.key.kind == kindTag {
				out.Retagged = append(out.Retagged, ManifestRef{a.key.repo, digestOrEmpty(a.e.says())})
			} else if err := b.arrived(pid, a.key, nil, a.e, p, &out); err != nil {
				return out, err
			}
			continue
		}
		merged := b.c.merge(p.by.left(a.key, here), a.e, purged)
		if here == nil && merged.buried(purged) {
			continue
		}
		if !merged.equal(here) {
			out.Changed++
			if err := b.save(pid, a.key, here, merged); err != nil {
				return out, err
			}
		}
		if a.key.kind == kindTag {
			if raw := merged.says(); raw != nil && !bytes.Equal(raw, here.says()) {
				out.Retagged = append(out.Retagged, ManifestRef{a.key.repo, digestOrEmpty(raw)})
			}
		}
		if a.key.kind == kindManifest && merged.live() {
			if err := b.arrived(pid, a.key, here, merged, p, &out); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

// arrived keeps the bytes of a live manifest that came along. Bytes that are here
// for other projects alone are missing: the entry's writer may not have them.
func (b *batch) arrived(pid identity.ProjectID, k entryKey, here, merged *entry, p *page, out *Applied) error {
	ref := ManifestRef{k.repo, k.digest()}
	content, whole := p.contents[k.name]
	if !here.live() {
		v, err := merged.winner().manifestValue()
		if err != nil {
			return err
		}
		out.NewManifests = append(out.NewManifests, NewManifest{ref, v.Home, whole})
	}
	if whole {
		return b.putContent([]byte(k.name), content, Placed, pid)
	}
	row, found, err := b.blob([]byte(k.name))
	if err == nil && found && row.State == Present {
		found, err = b.proven(pid, []byte(k.name), row)
	} else {
		found = false
	}
	if err != nil || found {
		return err
	}
	info, err := infoFromEntry(k, merged)
	if err == nil && info.Size <= MaxInlineManifest {
		out.MissingBytes = append(out.MissingBytes, ref)
	}
	return err
}
