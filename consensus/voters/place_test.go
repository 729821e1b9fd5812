package voters

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

const ms = time.Millisecond

// world places servers on a plane: a round trip is a distance.
type world map[raft.ServerID][2]float64

func (w world) trip(a, b raft.ServerID) (time.Duration, bool) {
	p, ok := w[a]
	q, ok2 := w[b]
	dx, dy := p[0]-q[0], p[1]-q[1]
	return time.Duration((dx*dx+dy*dy)*float64(time.Microsecond)) + ms, ok && ok2
}

func (w world) ids() []raft.ServerID {
	var out []raft.ServerID
	for id := range w {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// europe: ams, fra, lon, par and waw are near to one another, sgp, tyo and syd far away.
func europe() Distances {
	near := []raft.ServerID{"ams", "fra", "lon", "par", "waw"}
	return func(a, b raft.ServerID) (time.Duration, bool) {
		switch inA, inB := slices.Contains(near, a), slices.Contains(near, b); {
		case a == "mars" || b == "mars":
			return 0, false // nobody has measured that
		case inA && inB:
			return time.Duration(8+len(near)*slices.Index(near, a)*slices.Index(near, b)) * ms, true
		case inA != inB:
			return 180 * ms, true
		}
		return 90 * ms, true
	}
}

func list(words ...string) []raft.ServerID {
	out := make([]raft.ServerID, len(words))
	for i, w := range words {
		out[i] = raft.ServerID(w)
	}
	return out
}

func TestCostOf(t *testing.T) {
	d := europe()
	for _, c := range []struct {
		set   []raft.ServerID
		worst time.Duration
		sum   time.Duration
		known bool
	}{
		{list("ams"), 0, 0, true},
		{list("ams", "sgp"), 180 * ms, 360 * ms, true},
		{list("ams", "fra", "lon"), 8 * ms, 24 * ms, true},
		{list("ams", "fra", "sgp"), 180 * ms, 196 * ms, true}, // were sgp to lead
		{list("ams", "sgp", "tyo"), 180 * ms, 360 * ms, true},
		{list("sgp", "tyo", "syd"), 90 * ms, 270 * ms, true},
		{list("ams", "fra", "lon", "sgp", "tyo"), 180 * ms, 404 * ms, true}, // two others make a majority
		{list("ams", "mars"), 0, 0, false},
	} {
		got, known := CostOf(c.set, d)
		if known != c.known || got != (Cost{c.worst, c.sum}) {
			t.Errorf("%v: %+v, %v; want %s, %s, %v", c.set, got, known, c.worst, c.sum, c.known)
		}
	}
	if _, ok := CostOf(list("ams"), nil); ok {
		t.Error("a cost without distances")
	}
}

func TestChoose(t *testing.T) {
	d := europe()
	for _, c := range []struct {
		name        string
		fixed, pool []raft.ServerID
		size        int
		want        string
	}{
		{"three of six", nil, list("ams", "fra", "lon", "sgp", "syd", "tyo"), 3, "[ams fra lon]"},
		{"all there are", nil, list("sgp", "ams", "tyo"), 3, "[sgp ams tyo]"},
		{"with one that must be there", list("sgp"), list("ams", "fra", "syd", "tyo"), 3, "[sgp syd tyo]"},
		{"five", nil, list("ams", "fra", "lon", "par", "sgp", "syd", "tyo", "waw"), 5, "[ams fra lon par waw]"},
		{"too few", nil, list("ams", "fra"), 3, "[]"},
		{"more than may be", list("ams", "fra"), nil, 1, "[]"},
		{"one that is not measured is left out", nil, list("mars", "ams", "fra", "lon"), 3, "[ams fra lon]"},
		{"not enough that are measured", nil, list("mars", "ams", "fra"), 3, "[]"},
	} {
		set, cost, ok := Choose(c.fixed, c.pool, c.size, d)
		if fmt.Sprint(set) != c.want || ok != (c.want != "[]") {
			t.Errorf("%s: %v, %v; want %s", c.name, set, ok, c.want)
		}
		if again, _ := CostOf(set, d); ok && again != cost {
			t.Errorf("%s: costs %+v, said %+v", c.name, again, cost)
		}
	}
}

// TestChoose_Properties: in worlds by chance the chosen set has the right size,
// the fixed servers and no server twice, and no exchange of one server makes it
// better, whether all sets were compared or not. Where all were, none is better.
func TestChoose_Properties(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 150 {
		w := world{}
		n := 3 + r.IntN(10)
		if r.IntN(15) == 0 {
			n = 30 + r.IntN(35) // too many to compare all sets of five
		}
		for i := range n {
			w[raft.ServerID(fmt.Sprintf("s%02d", i))] = [2]float64{r.Float64() * 300, r.Float64() * 300}
		}
		size := 3
		if n >= 5 && r.IntN(2) == 0 {
			size = 5
		}
		ids := w.ids()
		fixed, pool := ids[:r.IntN(size)], []raft.ServerID(nil)
		pool = append(pool, ids[len(fixed):]...)
		set, cost, ok := Choose(fixed, pool, size, w.trip)
		if !ok || len(set) != size || !slices.Equal(set[:len(fixed)], fixed) {
			t.Fatalf("%d of %d with %v: %v, %v", size, n, fixed, set, ok)
		}
		sorted := slices.Clone(set)
		slices.Sort(sorted)
		if len(slices.Compact(sorted)) != size {
			t.Fatalf("a server twice: %v", set)
		}
		for i := len(fixed); i < size; i++ {
			for _, c := range pool {
				other := slices.Clone(set)
				other[i] = c
				if o, known := CostOf(other, w.trip); known && !slices.Contains(set, c) && o.less(cost) {
					t.Fatalf("%v costs %+v, and %+v with %s", set, cost, o, c)
				}
			}
		}
		again, _, _ := Choose(fixed, pool, size, w.trip)
		if !slices.Equal(again, set) {
			t.Fatalf("%v, then %v", set, again)
		}
		if combinations(len(pool), size-len(fixed)) <= exhaustive {
			g := search{d: w.trip, fixed: fixed, pool: pool, size: size}
			g.grow()
			g.exchange()
			if g.cost.less(cost) {
				t.Fatalf("%v costs %+v; %v less, %+v", set, cost, g.best, g.cost)
			}
		}
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, c := range []struct{ sites, size int }{{20, 3}, {64, 3}, {20, 5}, {64, 5}} {
		w := world{}
		for i := range c.sites {
			w[raft.ServerID(fmt.Sprintf("s%02d", i))] = [2]float64{float64(i * 37 % 101), float64(i * 53 % 97)}
		}
		ids := w.ids()
		b.Run(fmt.Sprintf("%d of %d", c.size, c.sites), func(b *testing.B) {
			for b.Loop() {
				Choose(nil, ids, c.size, w.trip)
			}
		})
	}
}
