package consensus

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/consensus/command"
)

// restartWith starts all sites again with other numbers for their profile.
func restartWith(t *testing.T, all []*site, p Profile) {
	t.Helper()
	for _, s := range all {
		if err := s.shutdown(); err != nil {
			t.Fatal(err)
		}
		s.profile = p
	}
	for _, s := range all {
		s.start(nil)
	}
}

// TestCommits_AreToldAtOnce: with a commit timeout of two seconds, the followers
// would hear of a commit from raft two to four seconds later.
func TestCommits_AreToldAtOnce(t *testing.T) {
	_, all := three(t)
	slow := LAN
	slow.Lease, slow.Election, slow.Commit = 2*time.Second, 2*time.Second, 2*time.Second
	restartWith(t, all, slow)
	_, others := leaderOf(t, all)
	others[0].insist("warm-up")
	best := time.Hour
	for i := range 10 {
		start := time.Now()
		others[0].mustCreateProject([]string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}[i])
		for _, s := range all {
			await(t, "the edit at "+s.name, func() bool { return s.node.State().View().Index() >= others[0].node.State().View().Index() })
		}
		best = min(best, time.Since(start))
	}
	if best > slow.Commit/2 {
		t.Errorf("visible everywhere after %s at best: notices do not arrive", best)
	}
	// Refusals are entries too.
	best = time.Hour
	for range 5 {
		start := time.Now()
		if _, err := others[1].createProject("a"); !errors.Is(err, &command.Error{Code: command.CodeExists}) {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	if best > slow.Commit/2 {
		t.Errorf("refused after %s at best", best)
	}
}

// TestCommits_RaftDecides: a notice changes nothing unless it is what the leader
// of this term could have said about an entry that is here.
func TestCommits_RaftDecides(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	others[0].mustCreateProject("one")
	n := others[0].node
	await(t, "the log is applied", func() bool { return n.raft.CommitIndex() == n.raft.LastIndex() })
	term, commit := n.raft.CurrentTerm(), n.raft.CommitIndex()
	other := others[1].id.ID
	for name, p := range map[string]notice{
		"an index that is not here":    {leader.id.ID, commit + 1000, term},
		"an older term":                {leader.id.ID, commit + 1, term - 1},
		"an entry of another term":     {leader.id.ID, commit, term - 1},
		"an entry that is known":       {leader.id.ID, commit, term},
		"an old leader about the past": {other, 1, 1},
	} {
		n.commits.handOn(p)
		if got := n.raft.CommitIndex(); got < commit || n.raft.CurrentTerm() != term || n.raft.State() != raft.Follower {
			t.Fatalf("%s: commit %d, term %d, %s", name, got, n.raft.CurrentTerm(), n.raft.State())
		}
		if _, id := n.raft.LeaderWithID(); string(id) != leader.id.ID.String() {
			t.Fatalf("%s: %s leads now", name, id)
		}
	}
	// The leader itself listens to no notice of its own.
	l := leader.node
	l.commits.heard(leader.id.ID, l.raft.CommitIndex(), term)
	l.commits.mu.Lock()
	defer l.commits.mu.Unlock()
	if l.commits.pending != (notice{}) {
		t.Fatalf("the leader would tell its own raft: %+v", l.commits.pending)
	}
}

func TestNotice_Order(t *testing.T) {
	a, b, c := notice{term: 2, index: 5}, notice{term: 2, index: 6}, notice{term: 3, index: 1}
	if !b.after(a) || a.after(b) || !c.after(b) || a.after(a) {
		t.Fatal("later terms first, then later entries")
	}
}
