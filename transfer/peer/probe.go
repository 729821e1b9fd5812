package peer

import (
	"context"

	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-yamux/v5"

	"github.com/portolan/portolan/node/identity"
)

// probe is one question for a sign of life; all that ask at the time share it.
type probe struct {
	done  chan struct{}
	alive bool // after done
}

// Responds asks a node for a sign of life, below all streams: a node that is busy
// with its disk answers, one that is paused, hung or cut off does not. So is the
// handshake of a dial that is under way. It returns false when ctx ends, and at
// once if there is neither connection nor dial.
func (h *Host) Responds(ctx context.Context, id identity.NodeID) bool {
	to, err := peerID(id)
	if err != nil {
		return false
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return false
	}
	if d := h.dials[id]; d != nil && d.underWay() {
		h.mu.Unlock()
		select {
		case <-d.up:
			return true
		case <-d.done:
			return d.err == nil
		case <-ctx.Done():
			return false
		}
	}
	p := h.probes[id]
	if p == nil {
		p = &probe{done: make(chan struct{})}
		h.probes[id] = p
		h.handlers.Add(1)
		go func() {
			defer h.handlers.Done()
			p.alive = h.echoes(to)
			h.mu.Lock()
			delete(h.probes, id)
			h.mu.Unlock()
			close(p.done)
		}()
	}
	h.mu.Unlock()
	select {
	case <-p.done:
		return p.alive
	case <-ctx.Done():
		return false
	}
}

// echoes sends a ping of the muxer, which the other side's answers without its
// protocols' help, and waits as long as writeTimeout lets it.
func (h *Host) echoes(to corepeer.ID) bool {
	conns := h.h.Network().ConnsToPeer(to)
	answers := make(chan error, len(conns))
	asked := 0
	for _, c := range conns {
		var s *yamux.Session
		if !c.As(&s) {
			continue
		}
		asked++
		go func() {
			_, err := s.Ping() // ends with the connection, or after writeTimeout
			answers <- err
		}()
	}
	alive := false
	for ; asked > 0; asked-- {
		// All are waited for, so that none outlives the host.
		if err := <-answers; err == nil {
			alive = true
		}
	}
	return alive
}
