package swarm

import (
	"math"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/places"
)

const (
	// maxActive bounds the blobs on their way that nobody waits for; further ones stand
	// in line. aboveActive of the places are for what outranks what has the others.
	maxActive   = 64
	aboveActive = 4
)

// purpose is what the flight is for at the moment.
func (f *flight) purpose() class {
	switch {
	case f.reading.Load() > 0:
		return classClient
	case f.hurries.Load() > 0:
		return classHurried
	}
	return classReplication
}

// rank is where the flight stands among those of a class. Clients go by age alone.
func (f *flight) rank(c class) rank {
	if c == classClient {
		return rank{since: f.since}
	}
	return rank{f.standsAt(), f.since}
}

// standsAt is the order of the flight.
func (f *flight) standsAt() places.Order {
	if o := f.order.Load(); o != nil {
		return *o
	}
	return places.Order{} // nobody has said
}

// need is that of the flight for a stream to a node.
func (f *flight) need(node identity.NodeID) need {
	return need{
		at: func() (class, rank, <-chan struct{}) {
			changed := *f.aimed.Load() // first: what changes from here on closes it
			c := f.purpose()
			return c, f.rank(c), changed
		},
		// Who stands behind others' blobs waits for them: as long as those come, that
		// is no silence.
		stands: func() {
			if f.s.sessions.heardWithin(node, f.s.cfg.Stall) {
				f.moved.Store(time.Now().UnixNano())
			}
		},
	}
}

// reaim tells those that stand in line for a stream that what it is for, or its order,
// may have changed.
func (f *flight) reaim() {
	next := make(chan struct{})
	close(*f.aimed.Swap(&next))
}

// aim is for what a fetcher wants the blob, as far as that says when it comes.
type aim struct {
	hurry bool
	ahead bool // nobody asked for it yet: of no account beside one who did
	order places.Order
}

// wanted counts a fetcher's want in (by 1) or out (by -1); Swarm.mu is held.
func (f *flight) wanted(w Want, by int) {
	if w.Hurry {
		f.hurries.Add(int32(by))
	}
	if !w.Ahead {
		f.asks += by
	}
	o := w.Order
	if o.At == 0 {
		o.At = f.since.UnixNano()
	}
	if w.Ahead {
		o.Priority = math.MaxInt
	}
	of := aim{w.Hurry, w.Ahead, o}
	if f.aims[of] += by; f.aims[of] <= 0 {
		delete(f.aims, of)
	}
	ahead := f.asks == 0
	if len(f.aims) > 0 && f.ahead.Swap(ahead) && !ahead {
		f.wakeLanes(nil) // they stand aside no more
	}
	f.shares(w.Limit, by) // it wakes who waits for the opening: behind what says whether it stands aside
	if len(f.aims) == 0 {
		return // nobody fetches it any more: it keeps its last order
	}
	hurry, first := f.hurries.Load() > 0, places.Last
	for a := range f.aims {
		if a.hurry == hurry && a.ahead == ahead && a.order.Before(first) {
			first = a.order
		}
	}
	if f.standsAt() == first {
		return
	}
	f.order.Store(&first)
	f.reaim()
	f.s.batches.moved(f)
	if f.place != nil {
		f.s.turns.Move(f.place, first)
	}
	f.wakeLanes(nil)
}

// turn waits until the flight may start. A flight that somebody waits for, or waited
// for, does not wait.
func (s *Swarm) turn(f *flight) error {
	s.mu.Lock()
	if f.hurried {
		s.start(f)
		s.mu.Unlock()
		return nil
	}
	place := s.turns.Stand(f.standsAt())
	f.place = place
	s.mu.Unlock()
	select {
	case <-place.Got():
	case <-f.urgent:
	case <-f.ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := f.ctx.Err(); err != nil {
		s.turns.Leave(place)
		f.place = nil
		return err
	}
	s.start(f)
	return nil
}

// start notes that a flight took its turn; mu is held.
func (s *Swarm) start(f *flight) {
	f.flies = true
	s.running++
	s.count(f)
}

// count sees to it that a flight under way has one of the places if, and only if,
// nobody waits for it: clients and pushes keep rules from none. What is under way
// when the last one goes who waited for it takes a place whether there is one or not.
// mu is held.
func (s *Swarm) count(f *flight) {
	purpose := f.purpose()
	if f.counted != purpose {
		f.counted = purpose
		f.reaim()
	}
	waited := purpose < classReplication
	switch {
	case waited && f.place != nil:
		s.turns.Leave(f.place)
		f.place = nil
	case !waited && f.place == nil && f.flies:
		f.place = s.turns.Push(f.standsAt())
	}
}

// over ends what turn began.
func (s *Swarm) over(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	f.flies = false
	if f.place != nil {
		s.turns.Leave(f.place)
		f.place = nil
	}
}

// enterTurn takes a place among the active blobs without waiting for one: a batch
// is one, whatever it carries. The function that it returns gives it back.
func (s *Swarm) enterTurn() (over func()) {
	place := s.turns.Push(places.Last)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running++
	return func() {
		s.turns.Leave(place)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running--
	}
}

func (s *Swarm) active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}
