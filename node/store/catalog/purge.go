package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/portolan/portolan/node/identity"
)

const (
	// TombstonesKeptFor is how long a deleted entry stays, by the clock here, since it
	// became one here. A store that is away for longer gets a full list when it is
	// back, so that a longer time saves exchanges and a shorter one saves rows;
	// neither is less safe.
	TombstonesKeptFor = 30 * 24 * time.Hour
	// purgeChunk bounds the tombstones that go in one transaction.
	purgeChunk = 1000
)

// Purge lets the tombstones of a project go that are older than the time given
// and of which all is seen here, and gives their number. What they covered is kept
// as one vector (rule 6).
func (c *Catalog) Purge(ctx context.Context, pid identity.ProjectID, before time.Time) (int, error) {
	total := 0
	var from []byte
	for {
		keys, next, err := c.tombs(pid, from, before)
		if err == nil && len(keys) > 0 {
			n := 0
			err = c.submitAs(ctx, jobFreeing, func(b *batch) (err error) {
				n, err = b.purge(pid, keys)
				return err
			})
			if err == nil { // else the committer may still write to n
				total += n
			}
		}
		if err != nil {
			return total, fmt.Errorf("catalog: purge tombstones of project %s: %w", pid, err)
		}
		if next == nil {
			return total, nil
		}
		from = next
	}
}

// tombs gives the keys of some tombstones from a place on, oldest first, and the
// next place; nil at the end.
func (c *Catalog) tombs(pid identity.ProjectID, from []byte, before time.Time) (keys [][]byte, next []byte, err error) {
	err = c.view(func(r reader) error {
		return r.scan(prefixPID(tabTomb, pid), from, false, func(key, _ []byte) (bool, error) {
			ms, _, ok := parseTomb(key)
			switch {
			case !ok:
				return false, damaged(key)
			case ms >= before.UnixMilli():
				return false, nil
			case len(keys) == purgeChunk:
				next = key
				return false, nil
			}
			keys = append(keys, key)
			return true, nil
		})
	})
	return keys, next, err
}

func (b *batch) purge(pid identity.ProjectID, keys [][]byte) (n int, err error) {
	vector, err := b.vector(tabVector, pid)
	if err != nil {
		return 0, err
	}
	purged, err := b.vector(tabPurged, pid)
	if err != nil {
		return 0, err
	}
	grown := Vector{}
	for _, key := range keys {
		if b.half() {
			break // the next hour's goes on
		}
		ms, k, _ := parseTomb(key)
		e, err := b.entry(pid, k)
		if err != nil {
			return 0, err
		}
		// Losers are roots of collection while they are kept. What this store has not
		// seen all of up to there may still be live elsewhere.
		if e == nil || e.live() || e.goneMs != ms || len(e.losers) > 0 && !b.losersOver(e) || !b.c.seenAll(vector, e.ctx) {
			continue
		}
		if err := b.remove(pid, k, e); err != nil {
			return 0, err
		}
		for inc, seq := range e.ctx {
			grown[inc] = max(grown[inc], seq)
		}
		n++
	}
	// With the entries, in one transaction: what is gone must be known to be gone.
	for _, inc := range grown.incs() {
		if grown[inc] > purged[inc] {
			b.setVector(tabPurged, pid, Dot{inc, grown[inc]})
		}
	}
	return n, nil
}

func (b *batch) losersOver(e *entry) bool {
	nowMs := b.c.now().UnixMilli()
	for _, l := range e.losers {
		if l.keepUntilMs >= nowMs {
			return false
		}
	}
	return true
}

// remove takes an entry out with all that follows from it.
func (b *batch) remove(pid identity.ProjectID, k entryKey, e *entry) error {
	b.del(keyEntry(pid, k))
	for inc, seq := range e.ctx {
		b.del(keyIndex(pid, Dot{inc, seq}, k))
	}
	sum, err := b.sums(pid)
	if err != nil {
		return err
	}
	sum.take(e, k.suffix())
	b.setSums(pid, sum)
	rows, err := derive(pid, k, e)
	if err != nil {
		return err
	}
	for _, r := range rows {
		b.del(r.key)
	}
	if e.live() {
		return b.count(pid, k, false)
	}
	return nil
}

// purgeOld is upkeep's.
func (c *Catalog) purgeOld(ctx context.Context) error {
	pids, err := c.Projects()
	if err != nil {
		return err
	}
	before := c.now().Add(-TombstonesKeptFor)
	for _, pid := range pids {
		n, err := c.Purge(ctx, pid, before)
		if err != nil {
			return err
		}
		if n > 0 {
			c.log.Info("old tombstones of the catalogue purged", "project", pid, "entries", n)
		}
	}
	return nil
}
