package swarm

import (
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// Done gives how many bytes of a blob on its way are here and checked; 0: none, or
// it is not on its way.
func (s *Swarm) Done(d digest.Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[d]; f != nil {
		return f.progress().Done
	}
	return 0
}

// DoneIn is Done of a blob that comes for a project: what it comes for is nobody
// else's business.
func (s *Swarm) DoneIn(d digest.Digest, pid identity.ProjectID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[d]; f != nil && f.serves(pid) {
		return f.progress().Done
	}
	return 0
}
