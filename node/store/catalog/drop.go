package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/portolan/portolan/node/identity"
)

// DropProject removes all that is here of a project: its site is no member any
// more, or the project is gone. What it referred to is noted (LetGos): what nothing
// else refers to can be collected then. It is several transactions; after a crash it is repeated. Nothing that it
// does can reach another store: the vector goes first, so that nobody takes what
// is missing for deleted.
func (c *Catalog) DropProject(ctx context.Context, pid identity.ProjectID) error {
	steps := []func() error{
		func() error { return c.forget(ctx, pid) },
		func() error { return c.dropEntries(ctx, pid) },
		func() error { return c.dropLeftovers(ctx, pid) },
		func() error { return c.dropContent(ctx, pid) },
		func() error { return c.dropRest(ctx, pid) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("catalog: drop project %s: %w", pid, err)
		}
	}
	return nil
}

// dropEntries removes entries and what follows from them, as many at a time as fit.
func (c *Catalog) dropEntries(ctx context.Context, pid identity.ProjectID) error {
	for {
		var keys []entryKey
		err := c.view(func(r reader) error {
			return r.scan(prefixPID(tabEntry, pid), nil, false, func(key, _ []byte) (bool, error) {
				_, k, ok := parsePIDEntry(key)
				if !ok {
					return false, damaged(key)
				}
				keys = append(keys, k)
				return len(keys) < deleteChunk, nil
			})
		})
		if err != nil || len(keys) == 0 {
			return err
		}
		err = c.submitAs(ctx, jobFreeing, func(b *batch) error {
			for _, k := range keys {
				if b.half() {
					break
				}
				e, err := b.entry(pid, k)
				if err == nil && e != nil {
					// With the entry, so that a crash forgets none of them.
					if err = b.noteLetGo(pid, k, e); err == nil {
						err = b.remove(pid, k, e)
					}
				}
				if err != nil {
					return err
				}
			}
			b.touch(pid, change{})
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// dropRest removes the project's other rows: sum, repositories, conflicts, leases.
func (c *Catalog) dropRest(ctx context.Context, pid identity.ProjectID) error {
	var errs []error
	flush := func(keys [][]byte) error {
		return c.submitAs(ctx, jobFreeing, func(b *batch) error {
			for _, key := range keys {
				b.del(key)
				if d, _, _, ok := parseLease(key); key[0] == tabLease && ok {
					if err := b.letGo(pid, d); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	for _, tab := range []byte{tabRepo, tabConflict, tabVector, tabPurged, tabCheck, tabFrozen} {
		for {
			var keys [][]byte
			err := c.view(func(r reader) error {
				return r.scan(prefixPID(tab, pid), nil, false, func(key, _ []byte) (bool, error) {
					keys = append(keys, key)
					return len(keys) < maxExpired, nil
				})
			})
			if err == nil && len(keys) > 0 {
				err = flush(keys)
			}
			if err != nil || len(keys) == 0 {
				errs = append(errs, err)
				break
			}
		}
	}
	var leases [][]byte
	err := c.walk([]byte{tabLease}, false, func(_ reader, key, _ []byte) (func() error, error) {
		_, of, _, ok := parseLease(key)
		if !ok {
			return nil, damaged(key)
		}
		return func() error {
			if of != pid {
				return nil
			}
			if leases = append(leases, key); len(leases) < maxExpired {
				return nil
			}
			defer func() { leases = nil }()
			return flush(leases)
		}, nil
	})
	if err == nil && len(leases) > 0 {
		err = flush(leases)
	}
	return errors.Join(append(errs, err)...)
}
