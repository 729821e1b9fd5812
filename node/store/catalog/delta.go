package catalog

import (
	"context"
	"errors"
	"fmt"
	"math"

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
	d := &delta{pid: pid, since: since, maxBytes: max(maxBytes, minPageBytes), sent: map[string]bool{}, most: aheadLeast, look: aheadLeast}
	select {
	case c.ahead <- struct{}{}:
		d.most = aheadMost
		defer func() { <-c.ahead }()
	default: // as many as may look ahead
	}
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
	sent     map[string]bool // suffixes of recent entries

	// Behind what is ahead; see lookahead.go.
	incs  []identity.Incarnation // ascending
	at    int                    // the first of them that is to do
	from  []byte                 // next key in it; nil: its beginning
	ahead lookahead
	most  int // how far it may look ahead
	look  int // how far it does
}

func (d *delta) done() bool { return d.at == len(d.incs) && len(d.ahead.next) == 0 }

// next builds one page; nil if there was nothing to send any more.
func (d *delta) next(r reader) (Page, error) {
	sum, err := r.sums(d.pid)
	if err != nil {
		return nil, err
	}
	if len(d.ahead.next) > 0 && d.ahead.sum != sum { // entries changed meanwhile
		d.forget()
		d.look = max(d.look/2, aheadLeast)
	}
	p := &pageBuilder{delta: d, r: r, in: map[string]bool{}, pb: &rowpb.Page{Version: pageVersion}}
	var last Dot
	for !d.done() {
		if len(d.ahead.next) == 0 {
			if err := d.fill(r, sum); err != nil {
				return nil, err
			}
			d.look = min(2*d.look, d.most)
			continue
		}
		n := d.ahead.next[0]
		if n.dot != last && p.size >= d.maxBytes { // requests are not torn
			break
		}
		last = n.dot
		d.ahead.next = d.ahead.next[1:]
		if err := p.add(n.key, n.dot.Inc); err != nil {
			return nil, err
		}
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
	suffix := k.suffix()
	if p.has(suffix) {
		return nil // a tag took it along
	}
	row, e, err := p.entry(k)
	if err != nil {
		return err
	}
	if e == nil {
		return damaged(keyEntry(p.pid, k))
	}
	if p.earlier(e, inc) {
		return nil
	}
	return p.take(k, suffix, row, e)
}

// has says whether an entry is in the page, or was sent just now.
func (p *pageBuilder) has(suffix []byte) bool { return p.in[string(suffix)] || p.sent[string(suffix)] }

// take puts an entry, whose row is given, into the page, and with it what it needs to
// be of use.
func (p *pageBuilder) take(k entryKey, suffix, row []byte, e *entry) error {
	p.in[string(suffix)] = true
	p.pb.Entries = append(p.pb.Entries, &rowpb.Keyed{Key: suffix, Entry: row})
	p.size += len(suffix) + len(row) + 8
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
		content, err := p.content([]byte(k.name))
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
		ns := nk.suffix()
		if p.has(ns) {
			continue
		}
		nrow, ne, err := p.entry(nk)
		if err != nil {
			return err
		}
		if ne != nil && p.above(ne) {
			if err := p.take(nk, ns, nrow, ne); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry gives an entry and its row; nil: there is none.
func (p *pageBuilder) entry(k entryKey) ([]byte, *entry, error) {
	row, err := p.get(keyEntry(p.pid, k))
	if err != nil || row == nil {
		return nil, nil, err
	}
	e, err := decodeEntry(k, row)
	return row, e, err
}

// content gives a manifest's bytes if they are here and the project's; nil: they are not.
func (p *pageBuilder) content(raw []byte) ([]byte, error) { return contentIn(p.get, p.pid, raw) }

// get is reader.get for what may have been read ahead, and is let go of with that: most
// of it is wanted once.
func (p *pageBuilder) get(key []byte) ([]byte, error) {
	if value, ok := p.ahead.rows[string(key)]; ok {
		delete(p.ahead.rows, string(key))
		return value, nil
	}
	return p.r.get(key)
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
