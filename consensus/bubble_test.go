package consensus

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/consensus/voters"
	"github.com/portolan/portolan/node/identity"
)

// nothing is an FSM of a test that is about votes.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nothing{}, nil }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }
func (nothing) Persist(s raft.SnapshotSink) error   { return s.Close() }
func (nothing) Release()                            {}

// bubbleMesh is real raft and real autopilot in memory, under synctest's clock.
type bubbleMesh struct {
	t     *testing.T
	names map[raft.ServerID]string
	nodes map[raft.ServerID]*Node
	links map[raft.ServerID]*raft.InmemTransport
	wg    sync.WaitGroup
}

// newBubbleMesh makes sites of which the first leads and alone votes.
func newBubbleMesh(ctx context.Context, t *testing.T, trip voters.Distances, sites ...string) *bubbleMesh {
	t.Helper()
	b := &bubbleMesh{t: t, names: map[raft.ServerID]string{}, nodes: map[raft.ServerID]*Node{}, links: map[raft.ServerID]*raft.InmemTransport{}}
	var transports []*raft.InmemTransport
	var servers []raft.Server
	for i, name := range sites {
		id := raft.ServerID(identity.NodeID{byte(i + 1)}.String())
		_, tr := raft.NewInmemTransport(raft.ServerAddress(id))
		transports = append(transports, tr)
		b.links[id] = tr
		c := raft.DefaultConfig()
		c.LocalID, c.ProtocolVersion, c.Logger = id, 3, hclog.NewNullLogger()
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout, c.CommitTimeout = LAN.Election, LAN.Election, LAN.Lease, LAN.Commit
		store := raft.NewInmemStore()
		server := raft.Server{Suffrage: raft.Nonvoter, ID: id, Address: raft.ServerAddress(id)}
		if i == 0 {
			server.Suffrage = raft.Voter
		}
		servers = append(servers, server)
		r, err := raft.NewRaft(c, nothing{}, store, store, raft.NewInmemSnapshotStore(), tr)
		if err != nil {
			t.Fatal(err)
		}
		b.names[id] = name
		b.nodes[id] = &Node{cfg: Config{Profile: LAN, lasting: 0}, raft: r, state: state.New(), log: slog.New(slog.DiscardHandler)}
	}
	for _, a := range transports {
		for _, o := range transports {
			a.Connect(o.LocalAddr(), o)
		}
	}
	if err := b.nodes[servers[0].ID].raft.BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		t.Fatal(err)
	}
	for id, n := range b.nodes {
		b.wg.Go(func() { b.lead(ctx, id, n, trip) })
	}
	return b
}

// lead runs autopilot at a node whenever it leads, with the promoter and the
// ballot that a real node has.
func (b *bubbleMesh) lead(ctx context.Context, id raft.ServerID, n *Node, trip voters.Distances) {
	var ap *autopilot.Autopilot
	for {
		select {
		case leads := <-n.raft.LeaderCh():
			if ap != nil {
				<-ap.Stop()
				ap = nil
			}
			if leads {
				votes := &ballot{Raft: n.raft, node: n}
				ap = autopilot.New(votes, &bubblePilot{b, id}, autopilot.WithLogger(hclog.NewNullLogger()),
					autopilot.WithUpdateInterval(500*time.Millisecond), autopilot.WithReconcileInterval(time.Second),
					autopilot.WithPromoter(&bubblePromoter{ballot: votes, Promoter: voters.Promoter{Sites: func() int { return len(b.nodes) }, Exchange: n.exchange,
						Trip: func(x, y raft.ServerID) (time.Duration, bool) {
							return trip(raft.ServerID(b.names[x]), raft.ServerID(b.names[y]))
						}}}))
				ap.Start(ctx)
			}
		case <-ctx.Done():
			if ap != nil {
				<-ap.Stop()
			}
			return
		}
	}
}

func (b *bubbleMesh) stop() {
	b.wg.Wait()
	for _, n := range b.nodes {
		if err := n.raft.Shutdown().Error(); err != nil {
			b.t.Error(err)
		}
	}
}

func (b *bubbleMesh) leader() *Node {
	for _, n := range b.nodes {
		if n.raft.State() == raft.Leader {
			return n
		}
	}
	return nil
}

