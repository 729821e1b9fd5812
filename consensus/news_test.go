package consensus

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// says collects the lines of some sites until all of want were said.
func says(t *testing.T, heard map[*site]string, s *site, want ...string) {
	t.Helper()
	await(t, s.name+" says "+strings.Join(want, ", "), func() bool {
		heard[s] += s.lines.take()
		for _, w := range want {
			if !strings.Contains(heard[s], w) {
				return false
			}
		}
		return true
	})
}

// alarms gives the lines above info, save those that hold one of expected.
func alarms(log string, expected ...string) (all []string) {
next:
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=INFO") {
			continue
		}
		for _, e := range expected {
			if strings.Contains(line, e) {
				continue next
			}
		}
		all = append(all, line)
	}
	return all
}

// TestNews_OneLineForEachThing: leaders die, links break, nodes stop, and what
// people read is one line for each, not what raft says of it.
func TestNews_OneLineForEachThing(t *testing.T) {
	const (
		refused = "edits are refused here"
		taken   = "edits are taken again"
		led     = "the mesh is led from another site now"
		leads   = "this node leads the mesh now"
		slow    = "farther from one another than the mesh's timings are for"
	)
	// Timings of wan: on a busy machine a second is soon over, and then edits are
	// refused and links are told to be slow because they are.
	m, all := threeWith(t, WAN)
	heard := make(map[*site]string)
	leader, others := leaderOf(t, all)
	for _, s := range others {
		says(t, heard, s, "this node votes now", led)
	}

	// The leader dies and comes back.
	for s := range heard {
		delete(heard, s)
	}
	leader.kill()
	leader.lines.take()
	second, _ := leaderOf(t, others)
	follower := others[0]
	if follower == second {
		follower = others[1]
	}
	says(t, heard, second, leads)
	says(t, heard, follower, led)
	for _, s := range others {
		if heard[s] += s.lines.take(); strings.Contains(heard[s], refused) {
			t.Errorf("%s refuses edits while a majority elects: %s", s.name, heard[s])
		}
	}
	leader.start(nil)
	says(t, heard, leader, led)

	// A site is cut off and comes back.
	for _, s := range all {
		m.net.set(follower.name, s.name, true)
	}
	says(t, heard, follower, refused)
	line := heard[follower][strings.Index(heard[follower], refused):]
	for _, s := range []*site{leader, second} {
		if !strings.Contains(line[:strings.Index(line, "\n")], s.name) {
			t.Errorf("%s is not named: %s", s.name, line)
		}
	}
	for _, s := range all {
		m.net.set(follower.name, s.name, false)
	}
	says(t, heard, follower, taken)
	await(t, "a leader is heard everywhere", func() bool {
		is := all[0].node.Status().Leader
		for _, s := range all {
			if is.IsZero() || s.node.Status().Leader != is {
				return false
			}
		}
		return true
	})

	// All stop at once.
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() { _ = s.shutdown() })
	}
	wg.Wait()
	for _, s := range all {
		heard[s] += s.lines.take()
		// A link that is truly slow, for the race detector has all processors, is news
		// as well. It is told once.
		for _, line := range alarms(heard[s], refused, slow) {
			t.Errorf("%s", line)
		}
		if n := strings.Count(heard[s], slow); n > 1 {
			t.Errorf("%s said %d times that links are slow", s.name, n)
		}
		if n := strings.Count(heard[s], refused); n > 1 && s == follower {
			t.Errorf("%s said %d times that edits are refused", s.name, n)
		}
	}
}

// TestNews_NoLeader: voters that reach one another and elect nobody.
func TestNews_NoLeader(t *testing.T) {
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	w := &news{node: a.node}
	w.look(time.Now())
	if w.leader != a.id.ID {
		t.Fatal("the leader was not seen")
	}
	a.lines.take()
	w.leader = identity.NodeID{1} // another led
	_ = a.node.raft.Shutdown().Error()
	began := time.Now()
	w.lookAtLeader(began)
	w.lookAtLeader(began.Add(leaderlessFor * LAN.Election))
	w.lookAtLeader(began.Add(2 * leaderlessFor * LAN.Election))
	if got := a.lines.take(); strings.Count(got, "the voting sites elect no leader") != 1 {
		t.Fatal(got)
	}
	_ = a.shutdown()
}

// TestNews_NoMeshYet: a node that was opened long before its mesh is made, on a
// busy machine, is not cut off from anybody.
func TestNews_NoMeshYet(t *testing.T) {
	m := newMesh(t)
	a := m.site("ams")
	a.start(nil)
	await(t, "an election timeout is over", a.node.lostMajority)
	w := &news{node: a.node}
	w.look(time.Now())
	if got := a.lines.take(); strings.Contains(got, "edits are refused here") {
		t.Errorf("it says: %s", got)
	}
}

// TestStatus_IdleMesh_AppliedEqualsIndex: raft's own entries count as applied.
func TestStatus_IdleMesh_AppliedEqualsIndex(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	for _, s := range all {
		var last Status
		await(t, s.name+" has applied all that it knows", func() bool {
			last = s.node.Status()
			return last.Applied == last.Index
		})
		if view := s.node.State().View().Index(); view > last.Applied {
			t.Errorf("%s reads index %d and says %d", s.name, view, last.Applied)
		}
	}
	// A node that starts without a leader says what it reads, as before.
	a := all[0]
	for _, s := range all[1:] {
		s.kill()
	}
	before := a.node.State().View().Index()
	a.kill()
	a.start(nil)
	if got := a.node.Status().Applied; got < before {
		t.Errorf("after a restart without a leader: %d applied, want %d or more", got, before)
	}
}

// TestOnlyVoter_LeadsAtOnce: a mesh of one voter takes edits as soon as it is
// up, also after a restart. The timings are far's, so that a time-out is told from
// a busy machine.
func TestOnlyVoter_LeadsAtOnce(t *testing.T) {
	m := newMesh(t)
	a := m.site("ams")
	a.bootstrap()
	if _, err := a.node.Propose(t.Context(), "user:admin", &command.ProfileSet{Profile: Far.Name}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		a.kill()
		start := time.Now()
		a.start(nil)
		a.mustCreateProject("at-once-" + string(rune('a'+i)))
		if took := time.Since(start); took > Far.Election {
			t.Errorf("the first edit took %s", took)
		}
	}
}
