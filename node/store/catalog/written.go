package catalog

import (
	"slices"

	"github.com/portolan/portolan/node/identity"
)

// Written says how much a store wrote in a project since its incarnation began. It
// is what others are told, so that they can say what they never saw when the store
// is gone for good (rule 14).
type Written struct {
	// Dot is the newest request; its number is of the incarnation, in any project.
	Dot Dot
	// Count is how many requests there were in the project, at least. Zero: none, and
	// Dot says nothing.
	Count uint64
}

// wroteIn counts requests that were committed, the newest of them last; c.mu is held.
func (c *Catalog) wroteIn(pid identity.ProjectID, last Dot, requests uint64) {
	w := c.wrote[pid]
	if w.Dot.Inc != last.Inc {
		w = Written{}
	}
	c.wrote[pid] = Written{Dot: last, Count: w.Count + requests}
}

// Written gives what this store wrote in a project.
func (c *Catalog) Written(pid identity.ProjectID) Written {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wrote[pid]
}

// maxIncarnations bounds the incarnations of which a store's word is kept: one for
// each start of that store while this one runs.
const maxIncarnations = 64

// Unseen counts what stores know of another one's requests by its word alone. The
// zero value has heard nothing.
type Unseen struct {
	words []word // the first heard first
	// more counts what could not be kept apart any more, and nothing takes it back.
	more uint64
}

// word is of one incarnation: the newest one, and the newest all of which was seen.
type word struct{ last, seen Written }

// Hear takes a store's word; covers is what is seen here of the project.
func (u *Unseen) Hear(w Written, covers Vector) {
	if w.Count == 0 {
		return
	}
	i := slices.IndexFunc(u.words, func(x word) bool { return x.last.Dot.Inc == w.Dot.Inc })
	if i < 0 {
		u.makeRoom(covers)
		u.words = append(u.words, word{last: w})
		i = len(u.words) - 1
	}
	x := &u.words[i]
	if w.Dot.Seq >= x.last.Dot.Seq {
		x.see(covers) // of the word before
		x.last = w
	}
	x.see(covers)
}

// makeRoom forgets an incarnation if there are too many: one that was seen, and else
// the oldest, which counts as it does now from then on.
func (u *Unseen) makeRoom(covers Vector) {
	if len(u.words) < maxIncarnations {
		return
	}
	i := max(0, slices.IndexFunc(u.words, func(x word) bool { return covers.Covers(x.last.Dot) }))
	u.more += u.words[i].count(covers)
	u.words = slices.Delete(u.words, i, i+1)
}

// see says what is seen by now: less than before where a store has lost what it had,
// or gave the project up and takes it in anew.
func (x *word) see(covers Vector) {
	if x.seen.Count > 0 && !covers.Covers(x.seen.Dot) {
		x.seen = Written{}
	}
	if covers.Covers(x.last.Dot) {
		x.seen = x.last
	}
}

func (x *word) count(covers Vector) uint64 {
	x.see(covers)
	return x.last.Count - min(x.last.Count, x.seen.Count)
}

// Count is how many requests nobody here has seen, at most, of those that the store
// told of, in whichever incarnation.
func (u *Unseen) Count(covers Vector) uint64 {
	n := u.more
	for i := range u.words {
		n += u.words[i].count(covers)
	}
	return n
}
