package swarm

import (
	"fmt"
	"testing"
	"time"
)

func TestSchedule_AgainstTheBound(t *testing.T) {
	const rtt = 80 * time.Millisecond
	layers := []int{115, 67, 39, 24, 12, 8, 3, 2} // of 280 MB
	slow := append(same(4, 100), 10)              // the last receiver
	for _, c := range []struct {
		name   string
		units  []int // of each blob
		ups    []float64
		bend   func(*sim)
		count  func(*sim) []*simNode // whose time counts; nil: all
		within float64               // of the bound
		copies float64
	}{
		{name: "four receivers at 100 Mbit/s", units: []int{280}, ups: same(5, 100), within: 1.1, copies: 1.05},
		{name: "eight receivers at 40 Mbit/s", units: []int{280}, ups: same(9, 40), within: 1.1, copies: 1.05},
		{name: "two receivers", units: []int{280}, ups: same(3, 100), within: 1.25, copies: 1.15},
		{name: "sixteen receivers", units: []int{96}, ups: same(17, 40), within: 1.25, copies: 1.15},
		{name: "one alone", units: []int{280}, ups: same(2, 100), within: 1.05, copies: 1},
		{name: "a large blob", units: []int{1100}, ups: same(5, 400), within: 1.1, copies: 1.05},
		{name: "a small blob", units: []int{16}, ups: same(5, 100), within: 2, copies: 1.15},
		{name: "an image for four receivers", units: layers, ups: same(5, 100), within: 1.15, copies: 1.1},
		{name: "an image for eight receivers", units: layers, ups: same(9, 40), within: 1.15, copies: 1.1},
		{name: "a fast holder", units: []int{280}, ups: append([]float64{400}, same(4, 100)...), within: 1.25, copies: 2.2},
		{
			name: "one receiver at a tenth of the rate", units: []int{280}, ups: slow, within: 1.4, copies: 1.4,
			count: func(s *sim) []*simNode { return s.nodes[1:4] },
		},
		{
			name: "one receiver that sends at a tenth of the rate, and says so", units: []int{280}, ups: slow, within: 1.4, copies: 1.4,
			bend: func(s *sim) {
				s.nodes[4].down = 100 * mbit
				for _, n := range s.nodes[1:] {
					n.shares(100)
				}
				s.nodes[4].shares(10)
			},
			count: func(s *sim) []*simNode { return s.nodes[1:4] },
		},
		{
			name: "a receiver dies midway", units: []int{280}, ups: same(5, 100), within: 1.4, copies: 1.3,
			bend: func(s *sim) {
				s.after(10*time.Second, func() {
					s.nodes[2].dead, s.stale = true, true
					s.after(time.Second, func() { // its connection ends
						src := s.nodes[0]
						delete(src.blobs[0].crowd.watchers, s.nodes[2].id)
						src.blobs[0].crowd.unclaim(s.nodes[2].id)
						src.tellMembers(0)
					})
				})
			},
		},
		{
			name: "a receiver hangs midway", units: []int{280}, ups: same(5, 100), within: 1.5, copies: 1.3,
			bend: func(s *sim) { s.after(10*time.Second, func() { s.nodes[2].deaf, s.stale = true, true }) },
		},
		{
			name: "a receiver lies", units: []int{280}, ups: same(5, 100), within: 1.5, copies: 1.5,
			bend: func(s *sim) { s.nodes[3].lies = true },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(t, c.units, rtt, c.ups...)
			if c.bend != nil {
				c.bend(s)
			}
			s.run()
			nodes := s.nodes[1:]
			if c.count != nil {
				nodes = c.count(s)
			}
			took, copies := s.took(nodes)
			ratio := took.Seconds() / s.bound(nodes).Seconds()
			came := 0
			for _, n := range nodes {
				came += n.came
			}
			t.Logf("took %s, %.2f of the bound; the holder sent %.2f copies, %.2f came", took.Round(time.Millisecond), ratio, copies, float64(came)/float64(len(nodes)*s.units()))
			for _, n := range nodes {
				if !n.dead && !n.deaf && n.done.IsZero() {
					t.Errorf("node %d is not done", n.i)
				}
			}
			if ratio > c.within {
				t.Errorf("%.2f of the bound, want at most %.2f", ratio, c.within)
			}
			if copies > c.copies {
				t.Errorf("the holder sent %.2f copies, want at most %.2f", copies, c.copies)
			}
			// The same again, step by step.
			again := newSim(t, c.units, rtt, c.ups...)
			if c.bend != nil {
				c.bend(again)
			}
			again.run()
			if a, b := fmt.Sprint(took, copies), fmt.Sprint(again.took(again.nodes[1:len(nodes)+1])); c.count == nil && a != fmt.Sprint(b) {
				t.Errorf("another run took %s, not %s", b, a)
			}
		})
	}
}
