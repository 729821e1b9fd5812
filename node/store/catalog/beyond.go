package catalog

import (
	"context"
	"fmt"
	"math"

	"github.com/dgraph-io/badger/v4"

	"github.com/portolan/portolan/node/identity"
)

// Announce is for what is here of a project above its vector: what this store alone had
// when it lost rows, or pages of an exchange that broke off and whose sender lost them
// since. A peer that has the same vector does not ask for it. So a number is given to
// nothing, once for the same entries: who has that in its vector has pulled since, from
// here or from somebody who did, and a pull brings all that is above the receiver's
// vector. It reports whether one was given, and reads a row or two for each incarnation.
func (c *Catalog) Announce(ctx context.Context, pid identity.ProjectID) (bool, error) {
	beyond, err := c.beyond(pid)
	if err == nil && len(beyond) > 0 && !c.isAnnounced(pid, beyond) {
		err = c.submitAs(ctx, jobFreeing, func(b *batch) error {
			b.number(pid)
			b.touch(pid, change{local: true})
			return nil
		})
		if err == nil {
			c.setAnnounced(pid, beyond)
			return true, nil
		}
	}
	if err != nil {
		return false, fmt.Errorf("catalog: announce what is here of project %s: %w", pid, err)
	}
	if len(beyond) == 0 {
		c.setAnnounced(pid, nil)
	}
	return false, nil
}

func (c *Catalog) isAnnounced(pid identity.ProjectID, beyond Vector) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.announced[pid].Equal(beyond)
}

func (c *Catalog) setAnnounced(pid identity.ProjectID, beyond Vector) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(beyond) == 0 {
		delete(c.announced, pid)
		return
	}
	c.announced[pid] = beyond
}

// beyond gives the highest number that an entry here has of each incarnation of which
// the vector says less. What the control state says of tags each store has from there.
func (c *Catalog) beyond(pid identity.ProjectID) (Vector, error) {
	out := Vector{}
	err := c.view(func(r reader) error {
		v, err := r.vector(tabVector, pid)
		if err != nil {
			return err
		}
		incs, err := r.indexed(pid)
		if err != nil {
			return err
		}
		for _, inc := range incs {
			last, err := r.lastIndexed(pid, inc)
			if err != nil {
				return err
			}
			if inc != 0 && last > v[inc] {
				out[inc] = last
			}
		}
		return nil
	})
	return out, err
}

// lastIndexed gives the highest number that an entry has of an incarnation; 0: none has.
func (r reader) lastIndexed(pid identity.ProjectID, inc identity.Incarnation) (uint64, error) {
	opts := badger.DefaultIteratorOptions
	opts.Prefix, opts.PrefetchValues, opts.Reverse = prefixInc(tabIndex, pid, inc), false, true
	it := r.txn.NewIterator(opts)
	defer it.Close()
	it.Seek(append(keyIndex(pid, Dot{inc, math.MaxUint64}, entryKey{}), 0xff))
	if !it.Valid() {
		return 0, nil
	}
	d, _, ok := parseIndex(it.Item().KeyCopy(nil))
	if !ok {
		return 0, damaged(it.Item().KeyCopy(nil))
	}
	return d.Seq, nil
}
