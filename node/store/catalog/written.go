package catalog

import "github.com/portolan/portolan/node/identity"

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

// wroteIn counts a request that was committed; c.mu is held.
func (c *Catalog) wroteIn(pid identity.ProjectID, inc identity.Incarnation) {
	w := c.wrote[pid]
	if w.Dot.Inc != inc {
		w = Written{Dot: Dot{Inc: inc}}
	}
	w.Count++
	c.wrote[pid] = w
}

// Written gives what this store wrote in a project.
func (c *Catalog) Written(pid identity.ProjectID) (Written, error) {
	c.mu.Lock()
	w := c.wrote[pid]
	c.mu.Unlock()
	if w.Count == 0 {
		return w, nil
	}
	// After the count: what comes in between is in neither, and who has seen the dot
	// is taken to have seen no more than what was counted.
	return w, c.view(func(r reader) (err error) {
		w.Dot.Seq, err = r.vectorOf(tabVector, pid, w.Dot.Inc)
		return err
	})
}

// Unseen counts what stores know of another one's requests by its word alone.
type Unseen struct {
	last, seen Written // the newest word, and the newest one all of which was seen
}

// Hear takes a store's word; covers is what is seen here of the project.
func (u *Unseen) Hear(w Written, covers Vector) {
	if w.Count == 0 {
		return
	}
	if w.Dot.Inc != u.last.Dot.Inc || w.Dot.Seq >= u.last.Dot.Seq {
		u.See(covers) // of the word before
		u.last = w
	}
	u.See(covers)
}

// See says what is seen by now: less than before where a store has lost what it had,
// or gave the project up and takes it in anew.
func (u *Unseen) See(covers Vector) {
	if u.seen.Count > 0 && !covers.Covers(u.seen.Dot) {
		u.seen = Written{}
	}
	if u.last.Count > 0 && covers.Covers(u.last.Dot) {
		u.seen = u.last
	}
}

// Count is how many requests nobody here has seen, at most, of those that the store
// told of: those of an earlier incarnation count as seen.
func (u *Unseen) Count(covers Vector) uint64 {
	u.See(covers)
	switch {
	case u.last.Dot == u.seen.Dot:
		return 0
	case u.last.Dot.Inc == u.seen.Dot.Inc:
		return u.last.Count - min(u.last.Count, u.seen.Count)
	}
	return u.last.Count
}
