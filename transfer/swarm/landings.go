package swarm

import (
	"sync"
	"time"

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

// bringing is what is known here of a small blob that is not here yet.
type bringing uint8

const (
	toNobody bringing = iota // nothing: it may be in the store
	toHolder                 // a holder is asked for it
	toOther                  // another receiver is asked for it
)

// soon looks at the flight of a small blob that somebody waits for here: its bytes, if
// they came and are to be stored, or else whom they are to come from.
func (s *Swarm) soon(d digest.Digest, pid identity.ProjectID) (body []byte, to bringing) {
	s.mu.Lock()
	f := s.flights[d]
	s.mu.Unlock()
	if f == nil || !f.serves(pid) {
		return nil, toNobody
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.complete && !f.poisoned:
		return f.small.Bytes(), toHolder // checked, invariant T11
	case f.aside.Load():
		return nil, toOther
	}
	return nil, toHolder
}

// lively says whether small blobs of a project are brought here from a holder.
func (s *Swarm) lively(pid identity.ProjectID) bool { return s.swaps.lively(pid, time.Now()) }
