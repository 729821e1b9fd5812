package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// restampChunk bounds the tags that one request stamps anew.
const restampChunk = 200

// OwnVector gives what this store itself wrote to a project, in all its
// incarnations.
func (c *Catalog) OwnVector(pid identity.ProjectID) (Vector, error) {
	out := Vector{}
	err := c.view(func(r reader) error {
		v, err := r.vector(tabVector, pid)
		if err != nil {
			return err
		}
		return r.scan([]byte{tabInc}, nil, false, func(key, _ []byte) (bool, error) {
			inc, ok := parseInc(key)
			if !ok {
				return false, damaged(key)
			}
			if seq := v[inc]; seq > 0 {
				out[inc] = seq
			}
			return true, nil
		})
	})
	return out, err
}

// Restamp corrects the stamps of the tags that this store wrote beyond what
// others have seen, by as much as its clock was off. Each is written anew: a stamp
// belongs to its dot, and a store that has seen the dot after all would never
// agree on another. Deletes have no stamps. It returns how many tags it wrote.
func (c *Catalog) Restamp(ctx context.Context, pid identity.ProjectID, seen Vector, by time.Duration) (int, error) {
	own, err := c.OwnVector(pid)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, inc := range own.incs() {
		// What is written here has numbers above.
		for at, last := seen[inc], own[inc]; at < last; {
			keys, next, err := c.tagsWritten(pid, inc, at, last)
			if err != nil {
				return n, err
			}
			did := 0
			err = c.submit(ctx, func(b *batch) (err error) {
				did, err = b.restamp(pid, keys, Dot{inc, last}, by)
				return err
			})
			if err != nil {
				return n, fmt.Errorf("catalog: stamp tags of project %s anew: %w", pid, err)
			}
			n += did
			at = next
		}
	}
	return n, nil
}

// tagsWritten gives tags with a dot of an incarnation behind after, up to last, as
// many as one request takes, and up to where they go.
func (c *Catalog) tagsWritten(pid identity.ProjectID, inc identity.Incarnation, after, last uint64) (keys []entryKey, next uint64, err error) {
	next = last
	reached := after
	err = c.view(func(r reader) error {
		prefix := prefixInc(tabIndex, pid, inc)
		start := keyIndex(pid, Dot{inc, after + 1}, entryKey{})[:len(prefix)+8]
		return r.scan(prefix, start, false, func(key, _ []byte) (bool, error) {
			d, k, ok := parseIndex(key)
			if !ok {
				return false, damaged(key)
			}
			if d.Seq > last {
				return false, nil
			}
			if k.kind != kindTag {
				return true, nil
			}
			if len(keys) >= restampChunk && d.Seq > reached {
				next = reached
				return false, nil
			}
			keys, reached = append(keys, k), d.Seq // those of one request together: they are few
			return true, nil
		})
	})
	return keys, next, err
}

// restamp writes the siblings of an incarnation up to a dot anew.
func (b *batch) restamp(pid identity.ProjectID, keys []entryKey, upTo Dot, by time.Duration) (n int, err error) {
	now := b.c.now().Add(by)
	var dot Dot
	for _, k := range keys {
		e, err := b.entry(pid, k)
		if err != nil {
			return n, err
		}
		if e == nil {
			continue // purged meanwhile, or its row was lost
		}
		old := -1
		for i, s := range e.sibs {
			if s.dot.Inc == upTo.Inc && s.dot.Seq <= upTo.Seq {
				old = i
			}
		}
		if old < 0 {
			continue // deleted, or replaced by another store's write
		}
		if dot == (Dot{}) {
			dot = b.dot(pid)
		}
		s := e.sibs[old]
		was := s.dot
		at := min(int64(s.stamp>>stampShift)+by.Milliseconds(), now.UnixMilli())
		s.dot, s.stamp = dot, uint64(max(at, 0))<<stampShift|s.stamp&(1<<stampShift-1)
		if err := b.save(pid, k, e, e.next(dot, s.stamp, &s, func(x *sibling) bool { return x.dot == was })); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}
