package swarm

import (
	"math"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

const (
	// horizon is how many missing units the schedule looks at, from the first one
	// on: what a choice costs does not grow with the blob, and what all receivers
	// of a blob are at stays close together.
	horizon = 1024
	// readAhead is how many units from a reader's position on are asked for as if
	// nobody else received the blob: a client that waits comes before what the
	// source's uplink costs.
	readAhead = 8
	// takeoverMin is how long a unit that another receiver was given, or has, may
	// be waited for before a holder is asked for it again: two round trips of the
	// longest link and a unit over 10 Mbit/s. It grows with the time that units
	// take (takeoverPace times).
	takeoverMin  = 2 * time.Second
	takeoverPace = 3
	// endgameMin is how long a unit may be on its way from one peer before another
	// is asked for it as well, maxDoubles how many units at a time: the last ones
	// of a blob must not wait for the slowest peer.
	endgameMin = time.Second
	maxDoubles = 4
	// always is unlessGiven for units that nobody else was ever given.
	always = time.Duration(math.MaxUint32) * time.Millisecond
)

// supplier is a peer that has units of the blob.
type supplier struct {
	node  identity.NodeID
	whole bool          // a holder; otherwise it is receiving the blob itself
	has   bitmap        // of a receiver
	pace  time.Duration // that its units take from the request on; 0: not known
	busy  bool          // other blobs wait for its room
}

// flown is a unit that was asked for.
type flown struct {
	from identity.NodeID
	at   time.Time
}

// order is what a peer is to be asked for: units [first, first+n).
type order struct {
	first, n    int
	unlessGiven time.Duration // see Request.unless_given_ms
	record      bool          // and for the record
	trial       bool          // to see whether its list and bytes fit each other
	subs        bool          // and for the sub-states of the first unit
	class       class         // what it is for
	doubt       bool          // nothing is asked for: see Request.doubt
}

// schedule decides which units of one blob to ask which peer for. It does
// nothing itself and reads no clock; its owner locks it.
//
// Alone, a receiver takes units in order, from whichever peer has room. Several
// receivers of one blob share the load of its holders: a holder is first asked
// for the units that this receiver owns (see stripes), then for units that
// nobody was given yet; the holder leaves out what another receiver has asked
// for. Everything else comes from other receivers, the rarest unit first, and
// from the holder only after they had time to send it.
type schedule struct {
	digest digest.Digest
	self   receiver
	n      int
	have   bitmap
	left   int // units not in have
	from   int // of a blob that passes through: only units [from, until) are asked for, see window
	until  int

	others  []receiver // that receive the blob now
	owner   []uint8    // of each unit, in all; nil: nobody but us
	all     []receiver // others and self, sorted
	weights []uint32   // of all, see shares
	me      uint8      // self in all
	turn    uint64     // seed of this node's own order among equal units

	peers  map[identity.NodeID]*supplier
	spread []uint8         // receivers that have the unit, as far as they fit
	taken  bitmap          // a holder said that another receiver was given it
	since  []int64         // when a unit was first left to others, Unix ns; 0: not yet
	flying map[int][]flown // asked for and not here
	air    bitmap          // the keys of flying
	double int             // units asked for twice
}

func newSchedule(d digest.Digest, self receiver, n int) *schedule {
	return &schedule{
		digest: d, self: self, n: n, have: newBitmap(n), left: n, until: n, turn: seed(d, self.node),
		peers: map[identity.NodeID]*supplier{}, spread: make([]uint8, n), taken: newBitmap(n),
		since: make([]int64, n), flying: map[int][]flown{}, air: newBitmap(n),
	}
}

// holder says that a peer has the whole blob.
func (s *schedule) holder(node identity.NodeID) {
	s.leave(node)
	s.peers[node] = &supplier{node: node, whole: true}
}

// partial says which units a peer has that receives the blob itself, in place of
// all that was said before.
func (s *schedule) partial(node identity.NodeID, has bitmap) {
	s.leave(node)
	s.peers[node] = &supplier{node: node, has: has}
	for i := range s.n {
		if has.has(i) {
			s.count(i, 1)
		}
	}
}

// gained says which units a receiver got since. False: there is no such unit. Of
// a peer of which nothing is known, or all, it changes nothing.
func (s *schedule) gained(node identity.NodeID, units []uint32) bool {
	if slices.ContainsFunc(units, func(u uint32) bool { return int64(u) >= int64(s.n) }) {
		return false
	}
	p := s.peers[node]
	if p == nil || p.whole {
		return true
	}
	for _, u := range units {
		if i := int(u); !p.has.has(i) {
			p.has.set(i)
			s.count(i, 1)
		}
	}
	return true
}

func (s *schedule) count(i, by int) {
	s.spread[i] = uint8(min(255, max(0, int(s.spread[i])+by)))
}

// leave forgets what a peer has. What was asked of it can be asked elsewhere.
func (s *schedule) leave(node identity.NodeID) {
	if p := s.peers[node]; p != nil && !p.whole {
		for i := range s.n {
			if p.has.has(i) {
				s.count(i, -1)
			}
		}
	}
	delete(s.peers, node)
}

// lost puts back what was asked of a peer and has not come.
func (s *schedule) lost(node identity.NodeID) {
	for i := range s.flying {
		s.landed(i, node)
	}
}

// receivers says who else receives the blob, as far as this node has heard.
func (s *schedule) receivers(others []receiver) {
	sortReceivers(others)
	if slices.Equal(others, s.others) {
		return
	}
	gone := slices.ContainsFunc(s.others, func(o receiver) bool {
		return !slices.ContainsFunc(others, func(n receiver) bool { return n.node == o.node })
	})
	s.others = others
	s.owner, s.all, s.weights = nil, nil, nil
	if len(others) > 0 {
		s.all = append(slices.Clone(others), s.self)
		sortReceivers(s.all)
		s.owner = stripes(s.digest, s.n, s.all)
		s.weights = shares(s.all)
		s.me = uint8(slices.Index(s.all, s.self))
	}
	if gone {
		// What it was given goes to whoever asks next: the holder knows, too.
		for i := range s.n {
			if s.spread[i] == 0 {
				s.taken.clear(i)
			}
		}
	}
}

// within says whether a unit may be asked for.
func (s *schedule) within(i int) bool { return s.from <= i && i < s.until }

// open gives the units of word w of a bitmap that may be asked for.
func (s *schedule) open(w int) uint64 {
	before, end := max(0, s.from-64*w), min(64, s.until-64*w)
	if before >= end {
		return 0
	}
	return ^uint64(0) >> (64 - end) &^ (1<<before - 1)
}

// useful says whether a peer has something that is missing here and may be asked for.
func (s *schedule) useful(node identity.NodeID) bool {
	p := s.peers[node]
	if p == nil || s.left == 0 {
		return false
	}
	for w := range s.have {
		left := s.open(w) &^ s.have[w]
		if !p.whole {
			left &= p.has[w]
		}
		if left != 0 {
			return true
		}
	}
	return false
}

// fresh says whether a peer has something that is missing here and was asked of
// nobody, nor given to another receiver.
func (s *schedule) fresh(node identity.NodeID) bool {
	p := s.peers[node]
	if p == nil {
		return false
	}
	for w := range s.have {
		left := s.open(w) &^ (s.have[w] | s.air[w])
		if p.whole {
			left &^= s.taken[w]
		} else {
			left &= p.has[w]
		}
		if left != 0 {
			return true
		}
	}
	return false
}

// wanted says whether other blobs wait for a peer's room, to ask for what was asked
// of nobody.
func (s *schedule) wanted(node identity.NodeID, busy bool) {
	if p := s.peers[node]; p != nil {
		p.busy = busy
	}
}

// paced says how long units of a peer take now, of whatever blob.
func (s *schedule) paced(node identity.NodeID, d time.Duration) {
	if p := s.peers[node]; p != nil {
		p.pace = d
	}
}

// got notes that unit i is here and checked.
func (s *schedule) got(i int, from identity.NodeID) {
	s.landed(i, from)
	if !s.have.has(i) {
		s.have.set(i)
		s.left--
	}
	s.since[i] = 0
}

// landed notes that a unit is not on its way from a peer any more: it came, or
// does not come.
func (s *schedule) landed(i int, from identity.NodeID) {
	fs := s.flying[i]
	before := len(fs)
	fs = slices.DeleteFunc(fs, func(f flown) bool { return f.from == from })
	if before > 1 && len(fs) <= 1 {
		s.double--
	}
	if len(fs) == 0 {
		delete(s.flying, i)
		s.air.clear(i)
	} else {
		s.flying[i] = fs
	}
}

// refused notes that a holder has given unit i to another receiver.
func (s *schedule) refused(i int, from identity.NodeID, now time.Time) {
	s.landed(i, from)
	s.taken.set(i)
	s.since[i] = now.UnixNano()
}

// asked notes a unit that was asked for without the schedule.
func (s *schedule) asked(i int, from identity.NodeID, now time.Time) {
	s.flying[i] = append(s.flying[i], flown{from: from, at: now})
	s.air.set(i)
	if len(s.flying[i]) == 2 {
		s.double++
	}
}

// lacks notes that a peer does not have units [first, end) after all.
func (s *schedule) lacks(node identity.NodeID, first, end int) {
	p := s.peers[node]
	switch {
	case p == nil:
	case p.whole:
		s.partial(node, newBitmap(s.n)) // until it says what it has
	default:
		for i := first; i < end; i++ {
			if p.has.has(i) {
				p.has.clear(i)
				s.count(i, -1)
			}
		}
	}
}

// elsewhere says whether a unit can be had from another peer.
func (s *schedule) elsewhere(i int, but identity.NodeID) bool {
	for node, p := range s.peers {
		if node != but && (p.whole || p.has.has(i)) {
			return true
		}
	}
	return false
}

// first gives the units that are to be asked for together with the question
// whether a holder is there; they are not noted.
func (s *schedule) first(most int, readers []int) order {
	p := &supplier{whole: true}
	i, ok := s.waited(p, readers)
	if !ok {
		i, ok = s.inOrder(p, readers)
	}
	if !ok {
		return order{}
	}
	return order{first: i, n: s.run(p, i, most)}
}

// miss notes that a unit is not here any more: a window let go of it.
func (s *schedule) miss(i int) {
	if s.have.has(i) {
		s.have.clear(i)
		s.left++
	}
}

// patience is how long units are left to other receivers: they come from a
// holder and then from a receiver, of which the median counts, so that a slow one
// is not waited for.
func (s *schedule) patience() time.Duration {
	var holder time.Duration
	var others []time.Duration
	for _, p := range s.peers {
		switch {
		case p.whole:
			holder = max(holder, p.pace)
		case p.pace > 0:
			others = append(others, p.pace)
		}
	}
	other := time.Duration(0)
	if len(others) > 0 {
		slices.Sort(others)
		other = others[(len(others)-1)/2]
	}
	return max(takeoverMin, takeoverPace*(holder+other)/2)
}

// next chooses what to ask a peer for, at most room units, and notes it as on
// its way. readers are the units that clients stand in, sorted. False: nothing
// now; with the time, that may change.
func (s *schedule) next(node identity.NodeID, room int, now time.Time, readers []int) (order, bool) {
	p := s.peers[node]
	if p == nil || room <= 0 || s.left == 0 {
		return order{}, false
	}
	o, ok := s.choose(p, min(room, maxRun), now, readers)
	if !ok {
		return o, false
	}
	for i := o.first; i < o.first+o.n; i++ {
		s.asked(i, node, now)
	}
	return o, true
}
