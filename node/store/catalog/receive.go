package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// This file is the receiver's half of an exchange. Most exchanges are pages and
// a vector. One that begins with a full list (rule 6) has more to keep together:
// what the list leaves out, whether it is whole, and what others brought meanwhile.

const (
	// maxDrops bounds what one list may drop here, for the sake of memory: some
	// 30 MiB. When it leaves out more, these go, and the next exchange finds the
	// rest.
	maxDrops = 200_000
	// dropChunk is how many of them go in one transaction, usually with the vector.
	dropChunk = 2000
	// maxForeign bounds what other exchanges may bring of a project while it is
	// received with a full list.
	maxForeign = 20_000
)

var (
	// ErrListNeeded says that the sender has purged tombstones that this store may
	// have missed, and its full list did not come: begin the exchange anew.
	ErrListNeeded = errors.New("the exchange needs a full list")
	// ErrListUnsound says that a full list has a hole, or does not add up to the
	// sender's sum: the sender lost rows, or parts were lost on the way. Nothing was
	// dropped for it.
	ErrListUnsound = errors.New("the full list does not add up")
	// ErrAgain says that the exchange went well as far as it came, and has to be
	// repeated before its vector can be taken over.
	ErrAgain = errors.New("the exchange has to be repeated")
)

// Receiving is one exchange at the receiver: Page, or Check and Take, for each
// page in the order in which they were sent, then Adopt. It is for one goroutine
// at a time. End it in any case.
type Receiving struct {
	c       *Catalog
	pid     identity.ProjectID
	since   Vector
	list    *listCheck // nil: no list has begun
	listed  bool       // it came whole
	partial bool       // not all of it: see maxDrops
	opened  bool       // the committer may know of this exchange
	begun   bool       // the first page was taken in

	// What the list leaves out, by key. It goes after the last page, right before the
	// vector or with it: a drop that stood alone would be a deletion without a dot,
	// which nobody else would ever hear of if the sender were gone by then.
	pending  map[string]drop
	retagged []ManifestRef

	// Only the committer touches these.
	arriving bool // see there
	foreign  map[foreign]bool
	overflow bool // there were more than maxForeign
}

// foreign is a sibling that came in from elsewhere while a list was received.
type foreign struct {
	suffix string
	dot    Dot
}

// listCheck is how far a list has come.
type listCheck struct {
	vector Vector
	last   []byte // key that the last part ended with
	sum    Check
	drops  []drop
	most   int  // maxDrops, but in tests
	over   bool // there were more than that
}

// drop is what a list leaves out of one key.
type drop struct {
	key  entryKey
	dots []Dot
}

// Receive begins an exchange. Since gives the vector that the sender is to be told.
func (c *Catalog) Receive(pid identity.ProjectID) (*Receiving, error) {
	since, err := c.Vector(pid)
	if err != nil {
		return nil, fmt.Errorf("catalog: receive project %s: %w", pid, err)
	}
	return &Receiving{c: c, pid: pid, since: since}, nil
}

// Since is what this store had seen when the exchange began.
func (r *Receiving) Since() Vector { return r.since }

// Page checks and takes in one page.
func (r *Receiving) Page(ctx context.Context, p Page) (Applied, error) {
	checked, err := r.Check(p)
	if err != nil {
		return Applied{}, err
	}
	return r.Take(ctx, checked)
}

// Take takes in one page that was checked. When it returns the page is durable.
func (r *Receiving) Take(ctx context.Context, p Checked) (Applied, error) {
	checked := p.page
	if err := r.begin(ctx); err != nil {
		return Applied{}, err
	}
	if checked.list != nil {
		if err := r.takeList(ctx, checked.list); err != nil {
			return Applied{}, fmt.Errorf("catalog: take a full list of project %s: %w", r.pid, err)
		}
	}
	if len(checked.entries) == 0 {
		return Applied{}, nil
	}
	checked.by = r
	applied, err := r.c.applyPage(ctx, r.pid, checked)
	if err != nil {
		return applied, fmt.Errorf("catalog: apply a page to project %s: %w", r.pid, err)
	}
	return applied, nil
}

