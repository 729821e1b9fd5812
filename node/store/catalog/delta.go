package catalog

import (
	"context"
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

const (
	// minPageBytes keeps a caller's small bound from making a page per entry.
	minPageBytes = 1 << 10
	// stretchBytes is how far a page may grow by what a request needs besides its
	// own entries, which are never torn: beyond it manifests that a tag or index names
	// come in pages of their own, and bytes of small manifests are left to be fetched
	// as blobs (Applied.MissingBytes). With the largest request on top, about 6 MiB, a
	// page stays below MaxPageBytes.
	stretchBytes = 8 << 20
	// MaxPageBytes bounds a page: carriers must take as much.
	MaxPageBytes = 15 << 20
	// maxSent bounds the memory by which a delta avoids to send an entry twice;
	// beyond it entries may come twice, which does no harm.
	maxSent = 1 << 15
)

// Delta streams to fn every entry that somebody who has seen since may lack, and
// gives the vector that this store had noted before the first page: the receiver
// may Adopt it once it has applied all pages (rule 4). If tombstones were purged
// here that the receiver may have missed, a full list comes first (rule 6). The entries of one
// request, and the manifests that a tag or index needs, are in one page, with
// the bytes of small manifests. A page is about maxBytes long; one request may
// make it longer, up to MaxPageBytes. No snapshot is held while fn runs.
func (c *Catalog) Delta(ctx context.Context, pid identity.ProjectID, since Vector, maxBytes int, fn func(Page) error) (Noted, error) {
	d := &delta{pid: pid, since: since, maxBytes: max(maxBytes, minPageBytes), sent: map[string]bool{}}
	covered, err := c.listFirst(ctx, pid, since, maxBytes, fn)
	if err != nil {
		return Noted{}, fmt.Errorf("catalog: list of project %s: %w", pid, err)
	}
	err = c.view(func(r reader) (err error) {
		if d.noted, err = r.vector(tabVector, pid); err != nil {
			return err
		}
		d.incs, err = r.indexed(pid)
		return err
	})
	if err != nil {
		return Noted{}, fmt.Errorf("catalog: delta of project %s: %w", pid, err)
	}
	for !d.done() {
		if err := ctx.Err(); err != nil {
			return Noted{}, err
		}
		var page Page
		err := c.view(func(r reader) (err error) { page, err = d.next(r); return err })
		if err != nil {
			return Noted{}, fmt.Errorf("catalog: delta of project %s: %w", pid, err)
		}
		if page != nil {
			if err := fn(page); err != nil {
				return Noted{}, err
			}
		}
	}
	// A tombstone that was purged meanwhile may be one that was still to come.
	var purged, now Vector
	err = c.view(func(r reader) error {
		var errs [2]error
		purged, errs[0] = r.vector(tabPurged, pid)
		now, errs[1] = r.vector(tabVector, pid)
		return errors.Join(errs[:]...)
	})
	switch {
	case err != nil:
	case !covered.Dominates(purged):
		err = fmt.Errorf("%w: tombstones were purged meanwhile", ErrAgain)
	case !now.Dominates(d.noted):
		err = fmt.Errorf("%w: the sender lost rows, and its vector no longer stands for what it has", ErrAgain)
	}
	if err != nil {
		return Noted{}, fmt.Errorf("catalog: delta of project %s: %w", pid, err)
	}
	return Noted{Vector: d.noted, Purged: purged}, nil
}

// listFirst sends a full list if the receiver needs one, and gives the vector
// below which it knows what was purged: what it had seen, or what the list covers.
func (c *Catalog) listFirst(ctx context.Context, pid identity.ProjectID, since Vector, maxBytes int, fn func(Page) error) (Vector, error) {
	purged, err := c.purgedVector(pid)
	if err != nil || since.Dominates(purged) {
		return since, err
	}
	l, err := c.makeList(ctx, pid, maxBytes)
	if err != nil {
		return nil, err
	}
	defer l.close()
	return l.vector, l.send(ctx, fn)
}

func (c *Catalog) purgedVector(pid identity.ProjectID) (Vector, error) {
	var v Vector
	err := c.view(func(r reader) (err error) { v, err = r.vector(tabPurged, pid); return err })
	return v, err
}

// indexed finds the incarnations that have index rows, by one seek each. There
// may be some that the vector lacks: pages of an exchange that broke off.
func (r reader) indexed(pid identity.ProjectID) ([]identity.Incarnation, error) {
	var out []identity.Incarnation
	prefix := prefixPID(tabIndex, pid)
	for start := prefix; start != nil; {
		from := start
		start = nil
		err := r.scan(prefix, from, false, func(key, _ []byte) (bool, error) {
			d, _, ok := parseIndex(key)
			if !ok {
				return false, damaged(key)
			}
			out = append(out, d.Inc)
			if d.Inc != math.MaxUint64 {
				start = prefixInc(tabIndex, pid, d.Inc+1)
			}
			return false, nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// delta is the position of one stream. It walks the index by incarnation and
// sequence number. Writes that happen meanwhile move rows only to higher numbers
// of the same incarnation, which are still to come or above what was noted.
type delta struct {
	pid      identity.ProjectID
	since    Vector
	noted    Vector
	maxBytes int
	incs     []identity.Incarnation // still to do, ascending
	from     []byte                 // next key in the first of them; nil: its beginning
	sent     map[string]bool        // suffixes of recent entries
}

func (d *delta) done() bool { return len(d.incs) == 0 }

// next builds one page; nil if there was nothing to send any more.
func (d *delta) next(r reader) (Page, error) {
	p := &pageBuilder{delta: d, r: r, in: map[string]bool{}, pb: &rowpb.Page{Version: pageVersion}}
	for len(d.incs) > 0 {
		inc := d.incs[0]
		if d.since[inc] == math.MaxUint64 {
			d.incs = d.incs[1:]
			continue
		}
		prefix := prefixInc(tabIndex, d.pid, inc)
		from := d.from
		if from == nil {
			from = keyIndex(d.pid, Dot{inc, d.since[inc] + 1}, entryKey{})[:len(prefix)+8]
		}
		last, full := uint64(0), false
		err := r.scan(prefix, from, false, func(key, _ []byte) (bool, error) {
			dot, k, ok := parseIndex(key)
			if !ok {
				return false, damaged(key)
			}
			if dot.Seq != last && p.size >= d.maxBytes { // requests are not torn
				d.from, full = key, true
				return false, nil
			}
			last = dot.Seq
			return true, p.add(k, inc)
		})
		if err != nil {
			return nil, err
		}
		if full {
			break
		}
		d.incs, d.from = d.incs[1:], nil
	}
	return p.finish()
}

// above reports whether a receiver of this delta may lack the state.
func (d *delta) above(e *entry) bool {
	for inc, seq := range e.ctx {
		if seq > d.since[inc] {
			return true
		}
	}
	return false
}

// earlier reports whether the entry was sent already when the walk was at an
// incarnation before this one.
func (d *delta) earlier(e *entry, now identity.Incarnation) bool {
	for inc, seq := range e.ctx {
		if inc < now && seq > d.since[inc] && seq <= d.noted[inc] {
			return true
		}
	}
	return false
}

// pageBuilder collects one page from one snapshot.
type pageBuilder struct {
	*delta
	r    reader
	pb   *rowpb.Page
	in   map[string]bool // suffixes in this page
	size int
}

// add takes an entry found at an index row of inc.
func (p *pageBuilder) add(k entryKey, inc identity.Incarnation) error {
	if p.has(k) {
		return nil // a tag took it along
	}
	e, err := p.r.entry(p.pid, k)
	if err != nil {
		return err
	}
	if e == nil {
		return damaged(keyEntry(p.pid, k))
	}
	if p.earlier(e, inc) {
		return nil
	}
	return p.take(k, e)
}

// has says whether an entry is in the page, or was sent just now.
func (p *pageBuilder) has(k entryKey) bool {
	id := k.suffix()
	return p.in[string(id)] || p.sent[string(id)]
}

// take puts an entry into the page unless it was sent just now, and with it what
// it needs to be of use.
func (p *pageBuilder) take(k entryKey, e *entry) error {
	suffix := k.suffix()
	id := string(suffix)
	if p.in[id] || p.sent[id] {
		return nil
	}
	p.in[id] = true
	pb := e.toPB()
	p.pb.Entries = append(p.pb.Entries, &rowpb.Keyed{Key: suffix, Entry: pb})
	p.size += len(suffix) + proto.Size(pb) + 8
	var needs []string
	for i := range e.sibs {
		switch k.kind {
		case kindTag:
			needs = append(needs, string(tagDigest(&e.sibs[i])))
		case kindManifest:
			v, err := e.sibs[i].manifestValue()
			if err != nil {
				return err
			}
			for _, ref := range v.Refs {
				if RefKind(ref.Kind) == RefManifest {
					needs = append(needs, string(ref.Digest))
				}
			}
		}
	}
	if k.kind == kindManifest && e.live() {
		content, err := p.r.contentIn(p.pid, []byte(k.name))
		if err != nil {
			return err
		}
		if content != nil && len(content) <= MaxInlineManifest && p.size+len(content) <= stretchBytes {
			p.pb.Contents = append(p.pb.Contents, &rowpb.Content{Digest: []byte(k.name), Bytes: content})
			p.size += len(content) + len(k.name) + 8
		}
	}
	for _, name := range needs {
		if p.size > stretchBytes {
			break // its own row is still to come
		}
		nk := entryKey{kindManifest, k.repo, name}
		if p.has(nk) {
			continue
		}
		ne, err := p.r.entry(p.pid, nk)
		if err != nil {
			return err
		}
		if ne != nil && p.above(ne) {
			if err := p.take(nk, ne); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pageBuilder) finish() (Page, error) {
	if len(p.pb.Entries) == 0 {
		return nil, nil
	}
	for id := range p.in {
		if len(p.sent) >= maxSent {
			clear(p.sent)
		}
		p.sent[id] = true
	}
	return deterministic.Marshal(p.pb)
}
