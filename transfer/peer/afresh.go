package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/portolan/portolan/node/identity"
)

// DialAfresh opens a new connection to a member, whether or not there is one, and
// closes it: what there is may have been opened by the other side, or before a
// firewall came between. It takes the way of Open's dials: resolver, transport,
// limits, handshake and key.
func (h *Host) DialAfresh(ctx context.Context, to identity.NodeID) error {
	id, err := peerID(to)
	if err != nil {
		return err
	}
	name, port, ok := h.cfg.Members(to)
	if !ok {
		return fmt.Errorf("node %s: %w", to.Short(), ErrNotMember)
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrClosed
	}
	h.handlers.Add(1)
	h.mu.Unlock()
	defer h.handlers.Done()
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stop := context.AfterFunc(h.ctx, cancel)
	defer stop()
	network, ok := h.h.Network().(*swarm.Swarm)
	if !ok {
		return errors.New("the data plane has no network that dials")
	}
	at := net.JoinHostPort(name, strconv.Itoa(port))
	addrs, err := resolve(ctx, name, port)
	if err != nil {
		return &dialError{addr: at, reason: dialReason(err), cause: err}
	}
	for _, a := range addrs {
		t := network.TransportForDialing(a)
		if t == nil {
			err = fmt.Errorf("there is no way to dial %s", a)
			continue
		}
		c, dialErr := t.Dial(ctx, a, id)
		if dialErr == nil {
			return c.Close()
		}
		err = dialErr
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &dialError{addr: at, reason: "no answer in time", cause: err}
	}
	return &dialError{addr: at, reason: dialReason(err), cause: err}
}

// OtherKey reports whether a dial failed because a node with another key answered.
func OtherKey(err error) bool {
	var other sec.ErrPeerIDMismatch
	return errors.As(err, &other)
}
