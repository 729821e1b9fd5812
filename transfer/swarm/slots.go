package swarm

import (
	"context"
	"sync"
)

// slots lets so many in at a time; how many may change.
type slots struct {
	most func() int

	mu      sync.Mutex
	n       int
	waiting []chan struct{} // oldest first; closed: it has a slot
}

// take waits for a slot; false: ctx or given ended first. A nil given never does.
func (s *slots) take(ctx context.Context, given <-chan struct{}) bool {
	s.mu.Lock()
	if len(s.waiting) == 0 && s.n < max(1, s.most()) {
		s.n++
		s.mu.Unlock()
		return true
	}
	turn := make(chan struct{})
	s.waiting = append(s.waiting, turn)
	s.mu.Unlock()
	select {
	case <-turn:
		return true
	case <-given:
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, w := range s.waiting {
		if w == turn {
			s.waiting = append(s.waiting[:i], s.waiting[i+1:]...)
			return false
		}
	}
	s.leave() // it was given one meanwhile
	return false
}

// free gives a slot back.
func (s *slots) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave()
}

// leave lets in those that wait; mu is held.
func (s *slots) leave() {
	s.n--
	for len(s.waiting) > 0 && s.n < max(1, s.most()) {
		s.n++
		close(s.waiting[0])
		s.waiting = s.waiting[1:]
	}
}

func (s *slots) used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}
