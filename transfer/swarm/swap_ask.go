package swarm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// What a flight of a small blob looks at before it is left to another receiver, and
// after that did not bring it.

const (
	// allowedFor is for how long Access' word on a receiver and a project holds, as
	// T13 has it for watches.
	allowedFor = time.Second
	// maxAllowed bounds what is remembered of that.
	maxAllowed = 1024
)

// allowed remembers which receivers may have small blobs of which projects. Access
// looks at the blob besides, which costs a look into the catalogue: that the project
// names it is why it is fetched.
type allowed struct {
	mu sync.Mutex
	m  map[swapWith]time.Time // until when
}

type swapWith struct {
	node identity.NodeID
	pid  identity.ProjectID
}

// mayAsk says whether a receiver may be asked for a blob that this node fetches for
// a project.
func (s *Swarm) mayAsk(ctx context.Context, node identity.NodeID, d digest.Digest, pid identity.ProjectID) bool {
	with, now := swapWith{node, pid}, time.Now()
	s.allowed.mu.Lock()
	until := s.allowed.m[with]
	s.allowed.mu.Unlock()
	if now.Before(until) {
		return true
	}
	if !s.cfg.Access(ctx, node, d, pid) {
		return false
	}
	s.allowed.mu.Lock()
	defer s.allowed.mu.Unlock()
	if s.allowed.m == nil || len(s.allowed.m) >= maxAllowed {
		s.allowed.m = map[swapWith]time.Time{}
	}
	s.allowed.m[with] = now.Add(allowedFor)
	return true
}

// setAside says whether the blob is to come from another receiver.
func (f *flight) setAside(aside bool) {
	if f.aside.Swap(aside) != aside && aside {
		f.s.landings.news(f.digest) // who waits for it here waits in vain
	}
}

// letDown notes that a receiver that was asked did not bring a blob; true: it is to
// blame, for the first time in a while. One that refuses does as it may, and each
// refusal costs a round trip.
func (s *Swarm) letDown(who swapBetween, said error) bool {
	if errors.Is(said, errNotHis) || errors.Is(said, errNotAsked) {
		return false
	}
	var refused *refusedError
	if errors.As(said, &refused) && refused.elsewhere {
		return false // it takes another one for the owner: it had other word of what each can send
	}
	first := s.swaps.failed(who, time.Now())
	return first && !(errors.As(said, &refused) && refused.status != Status_STATUS_NOT_YET)
}

// coming says whether a receiver has not got a blob yet and is bringing it, or others.
func coming(said error) bool {
	var refused *refusedError
	return errors.As(said, &refused) && refused.coming
}

// loaded says whether this node has more to bring than what one client waits for.
func (s *Swarm) loaded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.flights) >= maxActive
}

// patience is how long a receiver may take to bring a blob from a holder.
func (s *Swarm) patience(holder identity.NodeID) time.Duration {
	return min(swapPatience+swapDelays*s.pipes.delay(holder), swapPatienceMost)
}

// self is this node as one of the receivers.
func (s *Swarm) self() receiver { return receiver{s.cfg.Host.ID(), s.uplink.share()} }
