package voters

import (
	"cmp"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Distances gives the usual round trip between two servers; false: not known.
// It must be the same in both directions.
type Distances func(a, b raft.ServerID) (time.Duration, bool)

// Cost is what edits wait for when these servers vote. A leader waits for the
// nearest others that make a majority with it; any voter may come to lead.
type Cost struct {
	Worst time.Duration // of all voters, the longest round trip to a majority
	Sum   time.Duration // of the round trips of all voters
}

func (c Cost) less(d Cost) bool {
	return cmp.Or(cmp.Compare(c.Worst, d.Worst), cmp.Compare(c.Sum, d.Sum)) < 0
}

// CostOf gives the cost of a set of voters; false: a distance is not known.
func CostOf(set []raft.ServerID, d Distances) (Cost, bool) {
	var c Cost
	if d == nil {
		return c, false
	}
	trips := make([]time.Duration, 0, Most)
	for _, from := range set {
		trips = trips[:0]
		for _, to := range set {
			if from == to {
				continue
			}
			trip, ok := d(from, to)
			if !ok {
				return Cost{}, false
			}
			trips = append(trips, trip)
		}
		slices.Sort(trips)
		if others := len(set) / 2; others > 0 {
			c.Worst = max(c.Worst, trips[others-1])
			c.Sum += trips[others-1]
		}
	}
	return c, true
}

// exhaustive is how many sets are compared one by one, at most: three of 64
// sites are 41,664, five of 20 are 15,504. It takes milliseconds.
const exhaustive = 50_000

// Choose gives the set of size servers that costs least: all of fixed, and the
// rest from pool. The first of equals wins, so that who asks in the same order
// gets the same answer. false: there are too few, or a distance is not known.
//
// Up to a number of combinations all are compared: three of 64 sites, five of
// 20. Beyond it each server in turn is the first of a set that grows by the one
// that costs least, and the best of those sets is improved by exchanges of one
// server until none improves it: not always the best of all, and never one that
// a single exchange would better.
func Choose(fixed, pool []raft.ServerID, size int, d Distances) ([]raft.ServerID, Cost, bool) {
	free := size - len(fixed)
	if free < 0 || free > len(pool) || d == nil {
		return nil, Cost{}, false
	}
	s := search{d: d, fixed: fixed, pool: pool, size: size}
	if combinations(len(pool), free) <= exhaustive {
		s.all(0, slices.Clone(fixed))
	} else {
		s.grow()
		s.exchange()
	}
	return s.best, s.cost, s.best != nil
}

// combinations is n over k, as far as it matters.
func combinations(n, k int) int {
	c := 1
	for i := range k {
		if c = c * (n - i) / (i + 1); c > exhaustive {
			return c
		}
	}
	return c
}

type search struct {
	d           Distances
	fixed, pool []raft.ServerID
	size        int

	best []raft.ServerID
	cost Cost
}

// see keeps a set that is better than the best so far.
func (s *search) see(set []raft.ServerID) bool {
	c, ok := CostOf(set, s.d)
	if !ok || s.best != nil && !c.less(s.cost) {
		return false
	}
	s.best, s.cost = slices.Clone(set), c
	return true
}

// all compares every set that has the given one and more from pool[from:].
func (s *search) all(from int, set []raft.ServerID) {
	if len(set) == s.size {
		s.see(set)
		return
	}
	for i := from; i <= len(s.pool)-(s.size-len(set)); i++ {
		s.all(i+1, append(set, s.pool[i]))
	}
}

func (s *search) grow() {
	for _, first := range s.pool {
		set := append(slices.Clone(s.fixed), first)
		for len(set) < s.size {
			var next raft.ServerID
			var least Cost
			found := false
			for _, c := range s.pool {
				if slices.Contains(set, c) {
					continue
				}
				cost, ok := CostOf(append(slices.Clone(set), c), s.d)
				if ok && (!found || cost.less(least)) {
					next, least, found = c, cost, true
				}
			}
			if !found {
				break
			}
			set = append(set, next)
		}
		if len(set) == s.size {
			s.see(set)
		}
	}
}

// exchange ends: each round makes the set strictly better.
func (s *search) exchange() {
	for better := s.best != nil; better; {
		better = false
		for i := len(s.fixed); i < s.size; i++ {
			for _, c := range s.pool {
				if slices.Contains(s.best, c) {
					continue
				}
				set := slices.Clone(s.best)
				set[i] = c
				better = s.see(set) || better
			}
		}
	}
}