// begin tells the committer, before the first page, of a first exchange.
func (r *Receiving) begin(ctx context.Context) error {
	if r.begun || len(r.since) > 0 {
		return nil
	}
	r.begun, r.opened = true, true
	return r.c.submitAs(ctx, jobReceived, func(b *batch) (err error) {
		if r.arriving { // jobs may be run twice
			return nil
		}
		r.arriving, err = b.c.arriving.begin(r.pid, func(prefix []byte) (bool, error) {
			some, err := b.any(prefix)
			return !some, err
		})
		return err
	})
}

// takeList compares one part of a list with what is here.
func (r *Receiving) takeList(ctx context.Context, part *rowpb.List) error {
	if len(part.After) == 0 {
		r.list, r.listed, r.pending = &listCheck{vector: vectorFromPB(part.Vector), most: r.c.maxDrops}, false, nil
		if err := r.openWindow(ctx); err != nil {
			return err
		}
	}
	l := r.list
	if l == nil || !bytes.Equal(part.After, l.last) {
		return fmt.Errorf("%w: a part of it is not here", ErrListUnsound)
	}
	rows, err := l.parse(part)
	if err != nil {
		return err
	}
	if err := r.c.view(func(rd reader) error { return l.compare(rd, r.pid, rows, part.Last) }); err != nil {
		return err
	}
	if !part.Last {
		return nil
	}
	r.list = nil
	want := Check{Count: part.GetCheck().GetCount()}
	copy(want.Xor[:], part.GetCheck().GetXor())
	if !r.c.sound(want, l.sum) {
		return fmt.Errorf("%w: %d entries, the sender should have %d", ErrListUnsound, l.sum.Count, want.Count)
	}
	// Only now: a list that is not whole says nothing about what it leaves out.
	r.listed, r.partial, r.pending = true, l.over, make(map[string]drop, len(l.drops))
	for _, d := range l.drops {
		r.pending[string(d.key.suffix())] = d
	}
	return nil
}

// left is what is here of an entry without what the list left out of it.
func (r *Receiving) left(k entryKey, here *entry) *entry {
	if r == nil || len(r.pending) == 0 || here == nil {
		return here
	}
	d, ok := r.pending[string(k.suffix())]
	if !ok {
		return here
	}
	out := &entry{ctx: here.ctx, losers: here.losers, goneMs: here.goneMs}
	for _, s := range here.sibs {
		if !slices.Contains(d.dots, s.dot) {
			out.sibs = append(out.sibs, s)
		}
	}
	return out
}

// listedRow is one checked row.
type listedRow struct {
	suffix []byte
	dots   []Dot
}

// parse checks a part's rows and adds them up. Keys ascend strictly.
func (l *listCheck) parse(part *rowpb.List) ([]listedRow, error) {
	rows := make([]listedRow, 0, len(part.Rows))
	before, own := l.last, []byte(nil)
	for _, pb := range part.Rows {
		if int(pb.Shared) > len(own) || len(pb.Hash) != 16 {
			return nil, fmt.Errorf("%w: row of a list", ErrInvalid)
		}
		own = slices.Concat(own[:pb.Shared], pb.Rest)
		if _, ok := parseEntrySuffix(own); !ok || bytes.Compare(own, before) <= 0 {
			return nil, fmt.Errorf("%w: key %q of a list", ErrInvalid, own)
		}
		before = own
		row := listedRow{suffix: own}
		for _, d := range pb.Dots {
			row.dots = append(row.dots, Dot{identity.Incarnation(d.Inc), d.Seq})
		}
		rows = append(rows, row)
		l.sum.add([16]byte(pb.Hash), 1)
	}
	return rows, nil
}

