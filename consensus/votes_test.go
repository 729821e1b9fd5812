package consensus

import (
	"errors"
	"slices"
	"testing"

	"github.com/hashicorp/raft"
)

// TestStatus_VotersAreCommittedOnes: a vote that is given and that no majority
// has yet might be lost with one node.
func TestStatus_VotersAreCommittedOnes(t *testing.T) {
	m, all := three(t)
	d := m.site("syd")
	d.join(all[0])
	leader, others := leaderOf(t, all)
	await(t, "the fourth is a learner", func() bool { return slices.Contains(leader.node.Status().Learners, d.id.ID) })
	for _, s := range append(slices.Clone(others), d) {
		m.net.set(leader.name, s.name, true)
	}
	id := raft.ServerID(d.id.ID.String())
	f := leader.node.raft.AddVoter(id, raft.ServerAddress(id), 0, 0)
	await(t, "raft counts on the vote", func() bool { v, _ := leader.node.servers(); return len(v) == 4 })
	if s := leader.node.Status(); len(s.Voters) != 3 {
		t.Errorf("%d voters, one of them nobody else knows of", len(s.Voters))
	}
	if err := f.Error(); err == nil {
		t.Error("the change was made without a majority")
	}
}

// TestChange_OnTopOfWhatWasSeen: another change in between, or another term, and
// nothing is done.
func TestChange_OnTopOfWhatWasSeen(t *testing.T) {
	_, all := three(t)
	leader, others := leaderOf(t, all)
	n := leader.node
	demote := func(s *site) func() raft.IndexFuture {
		return func() raft.IndexFuture {
			return n.raft.DemoteVoter(raft.ServerID(s.id.ID.String()), 0, n.cfg.Profile.Election)
		}
	}
	_, at, err := n.configuration()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.change(at, demote(others[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := n.change(at, demote(others[1])); !errors.Is(err, errVotesChanged) {
		t.Errorf("a second change of the same configuration: %v", err)
	}
	at = n.votesNow()
	at.term--
	if _, err := n.change(at, demote(others[1])); !errors.Is(err, errVotesChanged) {
		t.Errorf("a change that another term has judged: %v", err)
	}
}
