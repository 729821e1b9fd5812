package swarm

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/portolan/portolan/transfer/places"
)

// maxSessions bounds the streams to one holder, below what its host admits (32 per
// protocol); Host.StreamsEach does in a larger mesh.
const maxSessions = 28

// leastSessions is how many of maxSessions are kept for each class: rules have 20 at
// most, and 2 however many clients wait. Of fewer streams as large a part is.
var leastSessions = [classes]int{6, 2, 2}

// need is what somebody needs a stream for, which may become more urgent meanwhile.
// The zero need is of rules.
type need struct {
	urgent, sought <-chan struct{} // closed when a push waits, or a client; nil: never
	rank           rank
}

// class is the most urgent that it was for, and more is closed when it is for something
// more urgent; nil: never.
func (n need) class() (c class, more <-chan struct{}) {
	select {
	case <-n.sought:
		return classClient, nil
	default:
	}
	select {
	case <-n.urgent:
		return classHurried, n.sought
	default:
	}
	return classReplication, n.urgent
}

// least is what of so many streams is kept for each class.
func least(most int) (out [classes]int) {
	if most < len(out) {
		return out // there are not enough: who comes first has one
	}
	for c, n := range leastSessions {
		out[c] = max(1, n*most/maxSessions)
	}
	return out
}

// slots are the streams to one holder. They are given by class, and by rank in it.
type slots struct {
	most func() int // may change; at most maxSessions

	mu   sync.Mutex
	used [classes]int
	line []*slot
}

// slot is one of them, or somebody in line for one.
type slot struct {
	class class
	rank  rank
	got   chan struct{} // closed when it is given
	held  bool
}

// take waits for a slot.
func (s *slots) take(ctx context.Context, n need) (*slot, error) {
	for {
		c, more := n.class()
		r := n.rank
		if c == classClient {
			r.Order = places.Order{} // clients go by age alone
		}
		w := s.stand(c, r)
		select {
		case <-w.got:
			return w, nil
		case <-more:
			select {
			case <-w.got: // just now
				return w, nil
			default:
			}
			s.leave(w)
		case <-ctx.Done():
			s.leave(w)
			return nil, ctx.Err()
		}
	}
}

func (s *slots) stand(c class, r rank) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &slot{class: c, rank: r, got: make(chan struct{})}
	at, _ := slices.BinarySearchFunc(s.line, w, func(o, w *slot) int {
		if w.class < o.class || w.class == o.class && w.rank.before(o.rank) {
			return 1
		}
		return -1 // behind those that stand as it does
	})
	s.line = slices.Insert(s.line, at, w)
	s.give()
	return w
}

// leave gives a slot back, or leaves the line.
func (s *slots) leave(w *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.held {
		s.used[w.class]--
	} else {
		s.line = slices.DeleteFunc(s.line, func(o *slot) bool { return o == w })
	}
	s.give()
}

// give gives what is free to the first of each class; mu is held.
func (s *slots) give() {
	most := max(1, s.most())
	kept := least(most)
	s.line = slices.DeleteFunc(s.line, func(w *slot) bool {
		if spare(most, s.used, kept, w.class) == 0 {
			return false
		}
		s.used[w.class]++
		w.held = true
		close(w.got)
		return true
	})
}

// unused says whether nobody has one, or waits for one.
func (s *slots) unused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cmp.Or(s.used[0], s.used[1], s.used[2], len(s.line)) == 0
}
