package peer

import (
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multiaddr"
)

// gater admits members only: before a dial, and after the handshake of either
// direction, when the key is proven.
type gater struct{ h *Host }

func (g gater) InterceptPeerDial(p corepeer.ID) bool { return g.allowed(p) }

func (g gater) InterceptAddrDial(corepeer.ID, multiaddr.Multiaddr) bool { return true }

func (g gater) InterceptAccept(at network.ConnMultiaddrs) bool {
	g.h.handshakes.begin(at)
	g.h.congestion.Add(at) // it is what others dialed that this node sends content on
	return true
}

func (g gater) InterceptSecured(dir network.Direction, p corepeer.ID, at network.ConnMultiaddrs) bool {
	if dir == network.DirInbound {
		g.h.handshakes.done(at)
	}
	if g.allowed(p) {
		return true
	}
	g.h.metrics.refuse(refusedStranger)
	g.h.log.Debug("data connection refused: not a member", "peer", p.String(), "address", at.RemoteMultiaddr().String(), "direction", dir.String())
	return false
}

func (g gater) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

func (g gater) allowed(p corepeer.ID) bool {
	id, err := nodeID(p)
	return err == nil && g.h.isMember(id)
}
