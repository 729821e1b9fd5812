package voters

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// approach brings the votes nearer to one another, one exchange at a time, and
// gives the server that shall lead where the leader itself is in the way.
//
// It does nothing while anything is ill, drains or is not measured, and only
// what has been worth it for long. Exchanges towards the same set come at least
// that long after one another.
func (p *Promoter) approach(s *autopilot.State, kept, learners []*autopilot.ServerState, target int) (leader raft.ServerID) {
	set, ok := p.inSight(s, kept, learners, target)
	if !ok {
		p.nearer = nil
		return ""
	}
	key := slices.Clone(set)
	slices.Sort(key)
	now := p.now()
	if !slices.Equal(key, p.nearer) {
		p.nearer, p.nearerSince = key, now
	}
	lasts := p.Lasting
	if lasts == 0 {
		lasts = lasting
	}
	if now.Sub(p.nearerSince) < lasts {
		return ""
	}
	from, to := p.step(idsOf(kept), set, s.Leader)
	if from == "" {
		// All that is left to exchange is the leader: it hands over to the one of the
		// rest that is nearest to a majority, and its successor goes on.
		if to = p.successor(set, idsOf(kept)); to == "" || !p.answer(to) {
			return ""
		}
		p.nearer = nil
		return to
	}
	if p.move(kept, from, to, s.Leader) {
		p.nearer = nil
	}
	return ""
}

// move gives the vote of a voter that is well to another server. There is one
// vote less for a moment: all the others must be there.
func (p *Promoter) move(kept []*autopilot.ServerState, from, to, leader raft.ServerID) bool {
	if p.Exchange == nil {
		return false
	}
	for _, v := range kept {
		if id := v.Server.ID; id != leader && id != from && (!v.Health.Healthy || !p.answer(id)) {
			return false
		}
	}
	if !p.answer(to) {
		return false
	}
	p.Exchange(from, to)
	return true
}

// inSight gives a set of voters that is nearer by enough.
func (p *Promoter) inSight(s *autopilot.State, kept, learners []*autopilot.ServerState, target int) ([]raft.ServerID, bool) {
	if p.Exchange == nil || p.Trip == nil {
		return nil, false
	}
	for _, srv := range s.Servers {
		if !srv.Health.Healthy {
			return nil, false
		}
	}
	have, ok := CostOf(idsOf(kept), p.Trip)
	if !ok {
		return nil, false
	}
	voting := make(map[string]bool, len(kept))
	for _, v := range kept {
		voting[siteOf(v)] = true
	}
	// A vote does not move within a site: it is as near there. That the others were
	// well for longer shows by how long it lasts.
	others := idsOf(p.candidates(learners, voting, settled))
	for _, o := range others {
		for _, b := range append(idsOf(kept), others...) {
			if _, known := p.Trip(o, b); o != b && !known {
				return nil, false
			}
		}
	}
	set, cost, ok := Choose(nil, append(idsOf(kept), others...), target, p.Trip)
	gain := have.Worst - cost.Worst
	return set, ok && gain >= gainLeast && float64(gain) >= gainPart*float64(have.Worst)
}

// step gives the exchange towards set after which the voters are nearest to one
// another; none if only the leader is not in set.
func (p *Promoter) step(kept, set []raft.ServerID, leader raft.ServerID) (from, to raft.ServerID) {
	var least Cost
	for i, out := range kept {
		if out == leader || slices.Contains(set, out) {
			continue
		}
		for _, in := range set {
			if slices.Contains(kept, in) {
				continue
			}
			next := slices.Clone(kept)
			next[i] = in
			if c, ok := CostOf(next, p.Trip); ok && (from == "" || c.less(least)) {
				from, to, least = out, in, c
			}
		}
	}
	return from, to
}

// successor gives the voter of both sets that is nearest to a majority of set.
func (p *Promoter) successor(set, kept []raft.ServerID) (best raft.ServerID) {
	var least time.Duration
	for _, id := range set {
		if !slices.Contains(kept, id) {
			continue
		}
		var trips []time.Duration
		for _, o := range set {
			if d, ok := p.Trip(id, o); ok && o != id {
				trips = append(trips, d)
			}
		}
		slices.Sort(trips)
		if others := len(set) / 2; others <= len(trips) && (best == "" || trips[others-1] < least) {
			best, least = id, trips[others-1]
		}
	}
	return best
}

// nearest orders candidates: those first that with kept make the set of size that
// costs least. Without distances the order stays.
func (p *Promoter) nearest(kept, candidates []*autopilot.ServerState, size int) []*autopilot.ServerState {
	set, _, ok := Choose(idsOf(kept), idsOf(candidates), size, p.Trip)
	if !ok {
		return candidates
	}
	out := slices.Clone(candidates)
	slices.SortStableFunc(out, func(a, b *autopilot.ServerState) int {
		return rank(slices.Contains(set, b.Server.ID)) - rank(slices.Contains(set, a.Server.ID))
	})
	return out
}

func (p *Promoter) answer(id raft.ServerID) bool { return p.Answers == nil || p.Answers(id) }

func idsOf(servers []*autopilot.ServerState) []raft.ServerID {
	out := make([]raft.ServerID, len(servers))
	for i, s := range servers {
		out[i] = s.Server.ID
	}
	return out
}
