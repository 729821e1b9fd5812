package catalog

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// FeedBuckets is into how many parts what a store holds is divided, by the first
// 12 bits of digests, to find out where a reader's hints are wrong.
const FeedBuckets = 4096

// FeedSums says what a store holds, or is thought to hold: for each bucket the
// count of its digests and the xor of hashes of them with how they are held.
type FeedSums [FeedBuckets]Check

func bucketOf(raw []byte) uint16 { return binary.BigEndian.Uint16(raw[1:3]) >> 4 }

func (s *FeedSums) add(raw []byte, placed bool) {
	h := fnv.New128a()
	_, _ = h.Write(raw)
	if placed {
		_, _ = h.Write([]byte{1})
	}
	c := &s[bucketOf(raw)]
	c.Count++
	for i, b := range h.Sum(nil) {
		c.Xor[i] ^= b
	}
}

// FeedSums adds up this store's own feed, and says at which cursor that was. It
// reads all of it, from one snapshot: about a second for a million blobs.
func (c *Catalog) FeedSums(ctx context.Context) (*FeedSums, FeedCursor, error) {
	sums, at := new(FeedSums), FeedCursor{}
	err := c.view(func(r reader) (err error) {
		if at.N, err = r.lastFeed(); err != nil {
			return err
		}
		if at.Epoch, _, err = r.knows(at); err != nil {
			return err
		}
		return r.scan([]byte{tabFeed}, nil, true, func(key, value []byte) (bool, error) {
			pb := &rowpb.FeedRow{}
			if err := proto.Unmarshal(value, pb); err != nil || len(pb.Digest) < 3 {
				return false, damaged(key)
			}
			if state := Class(pb.State); state != Gone {
				sums.add(pb.Digest, state != Cached)
			}
			return true, ctx.Err()
		})
	})
	return sums, at, err
}

// HintSums adds up what another store is thought to hold.
func (c *Catalog) HintSums(ctx context.Context, store identity.StoreID) (*FeedSums, error) {
	sums := new(FeedSums)
	err := c.view(func(r reader) error {
		row := &rowpb.StoreRow{}
		if ok, err := r.message(keyStore(store), row); err != nil || !ok {
			return err
		}
		return r.scan([]byte{tabHint}, nil, true, func(key, value []byte) (bool, error) {
			hint := &rowpb.Hint{}
			if err := proto.Unmarshal(value, hint); err != nil {
				return false, damaged(key)
			}
			if placed := hasBit(hint.Placed, row.Number); placed || hasBit(hint.Cached, row.Number) {
				sums.add(key[1:], placed)
			}
			return true, ctx.Err()
		})
	})
	return sums, err
}

// scanBucket calls fn for the keys of a table by digest that are in a bucket.
func (r reader) scanBucket(tab byte, bucket uint16, values bool, fn func(raw, value []byte) error) error {
	for _, alg := range []byte{algSHA256, algSHA512} {
		first := []byte{tab, alg, byte(bucket >> 4), byte(bucket << 4)}
		err := r.scan(first[:3], first, values, func(key, value []byte) (bool, error) {
			if len(key) < 4 || bucketOf(key[1:]) != bucket {
				return false, nil
			}
			return true, fn(key[1:], value)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// FeedBucket gives all that this store holds of some buckets: entries without
// numbers.
func (c *Catalog) FeedBucket(buckets []uint16) ([]FeedEntry, error) {
	var out []FeedEntry
	err := c.view(func(r reader) error {
		for _, bucket := range buckets {
			err := r.scanBucket(tabFeedPos, bucket, true, func(raw, value []byte) error {
				if len(value) != 8 {
					return damaged(prefixDigest(tabFeedPos, raw))
				}
				pb, key := &rowpb.FeedRow{}, keyFeed(binary.BigEndian.Uint64(value))
				if ok, err := r.message(key, pb); err != nil || !ok {
					return damaged(key)
				}
				if state := Class(pb.State); state != Gone {
					out = append(out, FeedEntry{Digest: digestOrEmpty(raw), State: state})
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// RepairHints makes what another store is thought to hold of some buckets what it
// says that it holds; it returns how many hints were wrong. Entries of other
// buckets are ErrInvalid.
func (c *Catalog) RepairHints(ctx context.Context, store identity.StoreID, buckets []uint16, holds []FeedEntry) (wrong int, err error) {
	asked := map[uint16]bool{}
	for _, b := range buckets {
		asked[b] = true
	}
	want := map[string]Class{}
	for _, e := range holds {
		raw, err := rawDigest(e.Digest)
		if err != nil {
			return 0, err
		}
		if !asked[bucketOf(raw)] || e.State < Home || e.State > Cached {
			return 0, fmt.Errorf("%w: %s in state %d was not asked for", ErrInvalid, e.Digest, e.State)
		}
		want[string(raw)] = e.State
	}
	type fix struct {
		raw   []byte
		state Class
	}
	var fixes []fix
	var number uint32
	err = c.view(func(r reader) error {
		row := &rowpb.StoreRow{}
		if ok, err := r.message(keyStore(store), row); err != nil || !ok {
			return err // its feed was never read: that brings all
		}
		number = row.Number
		for bucket := range asked {
			err := r.scanBucket(tabHint, bucket, true, func(raw, value []byte) error {
				hint := &rowpb.Hint{}
				if err := proto.Unmarshal(value, hint); err != nil {
					return damaged(prefixDigest(tabHint, raw))
				}
				placed, cached := hasBit(hint.Placed, number), hasBit(hint.Cached, number)
				if !placed && !cached {
					return nil
				}
				state, holds := want[string(raw)]
				delete(want, string(raw))
				if !holds {
					fixes = append(fixes, fix{raw, Gone})
				} else if placed != (state != Cached) {
					fixes = append(fixes, fix{raw, state})
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		for raw, state := range want {
			fixes = append(fixes, fix{[]byte(raw), state})
		}
		return nil
	})
	for err == nil && len(fixes) > 0 {
		part := fixes[:min(len(fixes), feedChunk)]
		fixes = fixes[len(part):]
		err = c.submitAs(ctx, jobReceived, func(b *batch) error {
			for _, f := range part {
				if err := b.setHint(f.raw, number, f.state); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			wrong += len(part)
		}
	}
	return wrong, err
}
