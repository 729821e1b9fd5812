package peer

import (
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/sec"

	"github.com/portolan/portolan/node/identity"
)

// DialAfresh opens a new connection to a member, whether or not there is one, and
// closes it: what there is may have been opened by the other side, or before a
// firewall came between. It takes the way of Open's dials: resolver, transport,
// limits, handshake and key.
func (h *Host) DialAfresh(ctx context.Context, to identity.NodeID) error {
	if !h.hold() {
		return ErrClosed
	}
	defer h.handlers.Done()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stop := context.AfterFunc(h.ctx, cancel)
	defer stop()
	c, err := h.dialLine(ctx, to)
	if err != nil {
		return err
	}
	return c.Close()
}

// OtherKey reports whether a dial failed because a node with another key answered.
func OtherKey(err error) bool {
	var other sec.ErrPeerIDMismatch
	return errors.As(err, &other)
}
