package voters

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

var now = time.Unix(1e9, 0)

// srv describes a server: its site, whether it votes, and for how long it has
// been well (positive) or ill (negative).
type srv struct {
	site  string
	votes bool
	well  time.Duration
}

func picture(leader string, servers map[string]srv) *autopilot.State {
	return pictureAt(now, leader, servers)
}

func pictureAt(now time.Time, leader string, servers map[string]srv) *autopilot.State {
	s := &autopilot.State{Leader: raft.ServerID(leader), Servers: make(map[raft.ServerID]*autopilot.ServerState)}
	for id, v := range servers {
		st := autopilot.RaftNonVoter
		if v.votes {
			st = autopilot.RaftVoter
		}
		if id == leader {
			st = autopilot.RaftLeader
		}
		s.Servers[raft.ServerID(id)] = &autopilot.ServerState{State: st,
			Server: autopilot.Server{ID: raft.ServerID(id), Meta: map[string]string{MetaSite: v.site}},
			Health: autopilot.ServerHealth{Healthy: v.well > 0, StableSince: now.Add(-v.well.Abs())}}
	}
	return s
}

func TestPromoter(t *testing.T) {
	const long = 10 * time.Minute
	for _, c := range []struct {
		name    string
		leader  string
		servers map[string]srv
		up      string
		down    string
	}{
		{"one site", "a", map[string]srv{"a": {"ams", true, long}}, "[]", "[]"},
		{"two sites: one voter", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", false, long}}, "[]", "[]"},
		{"three sites: three voters at once", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", false, long}, "c": {"sgp", false, 2 * time.Second}}, "[b c]", "[]"},
		{"the third has not caught up: not two voters", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", false, long}, "c": {"sgp", false, -time.Second}}, "[]", "[]"},
		{"the third has only just caught up", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", false, long}, "c": {"sgp", false, time.Millisecond}}, "[]", "[]"},
		{"half done: the third is added", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, long}, "c": {"sgp", false, long}}, "[c]", "[]"},
		{"half done and the third will be well for long enough soon", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, long}, "c": {"sgp", false, time.Millisecond}}, "[]", "[]"},
		{"half done and nobody left: back to one", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, long}, "c": {"sgp", false, -long}}, "[]", "[b]"},
		{"a fourth site stays a learner", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, long}, "c": {"sgp", true, long}, "d": {"tyo", false, long}}, "[]", "[]"},
		{"two nodes of one site: one voter", "a", map[string]srv{"a": {"ams", true, long}, "a2": {"ams", false, long}, "b": {"fra", false, long}, "b2": {"fra", false, long}, "c": {"sgp", false, long}}, "[b c]", "[]"},
		{"two voters at one site: one too many", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, long}, "b2": {"fra", true, long}, "c": {"sgp", true, long}}, "[]", "[b2]"},
		{"a voter silent for a moment keeps its vote", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, -30 * time.Second}, "c": {"sgp", true, long}, "d": {"tyo", false, long}}, "[]", "[]"},
		{"a voter silent for long gives it to a learner", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, -long}, "c": {"sgp", true, long}, "d": {"tyo", false, long}}, "[d]", "[b]"},
		{"a voter silent for long and nobody to take over", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, -long}, "c": {"sgp", true, long}}, "[]", "[]"},
		{"a successor must be well for long", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, -long}, "c": {"sgp", true, long}, "d": {"tyo", false, 10 * time.Second}}, "[]", "[]"},
		{"another node of the silent voter's site takes over", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, -long}, "b2": {"fra", false, long}, "c": {"sgp", true, long}}, "[b2]", "[b]"},
		{"a site went: one voter again, never the leader", "a", map[string]srv{"a": {"ams", true, long}, "b": {"fra", true, long}}, "[]", "[b]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sites := make(map[string]bool)
			for _, s := range c.servers {
				sites[s.site] = true
			}
			p := &Promoter{Sites: func() int { return len(sites) }, Now: func() time.Time { return now }}
			got := p.CalculatePromotionsAndDemotions(nil, picture(c.leader, c.servers))
			if up, down := fmt.Sprint(got.Promotions), fmt.Sprint(got.Demotions); up != c.up || down != c.down {
				t.Errorf("up %s, down %s; want %s, %s", up, down, c.up, c.down)
			}
		})
	}
}

