package consensus

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/node/identity"
)

// reachIn gives the reach of each node of a mesh whose pings are the test's: it
// says by answered who answered when.
func reachIn(b *bubbleMesh) map[string]*reach {
	out := map[string]*reach{}
	for id, n := range b.nodes {
		n.cfg.Identity = &identity.Identity{ID: bubbleID(id)}
		n.reach = newReach(n)
		out[b.names[id]] = n.reach
	}
	return out
}

func bubbleID(id raft.ServerID) identity.NodeID {
	n, err := identity.ParseNodeID(string(id))
	if err != nil {
		panic(err)
	}
	return n
}

// named gives a site's node.
func (b *bubbleMesh) named(name string) (raft.ServerID, identity.NodeID) {
	for id, n := range b.names {
		if n == name {
			return id, bubbleID(id)
		}
	}
	b.t.Fatalf("no site %s", name)
	return "", identity.NodeID{}
}

func (r *reach) answered(id identity.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen[id] = time.Now()
}

// TestReach_Timing: a majority counts as lost one election timeout after the last
// proof of it, and not before; a proof is what a leader sent, or the answers of
// enough voters. The voters that are named have not answered for three quarters
// of one.
func TestReach_Timing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		near := func(raft.ServerID, raft.ServerID) (time.Duration, bool) { return 10 * time.Millisecond, true }
		b := newBubbleMesh(ctx, t, near, "ams", "fra", "lon")
		defer b.stop()
		defer cancel()
		for end := time.Now().Add(time.Minute); b.votes() != "ams fra lon"; {
			if time.Now().After(end) {
				t.Fatalf("%s vote", b.votes())
			}
			<-time.After(100 * time.Millisecond)
		}
		all := reachIn(b)
		_, ams := b.named("ams")
		lonServer, _ := b.named("lon")
		_, fra := b.named("fra")

		// A follower is in reach for as long as its leader is heard, whoever answers.
		<-time.After(time.Hour)
		if all["fra"].lost() || all["fra"].leaderAway() {
			t.Fatal("a follower that hears its leader says that it is cut off")
		}
		// The leader goes by the answers.
		r := all["ams"]
		if r.refresh(); !r.lost() {
			t.Fatal("a leader that nobody answered for an hour is in reach")
		}
		r.answered(fra)
		if r.lost() {
			t.Fatal("one other voter of three answered, and that is no majority")
		}
		<-time.After(LAN.Election - time.Millisecond)
		if r.lost() {
			t.Fatal("lost before its time")
		}
		<-time.After(time.Millisecond)
		if !r.lost() {
			t.Fatal("an election timeout is over")
		}

		// lon is cut off: it stands, and nobody hears it.
		for id, l := range b.links {
			l.Disconnect(raft.ServerAddress(lonServer))
			b.links[lonServer].Disconnect(raft.ServerAddress(id))
		}
		heard := b.nodes[lonServer].raft.LastContact()
		r = all["lon"]
		<-time.After(time.Until(heard.Add(LAN.Election - time.Millisecond)))
		if r.lost() {
			t.Fatal("lon says that it is cut off before an election timeout is over")
		}
		<-time.After(time.Millisecond)
		if !r.lost() {
			t.Fatal("lon does not notice that it is cut off")
		}
		if got := r.unreachable(); len(got) != 2 {
			t.Fatalf("lon cannot reach %v", got)
		}
		// By the control port it is in reach again, of one, and that is a majority.
		r.answered(ams)
		if r.lost() {
			t.Fatal("lon and another voter are a majority")
		}
		if got := r.unreachable(); !slices.Equal(got, []string{"node " + fra.Short()}) {
			t.Fatalf("lon cannot reach %v", got)
		}
		<-time.After(LAN.Election * 3 / 4)
		if got := r.unreachable(); len(got) != 2 {
			t.Fatalf("after three quarters of an election timeout lon cannot reach %v", got)
		}

		// fra says that ams leads, and lon cannot reach ams: no election will help. It
		// is said while what fra said is fresh.
		<-time.After(LAN.Election)
		r.answered(fra)
		r.mu.Lock()
		r.said[fra] = hearsay{leader: ams, at: time.Now(), heard: time.Now()}
		r.mu.Unlock()
		if !r.leaderAway() {
			t.Fatal("the others have a leader, and lon does not say so")
		}
		<-time.After(LAN.Election)
		if r.leaderAway() {
			t.Fatal("what fra said an election timeout ago still counts")
		}
	})
}
