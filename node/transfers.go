package node

import (
	"maps"
	"slices"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/mesh"
)

// transfers says what this node moves, and has to.
func (n *node) transfers() mesh.Transfers {
	t := mesh.Transfers{Artifacts: []mesh.Transfer{}, Blobs: []mesh.Progress{}, Links: []mesh.Link{}, Suspects: []mesh.Suspect{}, Disputes: []mesh.Dispute{}}
	list, ready, running, failed := n.reconciler.Pending(mesh.MaxTransfers)
	t.Ready, t.Running, t.Failed = ready, running, failed
	for _, p := range list {
		x := mesh.Transfer{Repository: p.Repository, Digest: p.Digest, State: p.State, PushedAt: p.PushedAt, Attempts: p.Attempts, Reason: p.Reason,
			Home: p.Home, Missing: p.Missing, Total: p.Total, ETA: p.ETA.Seconds()}
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
	for _, l := range n.swarm.Links() {
		t.Links = append(t.Links, mesh.Link{From: l.Site, Rate: l.Rate, Left: l.Left, ETA: l.ETA().Seconds(), Received: l.Received})
	}
	t.Behind, t.Suspects, t.Disputes = n.standingOfSites()
	return t
}

// standingOfSites says how far this site is behind the others, who sent it wrong
// bytes, and what signed records contradict each other.
func (n *node) standingOfSites() ([]mesh.Behind, []mesh.Suspect, []mesh.Dispute) {
	now := n.cfg.Now()
	sites := map[string]mesh.Behind{}
	for _, p := range n.sync.Peers() {
		b, known := sites[p.Site]
		age := -1.0
		if !p.SyncedAt.IsZero() {
			age = max(0, now.Sub(p.SyncedAt).Seconds())
		}
		if !known || age >= 0 && (b.Catalogue < 0 || age < b.Catalogue) {
			sites[p.Site] = mesh.Behind{Site: p.Site, Catalogue: age}
		}
	}
	for _, w := range n.reconciler.Behind() {
		b, known := sites[w.Site]
		if !known { // a site that is gone, whose pushes others have
			b.Catalogue = -1
		}
		b.Site, b.Seconds, b.Bytes, b.Artifacts, b.Unmeasured = w.Site, max(0, now.Sub(w.Oldest).Seconds()), w.Bytes, w.Artifacts, w.Unmeasured
		b.Total, b.ETA, b.Partial = w.Total, w.ETA.Seconds(), w.Partial
		sites[w.Site] = b
	}
	behind, suspects := []mesh.Behind{}, []mesh.Suspect{}
	for _, site := range slices.Sorted(maps.Keys(sites)) {
		behind = append(behind, sites[site])
	}
	for _, s := range n.swarm.Suspects() {
		suspects = append(suspects, mesh.Suspect{Node: s.Node.String(), Site: n.siteOf(s.Node), Blobs: s.Blobs, Digest: s.Digest, Since: s.Since, At: s.At, Why: s.Why})
	}
	disputes := []mesh.Dispute{}
	for _, d := range n.swarm.Disputes() {
		x := mesh.Dispute{Digest: d.Digest, At: d.At}
		for _, r := range d.Roots {
			x.Roots = append(x.Roots, mesh.SignedRoot{Node: r.Signer.String(), Site: n.siteOf(r.Signer), Root: r.Root, False: r.False})
		}
		disputes = append(disputes, x)
	}
	return behind, suspects, disputes
}
