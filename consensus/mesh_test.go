package consensus

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/test/ports"
)

func TestMesh_EditsAnywhere_LeaderDies_NodeComesBack(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	others[0].mustCreateProject("one")
	for _, s := range all {
		await(t, "edit visible at "+s.name, func() bool { return s.has("one") })
	}
	leader.mustCreateProject("two")
	if _, err := others[1].createProject("one"); !errors.Is(err, &command.Error{Code: command.CodeExists}) {
		t.Fatalf("second project of that name: %v", err)
	}

	leader.kill()
	start := time.Now()
	others[0].insist("three")
	t.Logf("edits resumed after %s", time.Since(start))
	if !others[0].has("two") {
		t.Fatal("an acknowledged edit was lost with the leader")
	}

	leader.start(nil)
	if !leader.node.isReady() || !leader.has("two") {
		t.Fatal("a restarted node has not got its state at once")
	}
	await(t, "the old leader catches up", func() bool { return leader.has("three") })
	leader.mustCreateProject("four")
}

func TestMesh_GracefulStop_HandsOver(t *testing.T) {
	_, all := three(t)
	leader, others := leaderOf(t, all)
	if err := leader.shutdown(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	next, _ := leaderOf(t, others)
	if d := time.Since(start); d > LAN.Election {
		t.Errorf("the new leader needed %s: leadership was not handed over", d)
	}
	next.mustCreateProject("one")
}

// TestRestart_CutOff: a node that starts without anybody else has its state.
func TestRestart_CutOff_HasItsState(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	_, others := leaderOf(t, all)
	s := others[0]
	s.mustCreateProject("one")
	for _, o := range all {
		if err := o.shutdown(); err != nil {
			t.Fatal(err)
		}
	}
	s.start(nil)
	if !s.node.isReady() || !s.has("one") {
		t.Fatal("the node has not got its state without a leader")
	}
	if _, ok := s.node.State().View().User("admin"); !ok {
		t.Fatal("nobody could log in")
	}
}

func refusedFast(t *testing.T, s *site, want ...string) {
	t.Helper()
	// From the cut on: held for one election timeout at most.
	start := time.Now()
	_, err := s.createProject("held")
	if d := time.Since(start); d > LAN.Election+2*LAN.Lease {
		t.Errorf("%s: held for %s", s.name, d)
	}
	var u *command.Unavailable
	if !errors.As(err, &u) {
		t.Fatalf("%s: %v, want an Unavailable", s.name, err)
	}
	await(t, "the loss is noticed", func() bool { return !s.node.Status().Majority })
	best := time.Hour
	for range 5 {
		start = time.Now()
		_, err = s.createProject("refused")
		best = min(best, time.Since(start))
		if !errors.As(err, &u) || u.Indeterminate {
			t.Fatalf("%s: %v, want a plain Unavailable", s.name, err)
		}
	}
	if best > 100*time.Millisecond {
		t.Errorf("%s: refused after %s, want 100 ms", s.name, best)
	}
	if fmt.Sprint(u.Sites) != fmt.Sprint(want) {
		t.Errorf("%s: cannot reach %v, want %v", s.name, u.Sites, want)
	}
}

func TestCutOff_Follower(t *testing.T) {
	m, all := three(t)
	leader, others := leaderOf(t, all)
	cut, other := others[0], others[1]
	m.net.set(cut.name, leader.name, true)
	m.net.set(cut.name, other.name, true)
	names := []string{leader.name, other.name}
	if names[0] > names[1] {
		names[0], names[1] = names[1], names[0]
	}
	refusedFast(t, cut, names...)
	other.mustCreateProject("goes-on")
	m.net.set(cut.name, leader.name, false)
	m.net.set(cut.name, other.name, false)
	await(t, "the cut-off node catches up", func() bool { return cut.has("goes-on") })
	cut.insist("again")
}

func TestCutOff_Leader(t *testing.T) {
	m, all := three(t)
	leader, others := leaderOf(t, all)
	names := []string{others[0].name, others[1].name}
	for _, o := range others {
		m.net.set(leader.name, o.name, true)
	}
	refusedFast(t, leader, names...)
	others[0].insist("goes-on")
	for _, o := range others {
		m.net.set(leader.name, o.name, false)
	}
	await(t, "the old leader follows", func() bool { return leader.has("goes-on") })
	if leader.has("refused") {
		t.Error("an edit that was refused as not made was made")
	}
}

// TestCutOff_FromTheLeaderAlone: one link of three is cut. The majority is in
// reach, no election will come, and edits would wait for one for ever.
func TestCutOff_FromTheLeaderAlone(t *testing.T) {
	m, all := three(t)
	leader, others := leaderOf(t, all)
	m.net.set(leader.name, others[0].name, true)
	refusedFast(t, others[0], leader.name)
	if _, err := others[0].createProject("reason"); err == nil || !strings.Contains(err.Error(), "leading site") {
		t.Errorf("the reason is %v", err)
	}
	others[1].mustCreateProject("elsewhere")
	m.net.set(leader.name, others[0].name, false)
	others[0].insist("again")
}

func TestCutOff_LearnerOfOneVoter(t *testing.T) {
	m := newMesh(t)
	voter, learner := m.site("ams"), m.site("fra")
	voter.bootstrap()
	learner.join(voter)
	learner.mustCreateProject("one")
	if s := learner.node.Status(); s.Role != "learner" || s.LeaderSite != "ams" || len(s.Voters) != 1 {
		t.Fatalf("status: %+v", s)
	}
	m.net.set("ams", "fra", true)
	refusedFast(t, learner, "ams")
	voter.mustCreateProject("two")
	m.net.set("ams", "fra", false)
	await(t, "the learner catches up", func() bool { return learner.has("two") })
}

func TestRequestID_AppliedOnce(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	pid := identity.NewProjectID()
	env, err := command.New("user:admin", time.Now(), &command.ProjectCreate{ProjectId: pid[:], Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.node.propose(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.node.propose(t.Context(), env)
	if err != nil || again.ID != first.ID {
		t.Fatalf("the same request again: %+v, %v; want id %d", again, err, first.ID)
	}
}

// TestSnapshot_ToJoiner: a joiner that needs entries which are gone gets a
// snapshot, and comes to the same state.
func TestSnapshot_ToJoiner(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	rc := a.node.raft.ReloadableConfig()
	rc.TrailingLogs = 1
	if err := a.node.raft.ReloadConfig(rc); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		a.mustCreateProject(fmt.Sprintf("p%d", i))
	}
	if err := a.node.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, err := a.node.wal.FirstIndex(); err != nil || first < 10 {
		t.Fatalf("the log still begins at %d (%v)", first, err)
	}
	a.lines.take()
	b.join(a)
	for _, line := range alarms(a.lines.take()) {
		t.Errorf("what every such join brings is told as trouble: %s", line)
	}
	for i := range 20 {
		if !b.has(fmt.Sprintf("p%d", i)) {
			t.Fatalf("p%d is missing at the joiner", i)
		}
	}
	b.mustCreateProject("more")
	// And both start again from their snapshots.
	if err := b.shutdown(); err != nil {
		t.Fatal(err)
	}
	b.start(nil)
	if !b.has("more") || !b.has("p0") {
		t.Fatal("the joiner lost its state at the restart")
	}
}

func TestNodeUpdate_NewPortIsTold(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)
	if err := b.shutdown(); err != nil {
		t.Fatal(err)
	}
	b.record.DataPort = 9999
	b.start(nil)
	await(t, "the new port is known", func() bool {
		n, ok := a.node.State().View().Node(b.id.ID)
		return ok && n.DataPort == 9999
	})
}

// move gives a site that is down another control port.
func (s *site) move() {
	s.t.Helper()
	s.port = ports.Free(s.t)
	s.record = proto.Clone(s.record).(*command.Node)
	s.record.ControlPort = uint32(s.port)
	s.sites.Store(s.addr(), s.name)
}

// TestNodeUpdate_NewControlPort: the leader cannot find a node that came back at
// another address, so the node finds the leader. Two of three may move at once.
func TestNodeUpdate_NewControlPort(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	for _, moved := range []int{1, 2} {
		leader, others := leaderOf(t, all)
		// The first time a follower; then the leader and one other.
		away := []*site{others[0]}
		if moved == 2 {
			away = []*site{leader, others[0]}
		}
		for _, s := range away {
			if err := s.shutdown(); err != nil {
				t.Fatal(err)
			}
			s.move()
		}
		for _, s := range away {
			s.start(nil)
		}
		for _, s := range away {
			for _, at := range all {
				await(t, at.name+" knows where "+s.name+" is", func() bool {
					n, ok := at.node.State().View().Node(s.id.ID)
					return ok && n.ControlPort == s.port
				})
			}
		}
		for _, s := range all {
			s.insist(fmt.Sprintf("from-%s-%d", s.name, moved))
		}
	}
}

func TestBootstrap_OfADirectoryInUse(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	if err := a.node.Bootstrap(t.Context(), &command.MeshCreate{}); err == nil {
		t.Fatal("a second mesh was made in one directory")
	}
}

// TestReturn_LeaderJoinedMeanwhile: a node that was away lets in a leader that
// it has never heard of, on the word of the members that it knows.
func TestReturn_LeaderJoinedMeanwhile(t *testing.T) {
	t.Parallel()
	m, all := three(t)
	leader, others := leaderOf(t, all)
	away := others[0]
	if err := away.shutdown(); err != nil {
		t.Fatal(err)
	}
	d := m.site("tyo")
	d.join(leader)
	id := func(s *site) raft.ServerID { return raft.ServerID(s.id.ID.String()) }
	if err := leader.node.raft.DemoteVoter(id(away), 0, 0).Error(); err != nil {
		t.Fatal(err)
	}
	if err := leader.node.raft.AddVoter(id(d), raft.ServerAddress(id(d)), 0, 0).Error(); err != nil {
		t.Fatal(err)
	}
	await(t, "the new site leads", func() bool {
		_ = leader.node.raft.LeadershipTransferToServer(id(d), raft.ServerAddress(id(d))).Error()
		return d.node.Status().IsLeader
	})
	d.mustCreateProject("meanwhile")
	away.start(nil)
	await(t, "the returned node catches up", func() bool { return away.has("meanwhile") })
}
