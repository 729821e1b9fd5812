package swarm

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"math"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// receiver is a node that takes a blob now.
type receiver struct {
	node  identity.NodeID
	share uint32 // what it can send, in Mbit/s as it measured it; 0: not known
}

// maxShare bounds what a receiver may say of itself: 100 Gbit/s.
const maxShare = 100_000

// stripes gives each of a blob's n units an owner among the receivers: an index
// into all, which is sorted by node. Every receiver computes the same from the
// same list. An owner takes its units from the blob's holder, the others take
// them from the owner.
//
// It is weighted rendezvous, so that one more receiver takes units from all
// others and moves none between them, with bounded loads, so that no prefix of
// the blob has an owner with more than its share and one unit: chance alone
// would give one of eight receivers a quarter more than another.
func stripes(d digest.Digest, n int, all []receiver) []uint8 {
	weights := make([]float64, len(all))
	sum := 0.0
	for i, w := range shares(all) {
		weights[i] = float64(w)
		sum += weights[i]
	}
	seeds := make([]uint64, len(all))
	for i, r := range all {
		seeds[i] = seed(d, r.node)
	}
	owner := make([]uint8, n)
	given := make([]int, len(all))
	for u := range owner {
		best, score := -1, math.Inf(-1)
		for i, w := range weights {
			if float64(given[i]) >= float64(u+1)*w/sum+1 {
				continue
			}
			// In (0, 1), so that the logarithm is finite and below zero.
			x := (float64(mix(seeds[i]+uint64(u))>>11) + 0.5) / (1 << 53)
			if s := w / -math.Log(x); s > score {
				best, score = i, s
			}
		}
		owner[u] = uint8(best) // somebody is always below the bound: the sum of all is u
		given[best]++
	}
	return owner
}

// shares gives each receiver a weight. Who has not measured yet counts as the
// median of those who have.
func shares(all []receiver) []uint32 {
	var known []uint32
	for _, r := range all {
		if r.share > 0 {
			known = append(known, min(r.share, maxShare))
		}
	}
	usual := uint32(1)
	if len(known) > 0 {
		slices.Sort(known)
		usual = known[len(known)/2]
	}
	out := make([]uint32, len(all))
	for i, r := range all {
		if out[i] = min(r.share, maxShare); out[i] == 0 {
			out[i] = usual
		}
	}
	return out
}

func sortReceivers(all []receiver) {
	slices.SortFunc(all, func(a, b receiver) int { return bytes.Compare(a.node[:], b.node[:]) })
}

// seed begins the sequence of a node's scores for a blob's units.
func seed(d digest.Digest, node identity.NodeID) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(d))
	_, _ = h.Write(node[:])
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], h.Sum64())
	_, _ = h.Write(b[:])
	return mix(h.Sum64())
}

// mix spreads a counter over 64 bits (the finalizer of splitmix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// bitmap has a bit for each unit. On the wire unit i is bit i % 8 of byte i / 8.
type bitmap []uint64

func newBitmap(n int) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitmap) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) clear(i int)    { b[i/64] &^= 1 << (i % 64) }

// marshal gives the form on the wire, for n units.
func (b bitmap) marshal(n int) []byte {
	out := make([]byte, 0, 8*len(b))
	for _, w := range b {
		out = binary.LittleEndian.AppendUint64(out, w)
	}
	return out[:(n+7)/8]
}

// parseBitmap reads the form on the wire; false: it is not one of n units.
func parseBitmap(raw []byte, n int) (bitmap, bool) {
	if len(raw) != (n+7)/8 {
		return nil, false
	}
	if extra := n % 8; extra != 0 && raw[len(raw)-1]>>extra != 0 {
		return nil, false
	}
	b := newBitmap(n)
	for i, v := range raw {
		b[i/8] |= uint64(v) << (8 * (i % 8))
	}
	return b, true
}
