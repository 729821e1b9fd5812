package node

import (
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/mesh"
)

// transfers says what this node moves, and has to.
func (n *node) transfers() mesh.Transfers {
	t := mesh.Transfers{Artifacts: []mesh.Transfer{}, Blobs: []mesh.Progress{}, Suspects: []mesh.Suspect{}}
	list, ready, running, failed := n.reconciler.Pending(mesh.MaxTransfers)
	t.Ready, t.Running, t.Failed = ready, running, failed
	for _, p := range list {
		x := mesh.Transfer{Repository: p.Repository, Digest: p.Digest, State: p.State, PushedAt: p.PushedAt, Attempts: p.Attempts, Reason: p.Reason}
		if !p.NextAt.IsZero() {
			x.NextAt = &p.NextAt
		}
		t.Artifacts = append(t.Artifacts, x)
	}
	for _, p := range n.swarm.Progress() {
		if len(t.Blobs) == mesh.MaxTransfers {
			break
		}
		x := mesh.Progress{Digest: p.Digest, Done: p.Done, Total: p.Total, Clients: p.Readers, Since: p.Since}
		if p.From != (identity.NodeID{}) {
			x.From = n.siteOf(p.From)
		}
		if took := n.cfg.Now().Sub(p.Since).Seconds(); took > 0 && p.Done > 0 && p.Total > p.Done {
			x.ETA = float64(p.Total-p.Done) * took / float64(p.Done)
		}
		t.Blobs = append(t.Blobs, x)
	}
	for _, s := range n.swarm.Suspects() {
		t.Suspects = append(t.Suspects, mesh.Suspect{Node: s.Node.String(), Site: n.siteOf(s.Node), Blobs: s.Blobs, Digest: s.Digest, At: s.At})
	}
	return t
}
