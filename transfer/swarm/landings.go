package swarm

import (
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// landings tell who waits for a small blob here that it came, or will not come from
// a holder.
type landings struct {
	mu sync.Mutex
	m  map[digest.Digest]chan struct{}
}

// of is closed at the next news of a blob.
func (l *landings) of(d digest.Digest) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[digest.Digest]chan struct{}{}
	}
	ch := l.m[d]
	if ch == nil {
		ch = make(chan struct{})
		l.m[d] = ch // bounded by the streams that are served: each waits for one blob
	}
	return ch
}

// news wakes those that wait for a blob, and forgets it. Who ends its own wait says
// so too: nobody may be waiting any more, and a second one that does looks again.
func (l *landings) news(d digest.Digest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ch := l.m[d]; ch != nil {
		close(ch)
		delete(l.m, d)
	}
}

// soon looks at the flight of a small blob that somebody waits for here: its bytes, if
// they came and are to be stored, and whether they come from another receiver.
func (s *Swarm) soon(d digest.Digest, pid identity.ProjectID) (body []byte, aside bool) {
	s.mu.Lock()
	f := s.flights[d]
	s.mu.Unlock()
	if f == nil || !f.serves(pid) {
		return nil, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.complete && !f.poisoned {
		body = f.small // checked, invariant T11
	}
	return body, body == nil && f.aside.Load()
}
