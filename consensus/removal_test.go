package consensus

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/voters"
	"github.com/portolan/portolan/node/wire"
)

// remove takes victim out of the mesh, at a node that is not it.
func (s *site) remove(victim *site) error {
	_, err := s.node.Propose(s.t.Context(), "user:ann", &command.NodeRemove{NodeId: victim.id.ID[:]})
	return err
}

func (s *site) mustRemove(victim *site) {
	s.t.Helper()
	if err := s.remove(victim); err != nil {
		s.t.Fatalf("remove %s at %s: %v", victim.name, s.name, err)
	}
	// What the node's cut-off does.
	s.node.CutOff(victim.id.ID)
}

func (s *site) drain(at *site, drain bool) {
	s.t.Helper()
	row, ok := at.node.State().View().Site(s.name)
	if !ok {
		s.t.Fatalf("no site %s", s.name)
	}
	if _, err := at.node.Propose(s.t.Context(), "user:ann", &command.SiteDrain{Id: row.ID, Drain: drain}); err != nil {
		s.t.Fatal(err)
	}
}

// awaitGone waits until nobody has the node in raft's configuration.
func awaitGone(t *testing.T, victim *site, rest ...*site) {
	t.Helper()
	await(t, victim.name+" is no server any more", func() bool {
		for _, s := range rest {
			st := s.node.Status()
			if slices.Contains(st.Voters, victim.id.ID) || slices.Contains(st.Learners, victim.id.ID) {
				return false
			}
		}
		return true
	})
}

// awaitTold waits until a node knows that it was removed, and has said so.
func awaitTold(t *testing.T, s *site) {
	t.Helper()
	var log strings.Builder
	await(t, s.name+" says that it was removed", func() bool {
		log.WriteString(s.lines.take())
		r, ok := s.node.Removed()
		return ok && r.Site == s.name && r.By == "user:ann" && strings.Contains(log.String(), "was removed from the mesh at ")
	})
	if n := strings.Count(log.String(), "was removed from the mesh at "); n != 1 {
		t.Errorf("it said so %d times", n)
	}
	_, err := s.createProject("late")
	if !errors.Is(err, &command.Error{Code: command.CodeDenied}) || !strings.Contains(err.Error(), "join with an empty data directory") {
		t.Errorf("an edit at the removed node: %v", err)
	}
}

// TestRemove_GoesOnRunning: a voter that is removed is cut off by all, told, and
// nobody notices otherwise.
func TestRemove_GoesOnRunning(t *testing.T) {
	t.Parallel()
	m, all := three(t)
	d := m.site("syd")
	d.join(all[1])
	_, others := leaderOf(t, all)
	victim, by := others[0], others[1]
	by.mustRemove(victim)
	rest := slices.DeleteFunc(append(all, d), func(s *site) bool { return s == victim })
	awaitGone(t, victim, rest...)
	awaitTold(t, victim)
	for _, s := range rest {
		if s.node.IsMember(victim.id.ID) {
			t.Errorf("%s would still let it in", s.name)
		}
	}
	await(t, "the fourth site votes in its place", func() bool {
		v := by.node.Status().Voters
		return len(v) == 3 && slices.Contains(v, d.id.ID)
	})
	by.mustCreateProject("after")

	// Neither with a new token nor with the one that it came by.
	_, err := victim.tryJoin(victim.token(by))
	if !errors.Is(err, &command.Error{Code: command.CodeDenied}) || !strings.Contains(err.Error(), "a removed key never comes back") {
		t.Errorf("joining with the removed key: %v", err)
	}
	// Its raft connections are refused: with TLS 1.3 the dialling side learns of it
	// when it reads.
	c, err := wire.DialRaft(t.Context(), by.addr(), by.id.ID, victim.id, everybody{})
	if err == nil {
		if err = c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err = c.Read(make([]byte, 1))
		_ = c.Close()
	}
	var slow net.Error
	if err == nil || (errors.As(err, &slow) && slow.Timeout()) {
		t.Errorf("a raft connection with the removed key: %v", err)
	}
	if status := victim.node.Status(); status.IsLeader {
		t.Error("it leads itself")
	}
}

// TestRemove_Leader: leadership moves first.
func TestRemove_Leader(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	// Asked at the leader itself: the answer to its own removal gets to it.
	if err := leader.remove(leader); err != nil {
		t.Fatalf("remove the leader at itself: %v", err)
	}
	for _, s := range others {
		s.node.CutOff(leader.id.ID)
	}
	awaitGone(t, leader, others...)
	awaitTold(t, leader)
	next, _ := leaderOf(t, others)
	next.mustCreateProject("after")
}

// TestRemove_OnlyVoter: of two sites one votes; if it is that one that goes, the
// other is made a voter and leads before.
func TestRemove_OnlyVoter(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	b.mustRemove(a)
	awaitGone(t, a, b)
	awaitTold(t, a)
	await(t, "the other leads alone", func() bool {
		s := b.node.Status()
		return s.IsLeader && len(s.Voters) == 1
	})
	b.mustCreateProject("alone")
	if err := b.remove(b); !errors.Is(err, &command.Error{Code: command.CodeInvalid}) || !strings.Contains(err.Error(), "the last one that holds content") {
		t.Errorf("removing the last site: %v", err)
	}
}

