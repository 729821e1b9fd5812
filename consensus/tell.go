package consensus

import (
	"log/slog"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// isTold says which commands each node's log tells of: those that change who is
// in the mesh, and what its members share.
func isTold(t command.Type) bool {
	switch t {
	case command.Type_TYPE_NODE_REMOVE, command.Type_TYPE_SITE_REMOVE, command.Type_TYPE_SITE_DRAIN, command.Type_TYPE_SITE_LEAVE, command.Type_TYPE_KEYS_ROTATE:
		return true
	default:
		return false
	}
}

// tell writes one line about a command that was applied. Before is the state
// that its names are from: a removal takes them out of the next.
func tell(log *slog.Logger, before *state.View, env *command.Envelope) {
	body, err := env.Open()
	if err != nil {
		return // what was applied opens
	}
	actor := slog.String("by", env.GetActor())
	switch m := body.(type) {
	case *command.NodeRemove:
		id, _ := identity.NodeIDFromBytes(m.GetNodeId())
		n, _ := before.Node(id)
		log.Info("a node was removed from the mesh", actor, "of_site", n.Site, "node", id, "lost", m.GetLost())
	case *command.SiteRemove:
		s, _ := before.SiteByID(m.GetId())
		log.Info("a site without nodes was removed from the mesh", actor, "of_site", s.Name)
	case *command.SiteLeave:
		s, _ := before.SiteByID(m.GetId())
		switch {
		case m.GetWithdraw():
			log.Info("a site's removal was called off", actor, "of_site", s.Name)
		case m.GetAnnounced() == 0:
			log.Info("a site's removal was announced: it may take no pushes from now on", actor, "of_site", s.Name)
		}
	case *command.SiteDrain:
		s, _ := before.SiteByID(m.GetId())
		if m.GetDrain() {
			log.Info("a site was asked to drain", actor, "of_site", s.Name)
		} else {
			log.Info("a site's drain was taken back", actor, "of_site", s.Name)
		}
	case *command.KeysRotate:
		log.Info("new keys were asked for", actor, "gossip", m.GetGossip(), "mesh", m.GetMesh())
	}
}
