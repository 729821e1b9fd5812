package consensus

import (
	"context"
	"slices"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// leaderlessFor is for how many election timeouts a majority within reach may go
// without a leader before that is news.
const leaderlessFor = 5

// news tells people what happens in the control plane, one line for each thing.
// That a single site is out of reach is gossip's to tell.
type news struct {
	node *Node

	leader  identity.NodeID // last one told; zero before the first
	since   time.Time       // since when there is none
	told    bool            // that there is none
	refused string          // why edits are refused; empty: they are not
	profile string          // the last one that was told not to fit, or to wait for a restart
	voter   bool
	removed bool
	counted bool // voter was set once
}

func (w *news) run(ctx context.Context) {
	tick := time.NewTicker(w.node.cfg.Profile.Election / 5)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.look(time.Now())
		}
	}
}

// look compares what is with what was told.
func (w *news) look(now time.Time) {
	n := w.node
	if r, gone := n.Removed(); gone != w.removed {
		if w.removed = gone; gone {
			n.log.Error(r.String())
		} else {
			n.log.Warn("this node is a member of the mesh again")
		}
	}
	if w.removed {
		return // all else follows from it
	}
	why := n.cutOff()
	if voters, _ := n.servers(); len(voters) == 0 {
		why = "" // it has no mesh yet: there is nobody to be cut off from, nor an edit to refuse
	}
	if why != w.refused {
		if w.refused = why; why == "" {
			n.log.Info("edits are taken again: the majority of the voting sites is in reach")
		} else {
			n.log.Warn("edits are refused here", "reason", why, "sites", n.reach.unreachable())
		}
	}
	w.lookAtLeader(now)
	w.lookAtProfile()
	voters, learners := n.servers()
	self := n.cfg.Identity.ID
	votes := slices.Contains(voters, self)
	if !votes && !slices.Contains(learners, self) {
		return // not added yet
	}
	if votes != w.voter && w.counted {
		if votes {
			n.log.Info("this node votes now", "voters", len(voters))
		} else {
			n.log.Info("this node votes no more: it learns", "voters", len(voters))
		}
	}
	w.voter, w.counted = votes, true
}

// lookAtProfile tells when the mesh's timings are others than this node's, and,
// at the leader, when the links need longer ones.
func (w *news) lookAtProfile() {
	n := w.node
	trip, have := n.RoundTrip(), n.state.View().Mesh().Profile
	told := ""
	switch {
	case have != "" && have != n.cfg.Profile.Name:
		told = "restart for " + have
	case trip > n.cfg.Profile.RoundTrip && n.cfg.Profile.Name != ProfileFor(trip).Name:
		told = "too near: " + ProfileFor(trip).Name
	}
	// What was told holds until there is something else to say: a figure that
	// goes up and down about its limit is one piece of news.
	if told == w.profile || told == "" {
		return
	}
	w.profile = told
	switch {
	case have != n.cfg.Profile.Name:
		n.log.Warn("the mesh's timings were changed: restart this node to take them", "profile", have, "in_use", n.cfg.Profile.Name)
	default:
		n.log.Warn("the voting sites are farther from one another than the mesh's timings are for: elections will come for no reason; change them with: portolan mesh profile set "+ProfileFor(trip).Name,
			"round_trip", trip.Round(time.Millisecond), "profile", n.cfg.Profile.Name, "for", n.cfg.Profile.RoundTrip)
	}
}

func (w *news) lookAtLeader(now time.Time) {
	n := w.node
	_, id := n.raft.LeaderWithID()
	leader, err := identity.ParseNodeID(string(id))
	if err != nil {
		switch {
		case w.since.IsZero():
			w.since = now
		case !w.told && w.refused == "" && !w.leader.IsZero() && now.Sub(w.since) >= leaderlessFor*n.cfg.Profile.Election:
			w.told = true
			n.log.Warn("the voting sites elect no leader: edits wait for one", "since", w.since.UTC().Format(time.RFC3339))
		}
		return
	}
	again := w.told
	w.since, w.told = time.Time{}, false
	if leader == w.leader && !again {
		return
	}
	w.leader = leader
	if leader == n.cfg.Identity.ID {
		return // term has said so
	}
	m, known := n.state.View().Node(leader)
	if !known {
		w.leader = identity.NodeID{} // told once its site is known
		return
	}
	n.log.Info("the mesh is led from another site now", "leader_site", m.Site, "node", leader, "term", n.raft.CurrentTerm())
}
