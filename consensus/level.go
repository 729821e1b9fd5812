package consensus

import (
	"context"

	"github.com/portolan/portolan/consensus/command"
)

// raiseLevel brings the mesh to the highest command level that all its nodes
// understand, as their records say. New commands are refused until then, so no
// node ever sees one that it does not know.
func (n *Node) raiseLevel(ctx context.Context) {
	view := n.state.View()
	level := command.Level
	for _, m := range view.Nodes() {
		level = min(level, m.Level)
	}
	if view.Mesh().ID.IsZero() || level <= view.Mesh().Level {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Profile.Election)
	defer cancel()
	if _, err := n.Propose(ctx, "system", &command.SetLevel{Level: level}); err != nil {
		n.log.Debug("the mesh's command level was not raised yet", "level", level, "err", err)
		return
	}
	n.log.Info("all nodes understand a higher command level: the mesh is at it now", "level", level)
}