// TestPromoter_Five: five voters by way of three, where five are wanted and five
// sites are there.
func TestPromoter_Five(t *testing.T) {
	const long = 10 * time.Minute
	all := []string{"a", "b", "c", "d", "e"}
	for _, c := range []struct {
		name                string
		want, sites, voting int
		up, down            string
	}{
		{"first three", 5, 5, 1, "[b c]", "[]"},
		{"then two more at once", 5, 5, 3, "[d e]", "[]"},
		{"half done", 5, 5, 4, "[e]", "[]"},
		{"done", 5, 5, 5, "[]", "[]"},
		{"four sites: three voters", 5, 4, 3, "[]", "[]"},
		{"a site went: one vote less, then another", 5, 4, 4, "[]", "[b]"},
		{"three are wanted", 3, 5, 3, "[]", "[]"},
		{"nothing is said", 0, 5, 3, "[]", "[]"},
		{"fewer are wanted than vote", 3, 5, 5, "[]", "[b]"},
	} {
		servers := make(map[string]srv)
		for i, id := range all[:c.sites] {
			servers[id] = srv{"site-" + id, i < c.voting, long}
		}
		p := &Promoter{Want: func() int { return c.want }, Sites: func() int { return c.sites }, Now: func() time.Time { return now }}
		got := p.CalculatePromotionsAndDemotions(nil, picture("a", servers))
		if up, down := fmt.Sprint(got.Promotions), fmt.Sprint(got.Demotions); up != c.up || down != c.down {
			t.Errorf("%s: up %s, down %s; want %s, %s", c.name, up, down, c.up, c.down)
		}
	}
}

// TestPromoter_AsksBeforeItPromotes: a candidate that looks well and has died
// since is passed over; with too few left nobody is promoted, since two voters
// are worse than one.
func TestPromoter_AsksBeforeItPromotes(t *testing.T) {
	const long = 10 * time.Minute
	learner := func(site string) srv { return srv{site, false, long} }
	voter := func(site string) srv { return srv{site, true, long} }
	for _, c := range []struct {
		name    string
		servers map[string]srv
		dead    raft.ServerID
		up      string
	}{
		{"one of two has died", map[string]srv{"a": voter("ams"), "b": learner("fra"), "c": learner("sgp")}, "c", "[]"},
		{"a third steps in", map[string]srv{"a": voter("ams"), "b": learner("fra"), "c": learner("sgp"), "d": learner("tyo")}, "c", "[b d]"},
		{"a successor has died", map[string]srv{"a": voter("ams"), "b": {"fra", true, -long}, "c": voter("sgp"), "d": learner("tyo")}, "d", "[]"},
		{"nothing to do: nobody is asked", map[string]srv{"a": voter("ams"), "b": voter("fra"), "c": voter("sgp"), "d": learner("tyo")}, "", "[]"},
	} {
		asked := 0
		p := &Promoter{Sites: func() int { return len(c.servers) }, Now: func() time.Time { return now },
			Answers: func(id raft.ServerID) bool { asked++; return id != c.dead }}
		got := p.CalculatePromotionsAndDemotions(nil, picture("a", c.servers))
		if up := fmt.Sprint(got.Promotions); up != c.up || (up == "[]" && len(got.Demotions) > 0) {
			t.Errorf("%s: up %s, down %v; want %s", c.name, up, got.Demotions, c.up)
		}
		if c.dead == "" && asked > 0 {
			t.Errorf("%s: %d questions", c.name, asked)
		}
	}
}

// TestPromoter_NeverRemoves: consul#5922, raft-autopilot#17.
func TestPromoter_NeverRemoves(t *testing.T) {
	p := &Promoter{Sites: func() int { return 3 }}
	f := p.FilterFailedServerRemovals(nil, nil, &autopilot.FailedServers{StaleVoters: []raft.ServerID{"a"}, StaleNonVoters: []raft.ServerID{"b"}})
	if len(f.StaleVoters)+len(f.StaleNonVoters)+len(f.FailedVoters)+len(f.FailedNonVoters) != 0 {
		t.Fatalf("%+v", f)
	}
}

func TestPromoter_Types(t *testing.T) {
	p := &Promoter{Sites: func() int { return 1 }}
	types := p.GetNodeTypes(nil, picture("a", map[string]srv{"a": {"ams", true, 1}, "b": {"fra", false, 1}}))
	if types["a"] != autopilot.NodeVoter || types["b"] != Learner || p.IsPotentialVoter(Learner) {
		t.Fatalf("%v", types)
	}
}
