package transfer

import (
	"context"
	"hash/maphash"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// pointReads is how many blobs a scan looks up one by one before it reads all
// rows of blobs at once: a small project must not cost what the store holds, and
// a large one not a point read for each of its blobs.
const pointReads = 20_000

// held says which blobs of a project this store holds for good, to a scan's workers. What comes
// or goes while a scan runs is noticed by those who bring it, and by the store's
// feed.
type held struct {
	cat     *catalog.Catalog
	pid     identity.ProjectID
	workers int
	seed    maphash.Seed // random, so that nobody can make digests that collide
	reads   atomic.Int64
	reading sync.Mutex
	all     atomic.Pointer[hashes] // once there were pointReads
}

func newHeld(cat *catalog.Catalog, pid identity.ProjectID, workers int) *held {
	return &held{cat: cat, pid: pid, workers: workers, seed: maphash.MakeSeed()}
}

// has takes a raw digest.
func (h *held) has(ctx context.Context, raw []byte) (bool, error) {
	all := h.all.Load()
	if all == nil && h.reads.Add(1) <= pointReads {
		class, err := h.cat.HeldAs(h.pid, raw)
		return keeps(class), err
	}
	if all == nil {
		var err error
		if all, err = h.readAll(ctx); err != nil {
			return false, err
		}
	}
	return all.has(maphash.Bytes(h.seed, raw)), nil
}

// readAll reads all rows of blobs, once for all workers.
func (h *held) readAll(ctx context.Context) (*hashes, error) {
	h.reading.Lock()
	defer h.reading.Unlock()
	if all := h.all.Load(); all != nil {
		return all, nil
	}
	var shared []uint64 // with other projects
	err := h.cat.EachProof(h.pid, func(raw []byte) error {
		shared = append(shared, maphash.Bytes(h.seed, raw))
		return nil
	})
	if err != nil {
		return nil, err
	}
	also := newHashes([]*[]uint64{&shared})
	var mu sync.Mutex
	var lists []*[]uint64
	err = h.cat.PassBlobs(ctx, h.workers, func() func([]byte, catalog.Class, identity.ProjectID) error {
		list := new([]uint64)
		mu.Lock()
		lists = append(lists, list)
		mu.Unlock()
		return func(raw []byte, class catalog.Class, of identity.ProjectID) error {
			if !keeps(class) {
				return nil
			}
			if hash := maphash.Bytes(h.seed, raw); of == h.pid || also.has(hash) {
				*list = append(*list, hash)
			}
			return nil
		}
	})
	if err != nil {
		return nil, err
	}
	all := newHashes(lists)
	h.all.Store(all)
	return all, nil
}

// keeps: a cached copy has to be promised before it counts.
func keeps(class catalog.Class) bool { return class == catalog.Home || class == catalog.Placed }

// hashes is a set of numbers that are spread evenly: twelve bytes for each at most.
// They are sorted, and begins says where those with the same leading bits begin:
// as many as there are, so that a look takes one or two lines of memory.
type hashes struct {
	sorted []uint64
	begins []uint32
	shift  int
}

func newHashes(lists []*[]uint64) *hashes {
	n := 0
	for _, l := range lists {
		n += len(*l)
	}
	h := &hashes{sorted: make([]uint64, 0, n)}
	for _, l := range lists {
		h.sorted = append(h.sorted, *l...)
	}
	slices.Sort(h.sorted)
	lead := max(1, bits.Len(uint(n))-1)
	h.shift = 64 - lead
	h.begins = make([]uint32, 1<<lead+1)
	at := 0
	for i := range h.begins {
		for at < n && h.sorted[at]>>h.shift < uint64(i) {
			at++
		}
		h.begins[i] = uint32(at)
	}
	return h
}

func (h *hashes) has(x uint64) bool {
	i := x >> h.shift
	return slices.Contains(h.sorted[h.begins[i]:h.begins[i+1]], x)
}
