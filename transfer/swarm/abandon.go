package swarm

import (
	"context"

	"github.com/portolan/portolan/node/identity"
)

// Abandon ends the flights that are wanted on behalf of one project alone, which
// may not rest here any more, and returns when they have let go of what they had;
// who waits for one gets its error. What others want too goes on for them.
func (s *Swarm) Abandon(ctx context.Context, pid identity.ProjectID) {
	s.mu.Lock()
	var ending []*flight
	for _, f := range s.flights {
		if len(f.wants) == 1 && f.wants[0].PID == pid && !f.ended() {
			f.dropped = true
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
