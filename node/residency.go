package node

import (
	"context"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// stepAskWithin bounds the question what a site's step waits for.
const stepAskWithin = 2 * time.Second

// stepWaits answers what the step of a site in a project waits for; empty: it
// says nothing, or does not answer.
func (n *node) stepWaits(ctx context.Context, pid identity.ProjectID, site string) string {
	ctx, cancel := context.WithTimeout(ctx, stepAskWithin)
	defer cancel()
	for _, m := range n.view().NodesOf(site) {
		switch {
		case m.Witness:
		case m.ID == n.id.ID:
			return n.residency.Reason(pid)
		case !n.holdsSome(pid):
			return "ask a node at a site that holds the project"
		default:
			why, err := n.sync.Reason(ctx, m.ID, pid)
			if err != nil {
				n.log.Debug("a site does not say what its step in a project waits for", "asked", site, "error", err)
				return "it does not answer"
			}
			return why
		}
	}
	return ""
}

// holdsSome: this site is none that the project is out of, whom others tell
// nothing of it.
func (n *node) holdsSome(pid identity.ProjectID) bool {
	p, ok := n.view().ProjectByPID(pid)
	return ok && p.Residence(n.cfg.Settings.Site) != state.Out
}
