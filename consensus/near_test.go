package consensus

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

func (s *site) votingSites() string {
	var names []string
	view := s.node.State().View()
	for _, id := range s.node.Status().Voters {
		m, _ := view.Node(id)
		names = append(names, m.Site)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// grow makes a mesh of sites, one after the other.
func (m *mesh) grow(lasting time.Duration, names ...string) []*site {
	m.t.Helper()
	var all []*site
	for i, name := range names {
		s := m.site(name)
		s.lasting = lasting
		if i == 0 {
			s.bootstrap()
		} else {
			s.join(all[0])
		}
		all = append(all, s)
	}
	return all
}

// TestVoters_MoveNearer: the mesh was made far away, from the order in which its
// sites came. Its votes, and its leadership, come to the sites that are near to
// one another while edits go on everywhere, and an edit is soon as fast as they.
func TestVoters_MoveNearer(t *testing.T) {
	const far, near = 60 * time.Millisecond, 4 * time.Millisecond
	m := newMesh(t)
	for _, s := range []string{"ams", "fra", "lon"} {
		m.net.slow("sgp", s, far)
		for _, o := range []string{"ams", "fra", "lon"} {
			if o != s {
				m.net.slow(s, o, near)
			}
		}
	}
	all := m.grow(time.Second, "sgp", "ams", "fra", "lon")
	sgp, lon := all[0], all[3]
	await(t, "three voters, the first ones", func() bool { return len(lon.node.Status().Voters) == 3 })
	t.Logf("first: %s", lon.votingSites())

	var stop atomic.Bool
	edits := make(chan int)
	go func() {
		n := 0
		for !stop.Load() {
			if _, err := lon.createProject(fmt.Sprintf("p%d", n)); err == nil {
				n++
			}
		}
		edits <- n
	}()
	deadline := time.Now().Add(2 * time.Minute)
	for lon.votingSites() != "ams fra lon" && time.Now().Before(deadline) {
		st := lon.node.Status()
		if n := len(st.Voters); n != 0 && (n < 2 || n > 3) {
			t.Errorf("%d voters on the way: %s", n, lon.votingSites())
		}
		<-time.After(20 * time.Millisecond)
	}
	stop.Store(true)
	t.Logf("%d edits on the way", <-edits)
	if got := lon.votingSites(); got != "ams fra lon" {
		t.Fatalf("the voters are %s; round trips: %v", got, lon.node.RoundTrips())
	}
	if sgp.node.Status().IsLeader {
		t.Fatal("a learner leads")
	}
	await(t, "sgp's role", func() bool { return sgp.node.Status().Role == "learner" })
	best := time.Hour
	for i := range 10 {
		start := time.Now()
		all[1].mustCreateProject(fmt.Sprintf("fast%d", i))
		best = min(best, time.Since(start))
	}
	t.Logf("best edit: %s", best)
	if best >= far {
		t.Errorf("an edit takes %s still", best)
	}
}

// TestVoters_ByCommand: from three to five and back, as a value of the mesh.
func TestVoters_ByCommand(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	all := m.grow(0, "ams", "fra", "lon", "par", "waw")
	set := func(n uint32) {
		t.Helper()
		// On a busy machine lan's second is soon over, and a node elects while this
		// comes: that is answered so, and tried again. Any other answer is wrong.
		await(t, fmt.Sprintf("the command for %d voters", n), func() bool {
			_, err := all[4].node.Propose(t.Context(), "user:admin", &command.VotersSet{Voters: n})
			var away *command.Unavailable
			if err != nil && !errors.As(err, &away) {
				t.Fatal(err)
			}
			return err == nil
		})
		await(t, fmt.Sprintf("%d voters", n), func() bool {
			for _, s := range all {
				if len(s.node.Status().Voters) != int(n) {
					return false
				}
			}
			return true
		})
	}
	await(t, "three voters", func() bool { return len(all[0].node.Status().Voters) == 3 })
	set(5)
	all[4].insist("with-five")
	set(3)
	all[4].insist("with-three")
}

// TestVoters_Draining: a voter that wants to be left in peace gives its vote to
// a site that is well.
func TestVoters_Draining(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	var who atomic.Pointer[identity.NodeID]
	var all []*site
	for i, name := range []string{"ams", "fra", "lon", "par"} {
		s := m.site(name)
		s.draining = func(id identity.NodeID) bool { d := who.Load(); return d != nil && *d == id }
		if i == 0 {
			s.bootstrap()
		} else {
			s.join(all[0])
		}
		all = append(all, s)
	}
	await(t, "three voters", func() bool { return len(all[3].node.Status().Voters) == 3 })
	_, others := leaderOf(t, all)
	var drains *site
	await(t, "another voter than the leader knows that it is one", func() bool {
		for _, s := range others {
			if s.node.Status().Role == "voter" {
				drains = s
			}
		}
		return drains != nil
	})
	who.Store(&drains.id.ID)
	// A successor must have been well for a minute: the promoter's own tests have
	// the clock for that. Here it keeps its vote meanwhile, and edits go on.
	drains.insist("while-draining")
	if got := drains.node.Status().Role; got != "voter" {
		t.Errorf("a vote went before its successor was known to be well: %s", got)
	}
}

// TestRoundTrips_KnownEverywhere: each node has the whole table, by its own pings
// and the others' word, and shows its own as metrics.
func TestRoundTrips_KnownEverywhere(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.net.slow("ams", "fra", 30*time.Millisecond)
	all := m.grow(0, "ams", "fra", "lon")
	for _, s := range all {
		await(t, "the whole table at "+s.name, func() bool { return len(s.node.RoundTrips()) == 6 })
		view := s.node.State().View()
		for _, l := range s.node.RoundTrips() {
			from, _ := view.Node(l.From)
			to, _ := view.Node(l.To)
			slow := pair(from.Site, to.Site) == pair("ams", "fra")
			if slow && l.Trip < 30*time.Millisecond || !slow && l.Trip > 30*time.Millisecond {
				t.Errorf("at %s: from %s to %s %s", s.name, from.Site, to.Site, l.Trip)
			}
		}
		if n := testutil.CollectAndCount(s.node, "portolan_consensus_round_trip_seconds"); n != 2 {
			t.Errorf("%s shows %d round trips", s.name, n)
		}
		d := s.node.distances()
		id := func(s *site) raft.ServerID { return raft.ServerID(s.id.ID.String()) }
		there, ok := d(id(all[0]), id(all[1]))
		back, ok2 := d(id(all[1]), id(all[0]))
		if !ok || !ok2 || there != back {
			t.Errorf("%s, %v there and %s, %v back", there, ok, back, ok2)
		}
	}
}
