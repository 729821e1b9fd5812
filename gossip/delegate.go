package gossip

import (
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
)

// delegate is Mesh as memberlist sees it. Its methods run under memberlist's
// locks: they take the leaf lock m.mu, never block and never call memberlist
// (memberlist#23, #237).
type delegate Mesh

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.AliveDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
	_ memberlist.PingDelegate     = (*delegate)(nil)
)

// meta encodes what this node says of itself.
func (m *Mesh) meta() []byte {
	m.mu.Lock()
	draining := m.draining
	m.mu.Unlock()
	b, err := proto.Marshal(&Meta{Site: m.cfg.Site, Level: m.cfg.Level, Draining: draining})
	if err != nil {
		return nil // a site name that is not UTF-8 was refused when it was made
	}
	return b
}

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(int) []byte { return (*Mesh)(d).meta() }

// NotifyMsg implements memberlist.Delegate.
func (d *delegate) NotifyMsg(b []byte) {
	h := new(Hint)
	if err := proto.Unmarshal(b, h); err != nil { // copies: b is memberlist's
		d.dropped.WithLabelValues("unreadable").Inc()
		return
	}
	if from, err := identity.NodeIDFromBytes(h.GetFrom()); err == nil && (*Mesh)(d).isRemoved(from) {
		d.dropped.WithLabelValues("removed").Inc()
		return
	}
	if h.GetKind() == kindGoodbye {
		d.goodbye(h)
		return
	}
	if h.GetKind() == kindProbe {
		d.probes.take(h.GetPayload())
		return
	}
	select {
	case d.hints <- h:
		d.received.Inc()
	default:
		d.dropped.WithLabelValues("busy").Inc()
	}
}

// goodbye notes that a node is about to stop: memberlist tells a node that left
// from one that was lost, and does not tell us.
func (d *delegate) goodbye(h *Hint) {
	id, err := identity.NodeIDFromBytes(h.GetFrom())
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if x := d.members[id]; x != nil {
		x.leaving = true
	}
}

// GetBroadcasts, LocalState and MergeRemoteState: announcements go straight to
// everybody and state is not gossip's business.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }
func (d *delegate) LocalState(bool) []byte          { return nil }
func (d *delegate) MergeRemoteState([]byte, bool)   {}
func (d *delegate) AckPayload() []byte              { return nil }
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	id, err := identity.ParseNodeID(n.Name)
	if err != nil {
		return fmt.Errorf("gossip of an unknown kind of node at %s: %w", n.Address(), err)
	}
	if (*Mesh)(d).isRemoved(id) {
		return fmt.Errorf("gossip of node %s at %s: it was removed from the mesh", n.Name, n.Address())
	}
	if err := proto.Unmarshal(n.Meta, new(Meta)); err != nil {
		return fmt.Errorf("gossip of node %s: %w", n.Name, err)
	}
	return nil
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.set(n, true) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.set(n, true) }

// NotifyLeave implements memberlist.EventDelegate: lost or gone by itself.
func (d *delegate) NotifyLeave(n *memberlist.Node) { d.set(n, false) }

func (d *delegate) set(n *memberlist.Node, alive bool) {
	id, err := identity.ParseNodeID(n.Name)
	if err != nil || (*Mesh)(d).isRemoved(id) {
		return // what memberlist still says of a removed one is no news
	}
	var meta Meta
	_ = proto.Unmarshal(n.Meta, &meta) // NotifyAlive has seen it
	d.mu.Lock()
	x := d.members[id]
	turned := x == nil || x.Alive != alive
	if x == nil {
		x = &member{}
		d.members[id] = x
	}
	x.ID, x.Site, x.Level, x.Draining = id, meta.GetSite(), meta.GetLevel(), meta.GetDraining()
	x.Host, x.Alive = n.Address(), alive
	if alive {
		(*Mesh)(d).allow(x.Host)
	}
	stopped := x.leaving && !alive
	if turned {
		x.Since = time.Now()
		x.pong, x.deaf, x.leaving = x.Since, false, false
	}
	if !alive {
		x.rtts = nil // the way back may be another one
	}
	d.mu.Unlock()
	(*Mesh)(d).poke()
	if !turned || id == d.cfg.Self {
		return
	}
	e := event{msg: "a node is in reach", node: id, site: meta.GetSite(), addr: n.Address()}
	if !alive {
		e.msg, e.warn = "a node can't be reached", true
		if stopped {
			e.msg, e.warn = "a node has stopped", false
		}
	}
	d.tell(e)
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d *delegate) NotifyConflict(_, other *memberlist.Node) {
	id, err := identity.ParseNodeID(other.Name)
	if err != nil {
		return
	}
	d.tell(event{msg: "two nodes use one key: stop the copy of the data directory", node: id, addr: other.Address(), warn: true})
}

func (d *delegate) tell(e event) {
	select {
	case d.events <- e:
	default: // log lines only
	}
}

// NotifyPingComplete implements memberlist.PingDelegate.
func (d *delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, _ []byte) {
	id, err := identity.ParseNodeID(n.Name)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if x := d.members[id]; x != nil {
		x.pong, x.deaf = time.Now(), false
		x.rtts = append(x.rtts, rtt)
		if len(x.rtts) > rttSamples {
			x.rtts = x.rtts[1:]
		}
	}
}
