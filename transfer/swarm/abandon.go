package swarm

import (
	"context"

	"github.com/portolan/portolan/node/identity"
)

// Abandon ends the flights on behalf of a project, which may not rest here any more,
// and returns when they have let go of what they had; who waits for one gets its
// error. Who wanted the same for another project begins a flight for that.
func (s *Swarm) Abandon(ctx context.Context, pid identity.ProjectID) {
	s.mu.Lock()
	var ending []*flight
	for _, f := range s.flights {
		if f.pid == pid && !f.ended() {
			f.dropped, f.keeps = true, false
			f.cancel()
			ending = append(ending, f)
		}
	}
	s.mu.Unlock()
	for _, f := range ending {
		select {
		case <-f.done:
		case <-ctx.Done():
			return
		}
	}
}
