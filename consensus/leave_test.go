package consensus

import (
	"errors"
	"strings"
	"testing"

	"github.com/portolan/portolan/consensus/command"
)

// leave announces at this site that another one is about to be removed, or takes it
// back; it gives the announcement's index, as this site has it.
func (s *site) leave(of *site, withdraw bool) uint64 {
	s.t.Helper()
	row, ok := s.node.State().View().Site(of.name)
	if !ok {
		s.t.Fatalf("%s knows no site %s", s.name, of.name)
	}
	if _, err := s.node.Propose(s.t.Context(), "user:ann", &command.SiteLeave{Id: row.ID, Withdraw: withdraw}); err != nil {
		s.t.Fatalf("announce at %s that %s leaves: %v", s.name, of.name, err)
	}
	return s.leavingIndex(of)
}

// leavingIndex gives the index of the last announcement of a site's removal, as this
// site has it; 0: there is none.
func (s *site) leavingIndex(of *site) uint64 {
	row, _ := s.node.State().View().Site(of.name)
	if len(row.Removals) == 0 {
		return 0
	}
	return row.Removals[len(row.Removals)-1].Index
}

// TestRemove_LeaderDiesAfterTheAnnouncement: the next leader holds a removal to what
// was announced, and called off, before it led.
func TestRemove_LeaderDiesAfterTheAnnouncement(t *testing.T) {
	t.Parallel()
	m, all := three(t)
	victim := m.site("syd")
	victim.join(all[1])
	removeAt := func(at *site, announced uint64) error {
		_, err := at.node.Propose(t.Context(), "user:ann", &command.NodeRemove{NodeId: victim.id.ID[:], Announced: announced})
		return err
	}
	calledOff := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, &command.Error{Code: command.CodeConflict}) || !strings.Contains(err.Error(), "was called off meanwhile") {
			t.Fatalf("%s: %v", what, err)
		}
	}
	dead, living := leaderOf(t, all)
	first := dead.leave(victim, false)
	dead.leave(victim, true)
	second := dead.leave(victim, false)
	if first == 0 || second <= first {
		t.Fatalf("announced at %d and %d", first, second)
	}
	dead.kill()
	next, _ := leaderOf(t, living)
	calledOff("the announcement that the dead leader called off", removeAt(next, first))
	if index := next.leavingIndex(victim); index != second {
		t.Fatalf("at the next leader it is announced at %d, want %d", index, second)
	}
	next.leave(victim, true)
	calledOff("the announcement that the next leader called off", removeAt(next, second))
	third := next.leave(victim, false)

	// The old leader comes back with what it had: it hears of the third one, by which
	// the site is removed, also through it.
	dead.start(nil)
	await(t, "the old leader knows", func() bool { return dead.leavingIndex(victim) == third })
	calledOff("the old leader's own announcement, at itself", removeAt(dead, second))
	if err := removeAt(dead, third); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		s.node.CutOff(victim.id.ID)
	}
	awaitGone(t, victim, all...)
	for _, s := range all {
		await(t, s.name+" knows no such site", func() bool { _, ok := s.node.State().View().Site(victim.name); return !ok })
	}
}
