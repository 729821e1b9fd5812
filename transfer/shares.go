package transfer

import (
	"sync"

	"github.com/portolan/portolan/node/identity"
)

// keptEach is how many blobs one node may have on their way here for its pushes: of four
// that ask for the most, each has room.
const keptEach = maxBlobTasks / 4

// shares say who asked for the blobs that pushes elsewhere want kept here: a node that asks
// for ever more, or never sends what it asked for, does not keep others' pushes out. They
// have as many entries as the queue has such tasks.
type shares struct {
	mu sync.Mutex
	of map[key]identity.NodeID
	n  map[identity.NodeID]int
}

func newShares() *shares {
	return &shares{of: map[key]identity.NodeID{}, n: map[identity.NodeID]int{}}
}

// take counts a task as a node's; false: it has its share.
func (s *shares) take(k key, by identity.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.of[k]; ok {
		return true
	}
	if s.n[by] >= keptEach {
		return false
	}
	s.of[k] = by
	s.n[by]++
	return true
}

// end is called when the task is in the queue no longer.
func (s *shares) end(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	by, ok := s.of[k]
	if !ok {
		return
	}
	delete(s.of, k)
	if s.n[by]--; s.n[by] == 0 {
		delete(s.n, by)
	}
}
