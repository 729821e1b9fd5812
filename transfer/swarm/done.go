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

// CameIn gives how many bytes of a blob that comes for a project came, those of parts of
// units and of what will prove wrong among them; what it comes for is nobody else's
// business. Of one that is fetched anew it may be less than before.
func (s *Swarm) CameIn(d digest.Digest, pid identity.ProjectID) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[d]; f != nil && f.serves(pid) {
		return max(f.came.Load(), f.progress().Done) // small ones come without pieces
	}
	return 0
}
