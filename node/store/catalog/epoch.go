package catalog

import (
	"crypto/rand"
	"encoding/binary"
)

// maxEpochs bounds how many of a feed's epochs are remembered. A reader that last
// came in an older one reads the feed anew.
const maxEpochs = 1000

// FeedCursor is how far a feed was read: up to which number, and in which epoch
// of the feed that was. Numbers alone are not enough: a store that is put back to
// an older state gives them out again.
type FeedCursor struct {
	Epoch uint64 // random; 0: the feed had none yet
	N     uint64
}

// feedEpoch is the epoch of the feed rows that this process writes. It begins with
// the first of them, and anew after a transaction that failed: that one may be
// there after a restart, or not. Its row is written in the transaction of its first
// feed row, so that whoever saw a number of an epoch knows the epoch.
type feedEpoch struct {
	id, start uint64
	written   bool
}

func (b *batch) beginEpoch() error {
	e := &b.c.epoch
	if e.id == 0 {
		var id [8]byte
		_, _ = rand.Read(id[:]) // never fails
		e.id, e.start = binary.BigEndian.Uint64(id[:])|1, b.c.feedN
	}
	if e.written {
		return nil
	}
	b.set(keyEpoch(e.start, e.id), nil)
	var all [][]byte
	err := b.scan([]byte{tabEpoch}, nil, false, func(key, _ []byte) (bool, error) {
		all = append(all, key)
		return true, nil
	})
	if err != nil {
		return err
	}
	for len(all) >= maxEpochs {
		b.del(all[0])
		all = all[1:]
	}
	return nil
}

// FeedFrom gives up to n changes behind a cursor, oldest first, and the epoch that
// a cursor at the last of them is of. known is false for a cursor that this store
// did not give out, or gave out before it was put back to an older state: what it
// said until then may be wrong, and is to be forgotten.
func (c *Catalog) FeedFrom(at FeedCursor, n int) (entries []FeedEntry, epoch uint64, known bool, err error) {
	err = c.view(func(r reader) error {
		if epoch, known, err = r.knows(at); err != nil || !known {
			return err
		}
		entries, err = r.feed(at.N, n)
		return err
	})
	return entries, epoch, known, err
}

// knows gives the present epoch, and whether a cursor still holds: its epoch is one
// of this store's, and no later one began before the cursor.
func (r reader) knows(at FeedCursor) (now uint64, known bool, err error) {
	last, err := r.lastFeed()
	if err != nil {
		return 0, false, err
	}
	found, over := false, false
	err = r.scan([]byte{tabEpoch}, nil, false, func(key, _ []byte) (bool, error) {
		start, id, ok := parseEpoch(key)
		if !ok {
			return false, damaged(key)
		}
		over = over || found && start < at.N
		found = found || id == at.Epoch
		now = id
		return true, nil
	})
	switch {
	case err != nil:
		return 0, false, err
	case at.N == 0:
		return now, true, nil
	case at.Epoch == 0 && now == 0:
		found = true
	}
	return now, found && !over && at.N <= last, nil
}
