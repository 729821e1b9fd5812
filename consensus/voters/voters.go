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
	// Least is the number of voters that outlives one of them, Most the number
	// that outlives two. More would only make edits slower.
	Least = 3
	Most  = 5

	// A set of voters nearer to one another is worth the moment with one vote less
	// if a majority is nearer by gainPart and by gainLeast: what is less is noise of
	// the measurement, and nobody notices it.
	gainPart  = 0.25
	gainLeast = 10 * time.Millisecond
	// lasting is for how long it must have been so without a break.
	lasting = 10 * time.Minute
)

// Promoter implements autopilot.Promoter. It remembers one thing from one call
// to the next: since when nearer voters have been in sight.
type Promoter struct {
	// Sites gives the number of sites that have a node which may vote.
	Sites func() int
	// Want gives how many voters a mesh with as many sites gets: 3, or Most.
	// nil: 3.
	Want func() int
	// Trip gives the round trip between two servers; nil: none is known.
	Trip Distances
	// Draining says which servers want to be left in peace: they get no vote, and
	// give theirs to one that is well. nil: none.
	Draining func(raft.ServerID) bool
	// Exchange takes the vote of a server that is well and gives it to another, in
	// this order and at once: autopilot would promote first, and let seconds pass.
	// nil: votes of servers that are well do not move.
	Exchange func(from, to raft.ServerID)
	// Lasting is for how long nearer voters must have been in sight before votes
	// move to them; 0: ten minutes.
	Lasting time.Duration
	// Answers asks a server for a sign of life, now. What is known of its health
	// is some seconds old, and from one voter to three the mesh goes by way of
	// two: a second one that has just died would take the majority with it. nil
	// believes what is known.
	Answers func(raft.ServerID) bool
	// Now is the clock that autopilot's times are compared with; nil is time.Now.
	Now func() time.Time

	nearer      []raft.ServerID // the set that would be better, sorted
	nearerSince time.Time
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
	case sites < Least:
		return 1
	case p.Want != nil && p.Want() >= Most && sites >= Most && have >= Least:
		return Most // by way of three, which is two even numbers shorter
	}
	return Least
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
	candidates := p.alive(p.nearest(kept, p.candidates(learners, taken, settled), target), missing)
	moved := false
	switch {
	case missing > 0 && len(candidates) >= missing:
		for _, c := range candidates[:missing] {
			changes.Promotions = append(changes.Promotions, c.Server.ID)
		}
	case missing == 1 && len(p.candidates(learners, taken, 0)) > 0:
		// An even number, as between the steps of an exchange, and somebody who will
		// complete it soon.
	case missing < 0 || len(kept)%2 == 0:
		// Too many, or an even number that nobody can complete.
		if v := p.expendable(kept, s.Leader); v != nil {
			changes.Demotions = append(changes.Demotions, v.Server.ID)
		}
	case missing == 0 && target > 1:
		if v := p.silent(kept, s.Leader); v != nil {
			if c := p.successorOf(v, kept, learners, taken, target); c != "" {
				changes.Demotions, changes.Promotions = []raft.ServerID{v.Server.ID}, []raft.ServerID{c}
			}
		} else if v := p.leaving(kept, s.Leader); v != nil {
			if c := p.successorOf(v, kept, learners, taken, target); c != "" {
				p.move(kept, v.Server.ID, c, s.Leader)
			}
		} else {
			changes.Leader, moved = p.approach(s, kept, learners, target), true
		}
	}
	if !moved {
		p.nearer = nil
	}
	return changes
}

// successorOf gives the learner that is best placed to take a voter's vote over,
// of those that answer; empty: there is none.
func (p *Promoter) successorOf(v *autopilot.ServerState, kept, learners []*autopilot.ServerState, taken map[string]bool, target int) raft.ServerID {
	delete(taken, siteOf(v)) // another node of the same site may take over
	rest := slices.DeleteFunc(slices.Clone(kept), func(o *autopilot.ServerState) bool { return o == v })
	c := p.alive(p.nearest(rest, p.candidates(learners, taken, settledLong), target), 1)
	if len(c) == 0 {
		return ""
	}
	return c[0].Server.ID
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
		if site == "" || taken[site] || used[site] || p.drains(l) || !l.Health.IsStable(p.now(), atLeast) {
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
// first, then one that drains, then the one without which the others are nearest
// to one another.
func (p *Promoter) expendable(voters []*autopilot.ServerState, leader raft.ServerID) *autopilot.ServerState {
	var worst *autopilot.ServerState
	var least Cost
	known, why := false, 0
	for _, v := range voters {
		if v.Server.ID == leader {
			continue
		}
		r := 0
		switch {
		case !v.Health.Healthy:
			r = 2
		case p.drains(v):
			r = 1
		}
		cost, ok := CostOf(idsOf(slices.DeleteFunc(slices.Clone(voters), func(o *autopilot.ServerState) bool { return o == v })), p.Trip)
		if worst == nil || r > why || r == why && ok && known && cost.less(least) {
			worst, least, known, why = v, cost, ok, r
		}
	}
	return worst
}

// leaving gives a voter that wants to be left in peace. The leader hands over by
// itself before it drains.
func (p *Promoter) leaving(voters []*autopilot.ServerState, leader raft.ServerID) *autopilot.ServerState {
	for _, v := range voters {
		if v.Server.ID != leader && p.drains(v) {
			return v
		}
	}
	return nil
}

func (p *Promoter) drains(s *autopilot.ServerState) bool {
	return p.Draining != nil && p.Draining(s.Server.ID)
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
