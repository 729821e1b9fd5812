package peer

import (
	"sync"

	"github.com/portolan/portolan/node/identity"
)

// admitted are the streams of one protocol that other nodes opened here. When there
// are as many as there may be, whoever has fewer than others takes the place of one
// of theirs: a few nodes that keep all they can open lock nobody out.
type admitted struct {
	mu sync.Mutex
	n  int
	of map[identity.NodeID][]*Stream // oldest first
}

// enter counts a stream in; false: there is no room for it. The one that it takes the
// place of, if any, is the caller's to reset.
func (a *admitted) enter(from identity.NodeID, s *Stream) (out *Stream, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n >= maxAdmitted {
		var most identity.NodeID
		n := len(a.of[from]) + 1
		for id, ss := range a.of {
			if len(ss) > n {
				most, n = id, len(ss)
			}
		}
		if n == len(a.of[from])+1 {
			return nil, false
		}
		out = a.of[most][n-1] // the newest: the others are further on their way
		a.remove(most, n-1)
	}
	if a.of == nil {
		a.of = map[identity.NodeID][]*Stream{}
	}
	a.of[from] = append(a.of[from], s)
	a.n++
	return out, true
}

// leave counts a stream out, if it has not lost its place.
func (a *admitted) leave(from identity.NodeID, s *Stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, x := range a.of[from] {
		if x == s {
			a.remove(from, i)
			return
		}
	}
}

// remove takes a stream out; mu is held.
func (a *admitted) remove(from identity.NodeID, i int) {
	ss := a.of[from]
	copy(ss[i:], ss[i+1:])
	ss[len(ss)-1] = nil
	if a.of[from] = ss[:len(ss)-1]; len(ss) == 1 {
		delete(a.of, from)
	}
	a.n--
}