// compare walks the live entries here beside the part, which stands for all keys
// behind the part before it, and notes the siblings that it leaves out although
// the sender has seen them.
func (l *listCheck) compare(r reader, pid identity.ProjectID, rows []listedRow, last bool) error {
	if len(rows) == 0 && !last {
		return fmt.Errorf("%w: an empty part of a list", ErrInvalid)
	}
	prefix := prefixPID(tabLive, pid)
	i := 0
	err := r.scan(prefix, slices.Concat(prefix, l.last, []byte{0}), false, func(key, _ []byte) (bool, error) {
		suffix := key[len(prefix):]
		for i < len(rows) && bytes.Compare(rows[i].suffix, suffix) < 0 {
			i++
		}
		if i == len(rows) && !last {
			return false, nil
		}
		_, k, ok := parsePIDEntry(key)
		if !ok {
			return false, damaged(key)
		}
		e, err := r.entry(pid, k)
		if err != nil {
			return false, err
		}
		if e == nil {
			return false, damaged(key)
		}
		var there []Dot
		if i < len(rows) && bytes.Equal(rows[i].suffix, suffix) {
			there = rows[i].dots
		}
		d := drop{key: k}
		for _, s := range e.sibs {
			if l.vector.Covers(s.dot) && !slices.Contains(there, s.dot) {
				d.dots = append(d.dots, s.dot)
			}
		}
		if len(d.dots) > 0 {
			if len(l.drops) >= l.most {
				l.over = true
				return true, nil
			}
			l.drops = append(l.drops, d)
		}
		return true, nil
	})
	if len(rows) > 0 {
		l.last = rows[len(rows)-1].suffix
	}
	return err
}

// applyDrops takes what the list left out out of entries. The dots stay in their
// contexts, so that nothing brings them back.
func (b *batch) applyDrops(r *Receiving, drops []drop) ([]ManifestRef, error) {
	var retagged []ManifestRef
	for _, d := range drops {
		here, err := b.entry(r.pid, d.key)
		if err != nil {
			return nil, err
		}
		new := r.left(d.key, here)
		if here == nil || len(new.sibs) == len(here.sibs) {
			continue // a page, a write or another exchange was faster
		}
		if err := b.save(r.pid, d.key, here, new); err != nil {
			return nil, err
		}
		if d.key.kind == kindTag {
			if raw := new.says(); raw != nil && !bytes.Equal(raw, here.says()) {
				retagged = append(retagged, ManifestRef{d.key.repo, digestOrEmpty(raw)})
			}
		}
	}
	return retagged, nil
}

// Retagged gives, after Adopt, even if it failed, what tags say now because a list left out what they
// said before.
func (r *Receiving) Retagged() []ManifestRef { return r.retagged }

// openWindow begins to note what other exchanges bring: until the purged vector
// is taken over here, they may bring back what the list left out.
func (r *Receiving) openWindow(ctx context.Context) error {
	r.opened = true
	return r.c.submitAs(ctx, jobReceived, func(*batch) error {
		r.foreign, r.overflow = map[foreign]bool{}, false
		r.c.windows[r] = true
		return nil
	})
}

// End lets go of what the exchange holds. It may be called twice.
func (r *Receiving) End() {
	if !r.opened {
		return
	}
	_ = r.c.submitAs(r.c.life, jobEnding, func(*batch) error { // fails only when nothing is written any more
		delete(r.c.windows, r)
		r.foreign = nil
		if r.arriving {
			r.c.arriving.end(r.pid)
			r.arriving = false
		}
		return nil
	})
	r.opened = false
}

// noteForeign is called by the committer for each sibling that a page brought.
func (b *batch) noteForeign(pid identity.ProjectID, k entryKey, here, in *entry, purged Vector, by *Receiving) {
	for w := range b.c.windows {
		if w.pid != pid {
			continue
		}
		for _, s := range in.sibs {
			f := foreign{string(k.suffix()), s.dot}
			switch {
			case w == by:
				delete(w.foreign, f)
			case here != nil && here.ctx.Covers(s.dot) || purged.Covers(s.dot): // not taken in
			case len(w.foreign) >= maxForeign:
				w.overflow = true
			default:
				w.foreign[f] = true
			}
		}
	}
}

// stray reports whether others brought what the sender had seen and does not have.
func (r *Receiving) stray(v Vector) bool {
	for f := range r.foreign {
		if v.Covers(f.dot) {
			return true
		}
	}
	return r.overflow
}

