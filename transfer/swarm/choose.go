package swarm

import (
	"math/bits"
	"time"
)

// How the schedule chooses what a peer is asked for next.

func (s *schedule) choose(p *supplier, room int, now time.Time, readers []int) (order, bool) {
	if !p.whole {
		if i, ok := s.waited(p, readers); ok {
			return order{first: i, n: 1}, true
		}
		if i, ok := s.rarest(p); ok {
			return order{first: i, n: 1}, true
		}
		return s.endgame(p, now, readers)
	}
	if i, ok := s.waited(p, readers); ok {
		return order{first: i, n: s.run(p, i, room)}, true
	}
	if s.owner == nil {
		if i, ok := s.inOrder(p, readers); ok {
			o := order{first: i, n: s.run(p, i, room), unlessGiven: always}
			if len(readers) > 0 {
				o.unlessGiven = 0
			}
			return o, true
		}
	}
	if o, ok := s.stripe(now); ok {
		return o, true
	}
	return s.endgame(p, now, readers)
}

func (s *schedule) missing(p *supplier, i int) bool {
	return s.within(i) && !s.have.has(i) && !s.air.has(i) && (p.whole || p.has.has(i))
}

// run is how many units from i on can be asked for at once.
func (s *schedule) run(p *supplier, i, room int) int {
	n := 1
	for n < room && i+n < s.n && s.missing(p, i+n) && !s.taken.has(i+n) {
		n++
	}
	return n
}

// waited gives the first unit that a reader waits for or will soon.
func (s *schedule) waited(p *supplier, readers []int) (int, bool) {
	for _, at := range readers {
		for i := at; i < min(at+readAhead, s.n); i++ {
			if s.missing(p, i) {
				return i, true
			}
		}
	}
	return 0, false
}

// inOrder gives the first unit from the first reader on, else from the start,
// that was not given to a receiver of which this node has not heard yet.
func (s *schedule) inOrder(p *supplier, readers []int) (int, bool) {
	from := 0
	if len(readers) > 0 {
		from = readers[0]
	}
	for _, span := range [][2]int{{from, s.n}, {0, from}} {
		for i := span[0]; i < span[1]; i++ {
			if s.missing(p, i) && !s.taken.has(i) {
				return i, true
			}
		}
	}
	return 0, false
}

// ahead calls f with the missing units that nothing was asked for, up to the
// horizon, until it returns false.
func (s *schedule) ahead(f func(i int) bool) {
	seen := 0
	for w := range s.have {
		for todo := s.open(w) &^ (s.have[w] | s.air[w]); todo != 0; todo &= todo - 1 {
			if !f(w*64 + bits.TrailingZeros64(todo)) {
				return
			}
		}
		if seen += 64 - bits.OnesCount64(s.have[w]); seen >= horizon {
			return
		}
	}
}

// rarest gives the unit of a receiver that the fewest others have. Among equals
// each node goes by an order of its own, so that the receivers of a blob take
// different units from one another, and then have something to swap.
func (s *schedule) rarest(p *supplier) (int, bool) {
	best, few, score := -1, uint8(0), uint64(0)
	s.ahead(func(i int) bool {
		if !p.has.has(i) {
			return true
		}
		if x := mix(s.turn + uint64(i)); best < 0 || s.spread[i] < few || s.spread[i] == few && x < score {
			best, few, score = i, s.spread[i], x
		}
		return true
	})
	return best, best >= 0
}

// stripe gives what a holder is to be asked for while others receive the blob as
// well: a unit that this node owns, else one that nobody was given, else one that
// the others did not bring in time.
func (s *schedule) stripe(now time.Time) (order, bool) {
	const nothing = -1
	own, free, late := nothing, nothing, nothing
	var freeScore uint64
	patience := s.patience()
	s.ahead(func(i int) bool {
		left := s.taken.has(i) || s.spread[i] > 0
		mine := s.owner == nil || s.owner[i] == s.me
		// Who can send much less than a unit's owner leaves it to the owner.
		weak := !mine && 2*s.weights[s.me] < s.weights[s.owner[i]]
		switch {
		case !left && mine:
			own = i
			return false
		case !left && !weak:
			if x := mix(s.turn + uint64(i)); free == nothing || x < freeScore {
				free, freeScore = i, x
			}
			return true
		}
		if s.since[i] == 0 {
			s.since[i] = now.UnixNano()
		} else if late == nothing && now.UnixNano()-s.since[i] >= int64(patience) {
			late = i
		}
		return true
	})
	switch {
	case own != nothing:
		return order{first: own, n: 1, unlessGiven: always}, true
	case free != nothing:
		return order{first: free, n: 1, unlessGiven: always}, true
	case late != nothing:
		return order{first: late, n: 1, unlessGiven: patience}, true
	}
	return order{}, false
}

// endgame asks for a unit a second time that has been on its way for long, when
// there is nothing else that a peer could send, of this blob, or, if no client waits,
// of others: both will come, as nobody can take back what is in a sender's queue.
func (s *schedule) endgame(p *supplier, now time.Time, readers []int) (order, bool) {
	if s.double >= maxDoubles || p.busy && len(readers) == 0 {
		return order{}, false
	}
	best, at := -1, now
	for i, fs := range s.flying {
		if !s.within(i) || s.have.has(i) || len(fs) != 1 || fs[0].from == p.node || !p.whole && !p.has.has(i) {
			continue
		}
		slow := endgameMin
		if o := s.peers[fs[0].from]; o != nil {
			slow = max(slow, takeoverPace*o.pace)
		}
		if now.Sub(fs[0].at) < slow {
			continue
		}
		if fs[0].at.Before(at) || best >= 0 && fs[0].at.Equal(at) && i < best {
			best, at = i, fs[0].at
		}
	}
	if best < 0 {
		return order{}, false
	}
	o := order{first: best, n: 1}
	if p.whole && s.owner != nil {
		o.unlessGiven = s.patience()
	}
	return o, true
}