// TestRemove_NeedsMajority: a voter goes only if the rest can go on.
func TestRemove_NeedsMajority(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	dead, living := others[0], others[1]
	dead.kill()
	err := leader.remove(living)
	if !errors.Is(err, &command.Error{Code: command.CodeConflict}) || !strings.Contains(err.Error(), "bring "+dead.name+" back first") {
		t.Fatalf("removing one of two living voters: %v", err)
	}
	if _, member := leader.node.State().View().Node(living.id.ID); !member || len(leader.node.Status().Voters) != 3 {
		t.Fatal("something was changed")
	}
	leader.mustRemove(dead)
	living.node.CutOff(dead.id.ID)
	awaitGone(t, dead, leader, living)
	leader.mustRemove(living)
	awaitGone(t, living, leader)
	awaitTold(t, living)
	leader.mustCreateProject("alone")

	// The lost one comes back with all that it had: it is told, and that is all.
	dead.start(nil)
	awaitTold(t, dead)
	if _, gone := dead.node.State().View().Removed(dead.id.ID); gone {
		t.Error("the removed node got the state after its removal")
	}
}

// TestRemove_BeforeItCame: a join that was never finished can be taken back.
func TestRemove_BeforeItCame(t *testing.T) {
	t.Parallel()
	m, all := three(t)
	ghost := m.site("syd")
	if _, err := ghost.tryJoin(ghost.token(all[0])); err != nil {
		t.Fatal(err)
	}
	all[1].mustRemove(ghost)
	awaitGone(t, ghost, all...)
	again := m.site("syd")
	again.join(all[2])
}

// TestRemove_HearsayDoesNotBringItBack: what members that are behind tell does not
// make a removed node one again.
func TestRemove_HearsayDoesNotBringItBack(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	_, others := leaderOf(t, all)
	victim, s := others[0], others[1]
	s.mustRemove(victim)
	s.node.hear([]*command.Node{victim.record}, s.node.State().View().Index()+100)
	if s.node.IsMember(victim.id.ID) {
		t.Error("it would be let in")
	}
	if addr, ok := s.node.addrOf(victim.id.ID); ok {
		t.Errorf("it would be dialled at %s", addr)
	}
}

// TestDrain_LeadershipMoves, and comes back for no election.
func TestDrain_LeadershipMoves(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	leader.drain(others[0], true)
	await(t, "another leads", func() bool {
		s := leader.node.Status()
		return !s.IsLeader && !s.Leader.IsZero()
	})
	if n := len(others[0].node.Status().Voters); n != 3 {
		t.Errorf("%d voters: a vote that nobody can take over stays", n)
	}
	// The other one that does not drain leads on when the leader stops.
	next, _ := leaderOf(t, all)
	if next == leader {
		t.Fatal("the draining site leads again")
	}
	if err := next.shutdown(); err != nil {
		t.Fatal(err)
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(s *site) bool { return s == next })
	await(t, "the third leads", func() bool {
		for _, s := range rest {
			if st := s.node.Status(); st.IsLeader {
				return s != leader
			}
		}
		return false
	})
}

// TestDrain_VoteMoves: a spare learner takes over the vote, and none is given to
// a site that drains.
func TestDrain_VoteMoves(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	a.drain(b, true)
	await(t, "the other site leads and votes alone", func() bool {
		s := b.node.Status()
		return s.IsLeader && len(s.Voters) == 1 && s.Voters[0] == b.id.ID
	})
	// A third site: three could vote, but one of them drains.
	c := m.site("sgp")
	c.join(b)
	pilot := &promoter{node: b.node, ballot: &ballot{Raft: b.node.raft, node: b.node}, Promoter: voters.Promoter{Sites: func() int { return 3 }, Draining: b.node.draining}}
	if got := pilot.CalculatePromotionsAndDemotions(nil, pilotState(b, a, b, c)); len(got.Promotions)+len(got.Demotions) > 0 {
		t.Errorf("while one of three drains: %+v", got)
	}
	a.drain(c, false)
	if got := pilot.CalculatePromotionsAndDemotions(nil, pilotState(b, a, b, c)); len(got.Promotions) != 2 {
		t.Errorf("once it drains no more: %+v", got)
	}
	await(t, "three vote once it drains no more", func() bool { return len(b.node.Status().Voters) == 3 })
}

// pilotState is what autopilot sees of well nodes of which one votes and leads.
func pilotState(leader *site, all ...*site) *autopilot.State {
	s := &autopilot.State{Leader: raft.ServerID(leader.id.ID.String()), Servers: map[raft.ServerID]*autopilot.ServerState{}}
	for _, x := range all {
		id := raft.ServerID(x.id.ID.String())
		srv := &autopilot.ServerState{Server: autopilot.Server{ID: id, Meta: map[string]string{voters.MetaSite: x.name}}, State: autopilot.RaftNonVoter,
			Health: autopilot.ServerHealth{Healthy: true, StableSince: time.Now().Add(-time.Hour)}}
		if x == leader {
			srv.State, s.Voters = autopilot.RaftLeader, []raft.ServerID{id}
		}
		s.Servers[id] = srv
	}
	return s
}

// TestRemoved_StrangersLearnNothing: only a removed key hears of its removal.
func TestRemoved_StrangersLearnNothing(t *testing.T) {
	t.Parallel()
	m, all := three(t)
	stranger := m.site("xxx")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := dialControl(all[0].addr(), wire.Credentials(stranger.id, all[0].id.ID), func(ctx context.Context, addr string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, err = NewControlClient(conn).Ping(ctx, &PingRequest{})
	if err == nil || !strings.Contains(err.Error(), "only members of the mesh may ask this") {
		t.Errorf("a stranger's ping: %v", err)
	}
	var gone *removedError
	if errors.As(fromStatus(err), &gone) {
		t.Error("a stranger is told of a removal")
	}
}
