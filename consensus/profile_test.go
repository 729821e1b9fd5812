package consensus

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/consensus/command"
)

func TestProfiles_AreSound(t *testing.T) {
	for _, p := range Profiles() {
		if err := p.check(); err != nil {
			t.Error(err)
		}
		// A heartbeat comes after a fifth of the election timeout and a round trip
		// at the latest; the lease has room for two.
		if gap := p.Election/5 + p.RoundTrip; p.Lease < 2*gap {
			t.Errorf("%s: the lease of %s has no room for two heartbeats of %s", p.Name, p.Lease, gap)
		}
		c := raft.DefaultConfig()
		c.LocalID = "x"
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout, c.CommitTimeout = p.Election, p.Election, p.Lease, p.Commit
		if err := raft.ValidateConfig(c); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
		if again, err := ParseProfile(p.Name); err != nil || again != p {
			t.Errorf("%s: %+v, %v", p.Name, again, err)
		}
		if got := ProfileFor(p.RoundTrip); got != p {
			t.Errorf("%s fits %s, not %s", got.Name, p.RoundTrip, p.Name)
		}
	}
	if p := ProfileFor(time.Second); p != Far {
		t.Errorf("beyond all: %s", p.Name)
	}
	if _, err := ParseProfile("near"); err == nil {
		t.Error("near is a profile")
	}
	for _, bad := range []Profile{{Lease: 2, Election: 1, Commit: 1}, {Lease: 1, Election: 1}, {Lease: 1, Election: 1, Commit: 2}} {
		if bad.check() == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// TestProfile_ByCommand: a joiner has the mesh's profile from its first start
// on, and a change is taken at the next one.
func TestProfile_ByCommand(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.profile = WAN
	a.bootstrap()
	b.join(a) // b's own configuration says nothing
	if got := b.node.Profile(); got != WAN {
		t.Fatalf("the joiner runs with %+v", got)
	}
	if rc := b.node.raft.ReloadableConfig(); rc.ElectionTimeout != WAN.Election {
		t.Fatalf("raft's election timeout is %s", rc.ElectionTimeout)
	}
	b.lines.take()
	if _, err := b.node.Propose(t.Context(), "user:admin", &command.ProfileSet{Profile: "far"}); err != nil {
		t.Fatal(err)
	}
	await(t, "the node says that it must be restarted", func() bool { return strings.Contains(b.lines.take(), "restart this node") })
	if got := b.node.Profile(); got != WAN {
		t.Fatalf("the running node changed to %+v", got)
	}
	if err := b.shutdown(); err != nil {
		t.Fatal(err)
	}
	b.start(nil)
	if got := b.node.Profile(); got != Far {
		t.Fatalf("after a restart: %+v", got)
	}
}
