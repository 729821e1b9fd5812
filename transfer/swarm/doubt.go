package swarm

import (
	"context"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// maxDoubting bounds the doubts that are on their way to peers. One beyond is not
// told: the next one who is sent such a unit does.
const maxDoubting = 16

// doubting are the doubts on their way.
type doubting struct {
	mu  sync.Mutex
	now map[doubtOf]bool
}

type doubtOf struct {
	node   identity.NodeID
	digest digest.Digest
}

// doubt tells a peer, beside what is asked of it, that it sent a unit that is not
// the blob's. Most who do so are honest and have a bad disk: they believe for a day
// what they checked once. An honest one reads the blob again, puts it aside if it
// is damaged, and takes it from another site.
func (s *Swarm) doubt(c candidate, d digest.Digest) {
	of := doubtOf{c.node, d}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubting.mu.Lock()
	defer s.doubting.mu.Unlock()
	if s.closed || s.doubting.now[of] || len(s.doubting.now) >= maxDoubting {
		return
	}
	if s.doubting.now == nil {
		s.doubting.now = map[doubtOf]bool{}
	}
	s.doubting.now[of] = true
	s.wg.Go(func() {
		if err := s.tellDoubt(c, d); err != nil {
			s.log.Info("a peer could not be told that its blob is doubted", "digest", d, "node", c.node, "site", s.site(c.node), "error", err)
		}
		s.doubting.mu.Lock()
		defer s.doubting.mu.Unlock()
		delete(s.doubting.now, of)
	})
}

// tellDoubt returns when the peer has taken the doubt.
func (s *Swarm) tellDoubt(c candidate, d digest.Digest) error {
	ctx, cancel := context.WithTimeout(s.ctx, s.cfg.Stall)
	defer cancel()
	ss, _, release, err := s.sessions.get(ctx, c.node, need{})
	if err != nil {
		return err
	}
	err = ss.ask(d, c.pid, order{doubt: true, class: classReplication})
	if err == nil {
		_, err = ss.receive(nil, nil)
	}
	var refused *refusedError
	answered := err == nil || errors.As(err, &refused) // it may have found the damage already
	release(answered)
	if answered {
		return nil
	}
	return err
}