// votes gives the sites that vote, the leading one first.
func (b *bubbleMesh) votes() string {
	n := b.leader()
	if n == nil {
		return "no leader"
	}
	var lead string
	var others []string
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		switch {
		case b.nodes[s.ID] == n:
			lead = b.names[s.ID]
		case s.Suffrage == raft.Voter:
			others = append(others, b.names[s.ID])
		}
	}
	slices.Sort(others)
	return strings.Join(append([]string{lead}, others...), " ")
}

// bubblePilot says of all servers that they are well.
type bubblePilot struct {
	b    *bubbleMesh
	self raft.ServerID
}

func (p *bubblePilot) AutopilotConfig() *autopilot.Config { return (&pilot{}).AutopilotConfig() }
func (p *bubblePilot) NotifyState(*autopilot.State)       {}
func (p *bubblePilot) RemoveFailedServer(*autopilot.Server) {
	p.b.t.Error("a server is removed for its silence")
}

func (p *bubblePilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	out := make(map[raft.ServerID]*autopilot.Server)
	for id, name := range p.b.names {
		out[id] = &autopilot.Server{ID: id, Name: name, Address: raft.ServerAddress(id), NodeStatus: autopilot.NodeAlive, RaftVersion: 3,
			Meta: map[string]string{voters.MetaSite: name}, IsLeader: id == p.self}
	}
	return out
}

func (p *bubblePilot) FetchServerStats(_ context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	out := make(map[raft.ServerID]*autopilot.ServerStats)
	for id := range servers {
		n := p.b.nodes[id]
		out[id] = &autopilot.ServerStats{LastTerm: n.lastTerm(), LastIndex: n.raft.LastIndex()}
	}
	return out
}

// TestVoters_Bubble: real raft and autopilot, hours in a moment. Three vote after
// seconds, votes move after ten minutes and one at a time, the leader hands over
// before its own goes, an edit is possible at any time, and then there is rest.
func TestVoters_Bubble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		far := map[raft.ServerID]bool{}
		var mu sync.Mutex
		trip := func(a, b raft.ServerID) (time.Duration, bool) {
			mu.Lock()
			defer mu.Unlock()
			if far[a] || far[b] {
				return 150 * time.Millisecond, true
			}
			return 10 * time.Millisecond, true
		}
		b := newBubbleMesh(ctx, t, trip, "ams", "fra", "lon", "par", "waw")
		defer b.stop()
		defer cancel()
		goesFar := func(name string) {
			mu.Lock()
			defer mu.Unlock()
			far[raft.ServerID(name)] = true
		}
		seen := []string{}
		pass := func(d time.Duration) string {
			for end := time.Now().Add(d); time.Now().Before(end); {
				<-time.After(500 * time.Millisecond)
				if n := b.leader(); n != nil {
					if err := n.raft.Apply([]byte("edit"), time.Second).Error(); err != nil && b.leader() == n {
						t.Fatalf("no edit is possible with %s: %v", b.votes(), err)
					}
				}
				if v := b.votes(); v != "no leader" && (len(seen) == 0 || seen[len(seen)-1] != v) {
					seen = append(seen, v)
				}
			}
			return b.votes()
		}
		if got := pass(10 * time.Second); got != "ams fra lon" {
			t.Fatalf("at first %s vote", got)
		}
		goesFar("lon")
		if got := pass(9 * time.Minute); got != "ams fra lon" {
			t.Fatalf("within ten minutes: %s", got)
		}
		if got := pass(2 * time.Minute); got != "ams fra par" {
			t.Fatalf("after ten minutes: %s", got)
		}
		goesFar("ams") // the leading one
		if got := pass(21 * time.Minute); got != "fra par waw" {
			t.Fatalf("the leader is far away: %s", got)
		}
		rest := len(seen)
		if got := pass(20 * time.Minute); got != "fra par waw" || len(seen) != rest {
			t.Fatalf("in rest: %v", seen)
		}
		t.Logf("seen: %q", seen)
	})
}

// bubblePromoter is promoter with the test's round trips.
type bubblePromoter struct {
	voters.Promoter
	ballot *ballot
}

func (p *bubblePromoter) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) autopilot.RaftChanges {
	if !p.ballot.judge(s) {
		return autopilot.RaftChanges{}
	}
	return p.Promoter.CalculatePromotionsAndDemotions(c, s)
}
