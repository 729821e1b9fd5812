package catalog

import (
	"context"
	"fmt"

	"github.com/portolan/portolan/node/identity"
)

// Announce is for what is here of a project above its vector: what this store alone had
// when it lost rows, or pages of an exchange that broke off and whose sender lost them
// since. A peer that has the same vector does not ask for it. So a number is given to
// nothing, and another one only once entries have changed: who has that in its vector has
// pulled since, from here or from somebody who did, and a pull brings all that is above
// the receiver's vector. It reports whether one was given, and reads a row for each
// incarnation.
func (c *Catalog) Announce(ctx context.Context, pid identity.ProjectID) (given bool, err error) {
	var beyond bool
	var sum sums
	err = c.view(func(r reader) (err error) {
		if beyond, err = r.beyond(pid); err == nil {
			sum, err = r.sums(pid)
		}
		return err
	})
	c.mu.Lock()
	last, ever := c.announced[pid]
	c.mu.Unlock()
	if err == nil && beyond && !(ever && last == sum.all) {
		given = true
		err = c.submitAs(ctx, jobFreeing, func(b *batch) error {
			b.number(pid)
			b.touch(pid, change{local: true})
			return nil
		})
	}
	if err != nil {
		return false, fmt.Errorf("catalog: announce what is here of project %s: %w", pid, err)
	}
	if given {
		c.mu.Lock()
		c.announced[pid] = sum.all // of before the number: what came since is none of it
		c.mu.Unlock()
	}
	return given, nil
}

// beyond reports whether an entry here has a number of which the vector says less. What
// the control state says of tags each store has from there.
func (r reader) beyond(pid identity.ProjectID) (bool, error) {
	v, err := r.vector(tabVector, pid)
	if err != nil {
		return false, err
	}
	incs, err := r.indexed(pid)
	if err != nil {
		return false, err
	}
	found := false
	for _, inc := range incs {
		if inc == 0 {
			continue
		}
		prefix := prefixInc(tabIndex, pid, inc)
		start := keyIndex(pid, Dot{inc, v[inc] + 1}, entryKey{})[:len(prefix)+8]
		err := r.scan(prefix, start, false, func([]byte, []byte) (bool, error) {
			found = true
			return false, nil
		})
		if err != nil || found {
			return found, err
		}
	}
	return false, nil
}
