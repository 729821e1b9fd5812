package node

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/node/identity"
)

// controlGrace is how long what a removed node has open at the control port may
// live on: an answer under way may be that to its own removal, and the entry
// that tells it of that may be. Nothing new is taken from it meanwhile.
const controlGrace = time.Second

// cutOff closes the connections of nodes that are no longer in the node list,
// on every port, and those of this node once it is out itself; it tells gossip
// when this site drains.
func (n *node) cutOff(ctx context.Context) error {
	known := map[identity.NodeID]string{} // -> site
	out := false                          // this node was removed itself
	tick := time.NewTicker(controlGrace / 2)
	defer tick.Stop()
	due := map[identity.NodeID]time.Time{}
	for {
		changed := n.raft.State().Changed()
		view := n.view()
		now := map[identity.NodeID]string{}
		for _, m := range view.Nodes() {
			now[m.ID] = m.Site
		}
		for id, site := range known {
			if _, member := now[id]; member || id == n.id.ID {
				continue
			}
			// That it was removed, and by whom, is what consensus tells.
			n.log.Debug("the connections of a removed node are cut", "node", id, "of_site", site)
			n.gossip.Remove(id)
			if n.host != nil { // a witness has no data plane
				n.host.CutOff(id)
			}
			due[id] = time.Now().Add(controlGrace)
		}
		known = now
		if was := out; !was && n.closed() != "" {
			for _, m := range n.gossip.Members() {
				if m.ID != n.id.ID {
					n.gossip.Remove(m.ID) // it leaves them alone
					if n.host != nil {
						n.host.CutOff(m.ID)
					}
				}
			}
		}
		out = n.closed() != ""
		n.gossip.SetDraining(view.Draining(n.id.ID))
		for id, at := range due {
			if time.Now().Before(at) {
				continue
			}
			n.control.CutOff(id)
			n.raft.CutOff(id)
			delete(due, id)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C: // what members told, and what is due
		}
	}
}

// leavesOut tells gossip of whom it has nothing to know: of removed nodes, and at
// a removed node of all others.
func (n *node) leavesOut(id identity.NodeID) bool {
	if id != n.id.ID && n.closed() != "" {
		return true
	}
	_, gone := n.view().Removed(id)
	return gone && id != n.id.ID
}

// closed says why this site takes no pushes any more; empty: it takes them. What
// it took would never get to another site.
func (n *node) closed() string {
	if r, gone := n.raft.Removed(); gone {
		return r.String()
	}
	return ""
}

// removal is what the API's status says of this node's removal; nil: it is a
// member.
func (n *node) removal() *consensus.Removal {
	if r, gone := n.raft.Removed(); gone {
		return &r
	}
	return nil
}

// standing are the gauges of this node's place in the mesh.
func (n *node) standing() []prometheus.Collector {
	gauge := func(name, help string, is func() bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if is() {
				return 1
			}
			return 0
		})
	}
	return []prometheus.Collector{
		gauge("portolan_node_draining", "1 while this node's site drains.", func() bool { return n.view().Draining(n.id.ID) }),
		gauge("portolan_node_removed", "1 once this node was removed from the mesh.", func() bool { return n.removal() != nil }),
	}
}
