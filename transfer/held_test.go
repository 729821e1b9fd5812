package transfer

import (
	"math/rand/v2"
	"testing"
)

// A set of hashes has what was put in, however many there are and whoever found
// them, and nothing else.
func TestHashes(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 1000, 4097} {
		lists := []*[]uint64{new([]uint64), new([]uint64), new([]uint64)}
		in := map[uint64]bool{}
		for i := range n {
			x := rand.Uint64()
			switch i { // the ends of the range
			case 1:
				x = 0
			case 2:
				x = ^uint64(0)
			}
			in[x] = true
			*lists[i%2] = append(*lists[i%2], x)
		}
		h := newHashes(lists)
		for x := range in {
			if !h.has(x) {
				t.Errorf("of %d, %x is not found", n, x)
			}
			if y := x ^ 1; h.has(y) != in[y] {
				t.Errorf("of %d, %x is found, and was never put in", n, y)
			}
		}
		for range 1000 {
			if x := rand.Uint64(); h.has(x) != in[x] {
				t.Errorf("of %d, %x is found, and was never put in", n, x)
			}
		}
	}
}
