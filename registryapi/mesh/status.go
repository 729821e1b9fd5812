package mesh

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/rest"
)

type statusOut struct{ Body Status }

type listSites struct {
	Body []Site
}

type siteIn struct {
	Name string `path:"name" maxLength:"63"`
}

type listNodes struct{ Body []Node }

func (a *API) registerStatus() {
	rest.Register(a.rest, rest.Op{ID: "get-status", Method: http.MethodGet, Path: "/status", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "The mesh as this node sees it"}, a.status)
	rest.Register(a.rest, rest.Op{ID: "list-sites", Method: http.MethodGet, Path: "/sites", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "All sites, by name"}, func(context.Context, *struct{}) (*listSites, error) {
		return &listSites{Body: a.sites()}, nil
	})
	rest.Register(a.rest, rest.Op{ID: "get-site", Method: http.MethodGet, Path: "/sites/{name}", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "One site"}, func(_ context.Context, in *siteIn) (*rest.Object[Site], error) {
		v := a.cfg.View()
		s, ok := v.Site(in.Name)
		if !ok {
			return nil, noSite(v, in.Name)
		}
		return rest.ObjectOf(s.ID, s.Version, a.site(v, s)), nil
	})
	rest.Register(a.rest, rest.Op{ID: "list-nodes", Method: http.MethodGet, Path: "/nodes", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "All nodes, by site"}, func(context.Context, *struct{}) (*listNodes, error) {
		out := &listNodes{Body: []Node{}}
		for _, s := range a.sites() {
			out.Body = append(out.Body, s.Nodes...)
		}
		return out, nil
	})
}

func (a *API) status(context.Context, *struct{}) (*statusOut, error) {
	v, c := a.cfg.View(), a.cfg.Consensus()
	if c.Voters == nil {
		c.Voters = []nodeID{}
	}
	if c.Learners == nil {
		c.Learners = []nodeID{}
	}
	if c.RoundTrips == nil {
		c.RoundTrips = []RoundTrip{}
	}
	s := Status{Mesh: v.Mesh().ID, Level: v.Mesh().Level, Node: a.cfg.Self, Site: a.cfg.Site, Version: a.cfg.Version, Role: "none",
		Consensus: c, Sites: []SiteStatus{}, Behind: []Behind{}, Suspects: []Suspect{}, Disputes: []Dispute{}}
	if a.cfg.Standing != nil {
		s.Behind, s.Suspects, s.Disputes = a.cfg.Standing()
	}
	if a.cfg.Removed != nil {
		s.Removed = a.cfg.Removed()
	}
	switch {
	case slices.Contains(c.Voters, a.cfg.Self):
		s.Role = "voter"
	case slices.Contains(c.Learners, a.cfg.Self):
		s.Role = "learner"
	}
	for _, site := range v.Sites() {
		st := SiteStatus{Name: site.Name, Draining: site.Draining(), Nodes: []NodeStatus{}}
		for _, n := range v.NodesOf(site.Name) {
			ns := NodeStatus{ID: n.ID, Self: n.ID == a.cfg.Self, Alive: n.ID == a.cfg.Self, Voter: slices.Contains(c.Voters, n.ID),
				Leader: n.ID == c.Leader, Witness: n.Witness, Version: n.Version, RegistryURL: n.RegistryURL, Host: n.Host, JoinedAt: n.JoinedAt}
			if !ns.Self {
				alive, rtt := a.cfg.Peer(n.ID)
				ns.Alive, ns.RTT = alive, float64(rtt.Microseconds())/float64(time.Millisecond/time.Microsecond)
			}
			st.Nodes = append(st.Nodes, ns)
		}
		s.Sites = append(s.Sites, st)
	}
	return &statusOut{Body: s}, nil
}

func (a *API) sites() []Site {
	v, trips, now := a.cfg.View(), a.cfg.Consensus().RoundTrips, a.cfg.Now()
	out := []Site{}
	for _, s := range v.Sites() {
		out = append(out, site(v, s, trips, now))
	}
	return out
}

func (a *API) site(v *state.View, s state.Site) Site {
	return site(v, s, a.cfg.Consensus().RoundTrips, a.cfg.Now())
}

func site(v *state.View, s state.Site, trips []RoundTrip, now time.Time) Site {
	out := Site{ID: s.ID, Name: s.Name, CreatedAt: s.CreatedAt, Draining: s.Draining(), DrainedAt: s.DrainedAt, DrainedBy: s.DrainedBy, Nodes: []Node{}, RoundTrips: []RoundTrip{}, Version: s.Version}
	out.AwayAt = s.AwayAt
	if l, announced := s.Leaving(now); announced {
		out.LeavingAt, out.LeavingBy = l.At, l.By
	}
	if out.Labels = s.Labels; out.Labels == nil {
		out.Labels = map[string]string{}
	}
	for _, t := range trips {
		if t.From == s.Name {
			out.RoundTrips = append(out.RoundTrips, t)
		}
	}
	for _, n := range v.NodesOf(s.Name) {
		out.Nodes = append(out.Nodes, Node{ID: n.ID, Site: n.Site, Host: n.Host, GossipPort: n.GossipPort, ControlPort: n.ControlPort,
			DataPort: n.DataPort, RegistryURL: n.RegistryURL, Witness: n.Witness, Version: n.Version, JoinedAt: n.JoinedAt})
	}
	return out
}