// Adopt takes over what the sender has seen, after all pages were taken in: its
// vector, and with a full list what it has purged. ErrAgain and ErrVectorDropped
// ask for another exchange.
func (r *Receiving) Adopt(ctx context.Context, end Noted) error {
	drops := slices.SortedFunc(maps.Values(r.pending), func(x, y drop) int { return bytes.Compare(x.key.suffix(), y.key.suffix()) })
	for {
		n := min(len(drops), dropChunk)
		// A list that left out more than fits brings no vector, but the next one has less
		// to leave out. Until then these drops have no dot; see DESIGN.md.
		last := n == len(drops) && !r.partial
		retagged, err := r.adoptWith(ctx, end, drops[:n], last)
		for n > 1 && errors.Is(err, ErrTooLarge) { // they refer to much
			n, last = n/2, false
			retagged, err = r.adoptWith(ctx, end, drops[:n], last)
		}
		if err != nil {
			return fmt.Errorf("catalog: adopt a vector of project %s: %w", r.pid, err)
		}
		r.retagged = append(r.retagged, retagged...)
		if last {
			return nil
		}
		if drops = drops[n:]; len(drops) == 0 && r.partial {
			return fmt.Errorf("catalog: adopt a vector of project %s: %w: a full list left out more than %d entries", r.pid, ErrAgain, r.c.maxDrops)
		}
	}
}

// adoptWith applies some drops and, with the last of them, takes the vector over.
func (r *Receiving) adoptWith(ctx context.Context, end Noted, drops []drop, last bool) ([]ManifestRef, error) {
	var retagged []ManifestRef
	err := r.c.submitAs(ctx, jobReceived, func(b *batch) (err error) {
		if r.stray(end.Vector) {
			return fmt.Errorf("%w: other sites brought what the sender deleted", ErrAgain)
		}
		if retagged, err = b.applyDrops(r, drops); err != nil {
			return err
		}
		// Also before the last: what can't be adopted in the end must not be begun.
		return b.adopt(r.pid, r.since, end, r.listed, last)
	})
	if err != nil {
		return nil, err // the committer may still write to retagged
	}
	return retagged, nil
}

// Adopt takes over what a peer had noted before the first page of its delta,
// after all pages were applied. since is the vector that this side sent for that
// delta. An exchange with a full list needs a Receiving: ErrListNeeded.
func (c *Catalog) Adopt(ctx context.Context, pid identity.ProjectID, since Vector, end Noted) error {
	return (&Receiving{c: c, pid: pid, since: since}).Adopt(ctx, end)
}

func (b *batch) adopt(pid identity.ProjectID, since Vector, end Noted, listed, write bool) error {
	here, err := b.vector(tabVector, pid)
	if err != nil {
		return err
	}
	if !here.Dominates(since) {
		return ErrVectorDropped
	}
	if !end.Vector.Dominates(end.Purged) {
		return fmt.Errorf("%w: a sender that purged what it has not seen", ErrInvalid)
	}
	if !listed && !since.Dominates(end.Purged) {
		return ErrListNeeded
	}
	if !write {
		return nil
	}
	for _, inc := range end.Vector.incs() {
		if end.Vector[inc] > here[inc] {
			b.setVector(tabVector, pid, Dot{inc, end.Vector[inc]})
			b.touch(pid, change{})
		}
	}
	if !listed {
		return nil // what was purged there has been seen here
	}
	purged, err := b.vector(tabPurged, pid)
	if err != nil {
		return err
	}
	// In the vector's transaction: what it covers and is not here was deleted.
	for _, inc := range end.Purged.incs() {
		if end.Purged[inc] > purged[inc] {
			b.setVector(tabPurged, pid, Dot{inc, end.Purged[inc]})
		}
	}
	return nil
}

// Noted is what a sender gives with the end of a delta: what it had seen before
// the first page, and which tombstones it no longer has.
type Noted struct {
	Vector Vector
	Purged Vector
}

func vectorFromPB(pb []*rowpb.Seen) Vector {
	v := make(Vector, len(pb))
	for _, s := range pb {
		v[identity.Incarnation(s.Inc)] = s.Seq
	}
	return v
}
