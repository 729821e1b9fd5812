package gossip

import (
	"errors"
	"net"

	"github.com/portolan/portolan/node/identity"
)

// A removed node goes on knowing the gossip key until that is rotated. Until
// then it is left out by what it is and by where it is: nothing is sent to it,
// its packets are dropped, and no list of another member brings it back.

// errRemoved answers whoever would send to a removed node.
var errRemoved = errors.New("the node there was removed from the mesh")

// Remove leaves a node out from now on. Config.Removed must say so already.
func (m *Mesh) Remove(id identity.NodeID) {
	m.mu.Lock()
	x := m.members[id]
	if x != nil {
		delete(m.members, id)
		m.blocked[x.Host] = id
	}
	m.mu.Unlock()
	if x != nil {
		m.poke()
	}
}

func (m *Mesh) isRemoved(id identity.NodeID) bool { return m.cfg.Removed != nil && m.cfg.Removed(id) }

// refusesPacket is asked for every packet, in and out.
func (m *Mesh) refusesPacket(addr string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, blocked := m.blocked[addr]
	return blocked
}

// refusesStream is asked for every stream that comes in. Its port says nothing,
// so an address that a living member shares is let in.
func (m *Mesh) refusesStream(from net.Addr) bool {
	host := hostOf(from.String())
	m.mu.Lock()
	defer m.mu.Unlock()
	bad := false
	for addr := range m.blocked {
		bad = bad || hostOf(addr) == host
	}
	for _, x := range m.members {
		if x.Alive && hostOf(x.Host) == host {
			return false
		}
	}
	return bad
}

// allow lets an address in again that another node has now. m.mu is held.
func (m *Mesh) allow(addr string) { delete(m.blocked, addr) }

func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}

// dialsRemoved says whether memberlist wants a stream to a removed node, by its
// name: seeds have none, and may be another node at an address that was freed.
func (m *Mesh) dialsRemoved(name string) bool {
	id, err := identity.ParseNodeID(name)
	return err == nil && m.isRemoved(id)
}

// filter is what the transport asks.
type filter struct {
	packet func(addr string) bool
	stream func(from net.Addr) bool
	dial   func(name string) bool
}
