package voters

import (
	"cmp"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

const (
	// MetaSite is the key of a server's site in autopilot's Server.Meta.
	MetaSite = "site"

	// Learner is the type of servers that do not vote.
	Learner autopilot.NodeType = "learner"

	// settled is how long a learner must have been well before it votes in a
	// mesh that has no spare voter yet: it has caught up and stayed so.
	settled = time.Second
	// settledLong is the same where it takes over from a silent voter: a WAN
	// that comes and goes must not move the votes about.
	settledLong = time.Minute
	// silentFor is how long a voter must have been silent to lose its vote.
	silentFor = time.Minute
	// redundant is the number of voters that outlives one of them, Most the
	// number that outlives two. More would only make edits slower.
	redundant = 3
	Most      = 5
)

// Promoter implements autopilot.Promoter.
type Promoter struct {
	// Sites gives the number of sites that have a node which may vote.
	Sites func() int
	// Want is how many voters a mesh with as many sites gets: 3, or Most; 0: 3.
	Want int
	// Answers asks a server for a sign of life, now. What is known of its health
	// is some seconds old, and from one voter to three the mesh goes by way of
	// two: a second one that has just died would take the majority with it. nil
	// believes what is known.
	Answers func(raft.ServerID) bool
	// Now is the clock that autopilot's times are compared with; nil is time.Now.
	Now func() time.Time
}

func (p *Promoter) now() time.Time {
	if p.Now == nil {
		return time.Now()
	}
	return p.Now()
}

// target is how many voters there should be next, when there are have.
func (p *Promoter) target(have int) int {
	switch sites := p.Sites(); {
	case sites < redundant:
		return 1
	case p.Want >= Most && sites >= Most && have >= redundant:
		return Most // by way of three, which is two even numbers shorter
	}
	return redundant
}

// CalculatePromotionsAndDemotions implements autopilot.Promoter.
func (p *Promoter) CalculatePromotionsAndDemotions(_ *autopilot.Config, s *autopilot.State) autopilot.RaftChanges {
	var changes autopilot.RaftChanges
	voters, learners := split(s)
	// Two voters at one site: the site's loss would count twice.
	taken := make(map[string]bool)
	kept := voters[:0:0]
	for _, v := range voters {
		if site := siteOf(v); site != "" && taken[site] && v.Server.ID != s.Leader {
			changes.Demotions = append(changes.Demotions, v.Server.ID)
			continue
		}
		taken[siteOf(v)] = true
		kept = append(kept, v)
	}
	if len(changes.Demotions) > 0 {
		return one(changes)
	}
	target := p.target(len(kept))
	missing := target - len(kept)
	candidates := p.alive(p.candidates(learners, taken, settled), missing)
	switch {
	case missing > 0 && len(candidates) >= missing:
		for _, c := range candidates[:missing] {
			changes.Promotions = append(changes.Promotions, c.Server.ID)
		}
	case missing < 0 || len(kept)%2 == 0:
		// Too many, or an even number that nobody can complete.
		if v := p.expendable(kept, s.Leader); v != nil {
			changes.Demotions = append(changes.Demotions, v.Server.ID)
		}
	case missing == 0 && target > 1:
		v := p.silent(kept, s.Leader)
		if v == nil {
			break
		}
		delete(taken, siteOf(v)) // another node of the same site may take over
		if c := p.alive(p.candidates(learners, taken, settledLong), 1); len(c) > 0 {
			changes.Demotions = append(changes.Demotions, v.Server.ID)
			changes.Promotions = append(changes.Promotions, c[0].Server.ID)
		}
	}
	return changes
}

// one keeps a single demotion: each may cost a majority its spare.
func one(c autopilot.RaftChanges) autopilot.RaftChanges {
	c.Demotions = c.Demotions[:1]
	return c
}

// split gives voters and learners: the leader first, then by site and id, so
// that every leader comes to the same choice.
func split(s *autopilot.State) (voters, learners []*autopilot.ServerState) {
	for _, srv := range s.Servers {
		if srv.HasVotingRights() {
			voters = append(voters, srv)
		} else {
			learners = append(learners, srv)
		}
	}
	order := func(a, b *autopilot.ServerState) int {
		if l := s.Leader; a.Server.ID == l || b.Server.ID == l {
			return cmp.Compare(rank(b.Server.ID == l), rank(a.Server.ID == l))
		}
		return cmp.Or(cmp.Compare(siteOf(a), siteOf(b)), cmp.Compare(a.Server.ID, b.Server.ID))
	}
	slices.SortFunc(voters, order)
	slices.SortFunc(learners, order)
	return voters, learners
}

func rank(first bool) int {
	if first {
		return 1
	}
	return 0
}

func siteOf(s *autopilot.ServerState) string { return s.Server.Meta[MetaSite] }

// candidates are learners that are well, one for each site that has no voter.
func (p *Promoter) candidates(learners []*autopilot.ServerState, taken map[string]bool, atLeast time.Duration) []*autopilot.ServerState {
	var out []*autopilot.ServerState
	used := make(map[string]bool)
	for _, l := range learners {
		site := siteOf(l)
		if site == "" || taken[site] || used[site] || !l.Health.IsStable(p.now(), atLeast) {
			continue
		}
		used[site] = true
		out = append(out, l)
	}
	return out
}

// alive gives up to n of the candidates that answer.
func (p *Promoter) alive(candidates []*autopilot.ServerState, n int) []*autopilot.ServerState {
	if len(candidates) < n {
		return nil // not enough of them whatever they answer
	}
	var out []*autopilot.ServerState
	for _, c := range candidates {
		if len(out) >= n {
			break
		}
		if p.Answers == nil || p.Answers(c.Server.ID) {
			out = append(out, c)
		}
	}
	return out
}

// expendable gives the voter that is missed least: never the leader, an ill one
// first.
func (p *Promoter) expendable(voters []*autopilot.ServerState, leader raft.ServerID) *autopilot.ServerState {
	var worst *autopilot.ServerState
	for _, v := range voters {
		if v.Server.ID == leader {
			continue
		}
		if worst == nil || !v.Health.Healthy {
			worst = v
		}
	}
	return worst
}

// silent gives a voter that has been ill for long enough to lose its vote.
func (p *Promoter) silent(voters []*autopilot.ServerState, leader raft.ServerID) *autopilot.ServerState {
	for _, v := range voters {
		if v.Server.ID != leader && !v.Health.Healthy && p.now().Sub(v.Health.StableSince) >= silentFor {
			return v
		}
	}
	return nil
}

// GetNodeTypes implements autopilot.Promoter.
func (p *Promoter) GetNodeTypes(_ *autopilot.Config, s *autopilot.State) map[raft.ServerID]autopilot.NodeType {
	types := make(map[raft.ServerID]autopilot.NodeType, len(s.Servers))
	for id, srv := range s.Servers {
		types[id] = Learner
		if srv.HasVotingRights() {
			types[id] = autopilot.NodeVoter
		}
	}
	return types
}

// FilterFailedServerRemovals implements autopilot.Promoter: silence is no reason
// to remove anybody (consul#5922, raft-autopilot#17).
func (p *Promoter) FilterFailedServerRemovals(*autopilot.Config, *autopilot.State, *autopilot.FailedServers) *autopilot.FailedServers {
	return &autopilot.FailedServers{}
}

// IsPotentialVoter implements autopilot.Promoter.
func (p *Promoter) IsPotentialVoter(t autopilot.NodeType) bool { return t == autopilot.NodeVoter }

// GetServerExt implements autopilot.Promoter.
func (p *Promoter) GetServerExt(*autopilot.Config, *autopilot.ServerState) any { return nil }

// GetStateExt implements autopilot.Promoter.
func (p *Promoter) GetStateExt(*autopilot.Config, *autopilot.State) any { return nil }
