package swarm

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// landings tell who waits for a small blob here that it came, or will not come from
// a holder.
type landings struct {
	places atomic.Int64 // that are taken, see maxParkedAll

	mu sync.Mutex
	m  map[digest.Digest][]*lot // bounded by the places
}

// watch has a lot told of the next news of a blob.
func (l *landings) watch(d digest.Digest, by *lot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.m == nil {
		l.m = map[digest.Digest][]*lot{}
	}
	if !slices.Contains(l.m[d], by) {
		l.m[d] = append(l.m[d], by)
	}
}

// leave ends a watch.
func (l *landings) leave(d digest.Digest, by *lot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left := slices.DeleteFunc(l.m[d], func(o *lot) bool { return o == by }); len(left) > 0 {
		l.m[d] = left
	} else {
		delete(l.m, d)
	}
}

// news tells those that wait for a blob, and forgets them: who goes on waiting
// watches again before it looks.
func (l *landings) news(d digest.Digest) {
	l.mu.Lock()
	told := l.m[d]
	delete(l.m, d)
	l.mu.Unlock()
	for _, o := range told {
		o.landed(d)
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
