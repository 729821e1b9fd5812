package catalog

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// feedChunk bounds the entries of a peer's feed that one transaction takes.
const feedChunk = 2000

// maxStores bounds the bitmaps of holder hints. Version 1 has one store per
// site; a mesh has far fewer sites than this even over its whole life.
const maxStores = 1 << 14

// addFeed appends a change to this store's feed. A digest has one row: the
// latest, so the feed is no longer than the number of digests ever held.
func (b *batch) addFeed(raw []byte, state Class) error {
	pos := prefixDigest(tabFeedPos, raw)
	old, err := b.get(pos)
	if err != nil {
		return err
	}
	if len(old) == 8 {
		b.del(keyFeed(binary.BigEndian.Uint64(old)))
	}
	if err := b.beginEpoch(); err != nil {
		return err
	}
	b.c.feedN++
	b.set(pos, binary.BigEndian.AppendUint64(nil, b.c.feedN))
	b.feed = true
	return b.setMessage(keyFeed(b.c.feedN), &rowpb.FeedRow{Digest: raw, State: uint32(state)})
}

// lastFeed finds the number of the newest feed row.
func (r reader) lastFeed() (uint64, error) {
	opts := badger.DefaultIteratorOptions
	opts.Prefix, opts.PrefetchValues, opts.Reverse = []byte{tabFeed}, false, true
	it := r.txn.NewIterator(opts)
	defer it.Close()
	it.Seek(keyFeed(^uint64(0)))
	if !it.ValidForPrefix([]byte{tabFeed}) {
		return 0, nil
	}
	n, ok := parseFeed(it.Item().Key())
	if !ok {
		return 0, damaged(it.Item().KeyCopy(nil))
	}
	return n, nil
}

// Feed gives up to n changes of what this store holds, from the first behind
// after, oldest first.
func (c *Catalog) Feed(after uint64, n int) ([]FeedEntry, error) {
	var out []FeedEntry
	err := c.view(func(r reader) (err error) { out, err = r.feed(after, n); return err })
	return out, err
}

func (r reader) feed(after uint64, n int) ([]FeedEntry, error) {
	var out []FeedEntry
	if n = bound(n); n == 0 || after == ^uint64(0) {
		return out, nil
	}
	err := r.scan([]byte{tabFeed}, keyFeed(after+1), true, func(key, value []byte) (bool, error) {
		num, ok := parseFeed(key)
		pb := &rowpb.FeedRow{}
		if err := proto.Unmarshal(value, pb); err != nil || !ok {
			return false, damaged(key)
		}
		out = append(out, FeedEntry{N: num, Digest: digestOrEmpty(pb.Digest), State: Class(pb.State)})
		return len(out) < n, nil
	})
	return out, err
}

// ApplyFeed notes what another store said it holds, and then how far its feed
// was read. Hints only choose whom to ask.
func (c *Catalog) ApplyFeed(ctx context.Context, store identity.StoreID, entries []FeedEntry, cursor FeedCursor) error {
	raws := make([][]byte, len(entries))
	for i, e := range entries {
		var err error
		if raws[i], err = rawDigest(e.Digest); err != nil {
			return err
		}
	}
	for {
		n := min(len(entries), feedChunk)
		last := n == len(entries)
		err := c.submitAs(ctx, jobReceived, func(b *batch) error { return b.applyFeed(store, entries[:n], raws[:n], cursor, last) })
		if err != nil {
			return fmt.Errorf("catalog: feed of store %s: %w", store, err)
		}
		if last {
			return nil
		}
		entries, raws = entries[n:], raws[n:]
	}
}

func (b *batch) applyFeed(store identity.StoreID, entries []FeedEntry, raws [][]byte, cursor FeedCursor, last bool) error {
	row := &rowpb.StoreRow{}
	found, err := b.message(keyStore(store), row)
	if err != nil {
		return err
	}
	if !found {
		if row.Number, err = b.newStoreNumber(); err != nil {
			return err
		}
		b.stores = true
	}
	for i, e := range entries {
		if err := b.setHint(raws[i], row.Number, e.State); err != nil {
			return err
		}
	}
	if last {
		row.Cursor, row.Epoch = cursor.N, cursor.Epoch
	}
	return b.setMessage(keyStore(store), row)
}

// setHint notes that the store of a number holds a blob so.
func (b *batch) setHint(raw []byte, number uint32, state Class) error {
	key, hint := prefixDigest(tabHint, raw), &rowpb.Hint{}
	if _, err := b.message(key, hint); err != nil {
		return err
	}
	hint.Placed = setBit(hint.Placed, number, state == Home || state == Placed)
	hint.Cached = setBit(hint.Cached, number, state == Cached)
	if len(hint.Placed) == 0 && len(hint.Cached) == 0 {
		b.del(key)
		return nil
	}
	return b.setMessage(key, hint)
}

// newStoreNumber gives the next number. Numbers are never given again: the bits
// of a store that was dropped mean nothing from then on, without a scan.
func (b *batch) newStoreNumber() (uint32, error) {
	v, err := b.get(keyMeta(metaStores))
	if err != nil {
		return 0, err
	}
	var n uint32
	if len(v) == 4 {
		n = binary.BigEndian.Uint32(v)
	}
	if n >= maxStores {
		return 0, fmt.Errorf("%w: more than %d stores were seen", ErrTooLarge, maxStores)
	}
	b.set(keyMeta(metaStores), binary.BigEndian.AppendUint32(nil, n+1))
	return n, nil
}

// setBit sets or clears a bit; a map without bits has no bytes.
func setBit(bits []byte, n uint32, on bool) []byte {
	i := int(n / 8)
	if on {
		for len(bits) <= i {
			bits = append(bits, 0)
		}
		bits[i] |= 1 << (n % 8)
		return bits
	}
	if i < len(bits) {
		bits[i] &^= 1 << (n % 8)
	}
	for len(bits) > 0 && bits[len(bits)-1] == 0 {
		bits = bits[:len(bits)-1]
	}
	return bits
}

func hasBit(bits []byte, n uint32) bool {
	return int(n/8) < len(bits) && bits[n/8]&(1<<(n%8)) != 0
}

// FeedCursor gives how far another store's feed was read; zero if never.
func (c *Catalog) FeedCursor(store identity.StoreID) (FeedCursor, error) {
	row := &rowpb.StoreRow{}
	err := c.view(func(r reader) error {
		_, err := r.message(keyStore(store), row)
		return err
	})
	return FeedCursor{row.Epoch, row.Cursor}, err
}

// Holders gives the other stores that said they hold a blob: those responsible
// for it first, then those that cache it.
func (c *Catalog) Holders(d digest.Digest) ([]identity.StoreID, error) {
	raw, err := rawDigest(d)
	if err != nil {
		return nil, err
	}
	var placed, cached []identity.StoreID
	gen := c.storesGen.Load() // before the snapshot
	err = c.view(func(r reader) error {
		hint := &rowpb.Hint{}
		if ok, err := r.message(prefixDigest(tabHint, raw), hint); err != nil || !ok {
			return err
		}
		stores, err := c.stores(r, gen)
		for _, s := range stores {
			switch {
			case hasBit(hint.Placed, s.number):
				placed = append(placed, s.id)
			case hasBit(hint.Cached, s.number):
				cached = append(cached, s.id)
			}
		}
		return err
	})
	return append(placed, cached...), err
}

// DropStore forgets all that a store said it holds.
func (c *Catalog) DropStore(ctx context.Context, store identity.StoreID) error {
	return c.submitAs(ctx, jobFreeing, func(b *batch) error { b.stores = true; b.del(keyStore(store)); return nil })
}
