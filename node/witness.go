package node

import (
	"cmp"
	"slices"
	"time"

	"github.com/portolan/portolan/gossip"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/preflight"
	"github.com/portolan/portolan/node/telemetry"
	"github.com/portolan/portolan/registryapi"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/mesh"
)

// startWitness is startContent and api for a node that votes and holds no
// content: people see how it is, and nothing else.
func (n *node) startWitness() (registryapi.Config, error) {
	var none registryapi.Config
	s, log := n.cfg.Settings, n.cfg.Logger
	who, err := access.New(access.Config{View: n.view, Identity: n.id, Logger: log, Now: n.cfg.Now, TrustedProxies: s.TrustedProxies, Metrics: n.metrics})
	if err != nil {
		return none, err
	}
	sites, err := mesh.NewStatus(mesh.Config{
		View: n.view, Replica: n.raft, Access: who, Self: n.id.ID, Site: s.Site, Consensus: n.consensusStatus, Peer: n.peerStatus,
		Removed: n.removedStatus, Version: n.cfg.Version, Now: n.cfg.Now, Logger: log,
	})
	if err != nil {
		return none, err
	}
	n.checker.Start(preflight.Parts{Gossip: n.gossip})
	n.stages.start("cut-off of removed nodes", n.cutOff)
	n.stages.start("memory of the start", giveBack(n.raft.Ready()))
	return registryapi.Config{
		Mesh: sites, Metrics: who.Only(s.MetricsFor, telemetry.Handler(n.metrics)), Stall: s.ClientTimeout, Logger: log,
	}, nil
}

// draining says whether a node wants to be left in peace, by its own word.
func (n *node) draining(id identity.NodeID) bool {
	g := n.heard.Load()
	return g != nil && slices.ContainsFunc(g.Members(), func(m gossip.Member) bool { return m.ID == id && m.Draining })
}

// roundTrips gives what is known of the round trips between sites. Where a site
// has several nodes the shortest counts.
func (n *node) roundTrips() []mesh.RoundTrip {
	type pair struct{ from, to string }
	known := make(map[pair]time.Duration)
	for _, l := range n.raft.RoundTrips() {
		p := pair{n.siteOf(l.From), n.siteOf(l.To)}
		if d, ok := known[p]; p.from != p.to && (!ok || l.Trip < d) {
			known[p] = l.Trip
		}
	}
	out := make([]mesh.RoundTrip, 0, len(known))
	for p, d := range known {
		out = append(out, mesh.RoundTrip{From: p.from, To: p.to, RTT: milliseconds(d)})
	}
	slices.SortFunc(out, func(a, b mesh.RoundTrip) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
