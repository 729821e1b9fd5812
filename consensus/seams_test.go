package consensus

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// This file is about removal, drain, recovery and old logs at the same time.

// TestRemoved_OnlyVoterComesBack: the only voter of a mesh was lost, the learner
// recovered, and the lost site removed. When it comes back after all it needs
// nobody's vote to lead, and takes no edits all the same.
func TestRemoved_OnlyVoterComesBack(t *testing.T) {
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	mesh := a.node.State().View().Mesh().ID
	a.mustCreateProject("one")
	await(t, "the edit is at the learner", func() bool { return b.has("one") })
	a.stop()
	b.stop()
	b.recover(mesh, "ams")
	b.start(nil)
	await(t, "the recovered node leads", func() bool { return b.node.Status().IsLeader })
	b.mustRemove(a)
	a.start(nil)
	awaitTold(t, a)
	b.mustCreateProject("after")
}

// TestRemoved_VotersComeBackTogether: two of three were lost and removed; they
// are a majority of what they know, and lead nothing.
func TestRemoved_VotersComeBackTogether(t *testing.T) {
	_, all := three(t)
	mesh := all[0].node.State().View().Mesh().ID
	last, gone := all[2], all[:2]
	for _, s := range all {
		s.stop()
	}
	last.recover(mesh, "ams", "fra")
	last.start(nil)
	await(t, "the recovered node leads", func() bool { return last.node.Status().IsLeader })
	for _, s := range gone {
		last.mustRemove(s)
	}
	for _, s := range gone {
		s.start(nil)
	}
	for _, s := range gone {
		awaitTold(t, s)
	}
	for _, s := range gone {
		if s.node.guard.is() != noPart || s.node.Status().IsLeader {
			t.Errorf("%s takes part in a mesh that removed it", s.name)
		}
	}
}

// TestDrain_OfARecoveredSite: it drained before; the other site comes back with a
// log that it has to begin anew, and answers calls long before it acknowledges
// anything: it is given the lead when it can take it, and not before.
func TestDrain_OfARecoveredSite(t *testing.T) {
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	mesh := a.node.State().View().Mesh().ID
	b.drain(a, true)
	await(t, "the learner knows of it", func() bool { return b.node.State().View().Draining(b.id.ID) })
	a.stop()
	b.stop()
	b.recover(mesh, "ams")
	b.start(nil)
	await(t, "the recovered node leads", func() bool { return b.node.Status().IsLeader })
	// The learner that was recovered is followed if people say so.
	if err := Follow(a.dir, a.id.ID, "fra"); err != nil {
		t.Fatal(err)
	}
	a.start(nil)
	a.beginAnew()
	await(t, "the other site leads, and votes alone", func() bool {
		s := a.node.Status()
		return s.IsLeader && len(s.Voters) == 1 && s.Voters[0] == a.id.ID
	})
	a.mustCreateProject("after")
}

// TestPing_OfANodeThatTakesNoPart: whoever gives votes sees that it cannot count
// on it.
func TestPing_OfANodeThatTakesNoPart(t *testing.T) {
	_, all := three(t)
	leader, others := leaderOf(t, all)
	p := &pilot{node: leader.node}
	if !p.answers(t.Context(), raft.ServerID(others[0].id.ID.String())) {
		t.Fatal("a well follower does not answer")
	}
	others[0].node.guard.set(learns, 0)
	if p.answers(t.Context(), raft.ServerID(others[0].id.ID.String())) {
		t.Error("a node that takes no part would be given a vote")
	}
	if got := leader.node.answering(t.Context(), idsOf(others)); slices.Contains(got, others[0].id.ID) {
		t.Error("a removal would count on a node that takes no part")
	}
	others[0].node.guard.set(takesPart, 0)
}

// TestRemove_SeveralAtOnce: each removal alone leaves a majority that answers,
// all of them together do not.
func TestRemove_SeveralAtOnce(t *testing.T) {
	m, all := three(t)
	for _, name := range []string{"nyc", "syd"} {
		s := m.site(name)
		s.join(all[0])
		all = append(all, s)
	}
	if _, err := all[0].node.Propose(t.Context(), "user:ann", &command.VotersSet{Voters: 5}); err != nil {
		t.Fatal(err)
	}
	awaitVoters(t, all, 5)
	leader, others := leaderOf(t, all)
	others[3].stop()
	errs := make([]error, 3)
	var wg sync.WaitGroup
	for i, victim := range others[:3] {
		wg.Go(func() { errs[i] = leader.remove(victim) })
	}
	wg.Wait()
	refused := 0
	for _, err := range errs {
		switch {
		case errors.Is(err, &command.Error{Code: command.CodeConflict}):
			refused++
		case err != nil:
			t.Errorf("a removal: %v", err)
		}
	}
	if refused == 0 {
		t.Error("all were removed, and too few voters are left")
	}
	if !leader.node.Status().IsLeader {
		t.Fatal("the leader has lost its majority")
	}
	leader.mustCreateProject("after")
}

func idsOf(sites []*site) []identity.NodeID {
	var out []identity.NodeID
	for _, s := range sites {
		out = append(out, s.id.ID)
	}
	return out
}
