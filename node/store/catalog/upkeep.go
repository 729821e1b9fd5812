package catalog

import (
	"context"
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

const (
	// upkeepEvery is how often expired leases, pins and reports go and the value
	// log is collected.
	upkeepEvery = time.Hour
	// gcDiscardRatio is Badger's advice.
	gcDiscardRatio = 0.5
)

// upkeepLoop owns Badger's value-log collection and lets go of what expired.
func (c *Catalog) upkeepLoop() {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	for {
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
		c.upkeep()
	}
}

func (c *Catalog) upkeep() {
	if err := c.expire(c.life); err != nil && c.life.Err() == nil {
		c.log.Warn("expired rows could not be removed from the catalogue: upkeep tries again in an hour", "error", err)
	}
	if n, err := c.dropOldProofs(c.life); err != nil && c.life.Err() == nil {
		c.log.Warn("proofs of blobs that are not here could not be removed from the catalogue: upkeep tries again in an hour", "error", err)
	} else if n > 0 {
		c.log.Info("proofs of blobs that are not here are removed", "rows", n)
	}
	if err := c.purgeOld(c.life); err != nil && c.life.Err() == nil {
		c.log.Warn("old tombstones could not be removed from the catalogue: upkeep tries again in an hour", "error", err)
	}
	// Badger may give up early (badger#2334), so ask until it finds nothing.
	for c.life.Err() == nil && c.db.RunValueLogGC(gcDiscardRatio) == nil {
		continue
	}
}

// expire removes leases whose time has passed, pins whose dot has been seen, and
// reported conflicts that no merge can bring up again.
func (c *Catalog) expire(ctx context.Context) error {
	for {
		n, err := c.expireSome(ctx)
		if err != nil || n < maxExpired {
			return err
		}
	}
}

// expireSome removes up to maxExpired rows and says how many.
func (c *Catalog) expireSome(ctx context.Context) (int, error) {
	var rows [][]byte
	err := c.view(func(r reader) error {
		nowMs := c.now().UnixMilli()
		collect := func(tab byte, gone func(key, value []byte) (bool, error)) error {
			return r.scan([]byte{tab}, nil, true, func(key, value []byte) (bool, error) {
				out, err := gone(key, value)
				if err == nil && out {
					rows = append(rows, key)
				}
				return len(rows) < maxExpired, err
			})
		}
		err := collect(tabLease, func(key, value []byte) (bool, error) {
			pb := &rowpb.Lease{}
			err := proto.Unmarshal(value, pb)
			return pb.UntilUnixMs < nowMs, err
		})
		if err != nil {
			return err
		}
		err = collect(tabPin, func(key, value []byte) (bool, error) {
			pin, err := decodePin(key, value)
			if err != nil {
				return false, err
			}
			return r.pinOver(pin)
		})
		if err != nil {
			return err
		}
		return collect(tabConflict, func(key, value []byte) (bool, error) {
			pb := &rowpb.Conflict{}
			err := proto.Unmarshal(value, pb)
			return pb.Reported && pb.FoundUnixMs < nowMs-2*LoserKeptFor.Milliseconds(), err
		})
	})
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	return len(rows), c.submitAs(ctx, jobFreeing, func(b *batch) error {
		for _, key := range rows {
			// A lease or pin renewed since then stays.
			if err := b.expireOne(key); err != nil {
				return err
			}
		}
		return nil
	})
}

// maxExpired bounds the rows that upkeep removes at a time, to fit them into one
// transaction.
const maxExpired = 5000

func (b *batch) expireOne(key []byte) error {
	value, err := b.get(key)
	if err != nil || value == nil {
		return err
	}
	switch key[0] {
	case tabLease:
		pb := &rowpb.Lease{}
		if err := proto.Unmarshal(value, pb); err != nil || pb.UntilUnixMs >= b.c.now().UnixMilli() {
			return err
		}
	case tabPin:
		pin, err := decodePin(key, value)
		if err != nil {
			return err
		}
		if over, err := b.pinOver(pin); err != nil || !over {
			return err
		}
	}
	b.del(key)
	return nil
}

// pinOver reports whether the promise has ended of itself: the entry that relies on it
// has come, and its reference row keeps the blob.
func (r reader) pinOver(p Pin) (bool, error) {
	if p.Dot.IsZero() {
		return false, nil
	}
	v, err := r.get(keyVector(tabVector, p.PID, p.Dot.Inc))
	if err != nil || len(v) != 8 {
		return false, err
	}
	return binary.BigEndian.Uint64(v) >= p.Dot.Seq, nil
}
