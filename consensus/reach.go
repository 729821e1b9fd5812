package consensus

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
)

// reach knows when this node was last in touch with a majority of the voters.
//
// A follower that hears from its leader is: the leader's lease says so. In all
// other cases (the leader itself, and whoever has not heard from one for half an
// election timeout) the voters are asked directly, five times in an election
// timeout.
type reach struct {
	node *Node

	mu       sync.Mutex
	seen     map[identity.NodeID]time.Time // start of the last ping that was answered
	asked    map[identity.NodeID]bool      // a ping is under way
	silent   map[identity.NodeID]int       // pings in a row without an answer in time
	said     map[identity.NodeID]hearsay   // whom the last answer named as leader
	evidence time.Time                     // latest proof of a majority within reach
}

// hearsay is a leader that another node hears from.
type hearsay struct {
	leader identity.NodeID
	at     time.Time // start of the ping
	heard  time.Time // when the other node heard it last
}

// silentPings is after how many unanswered pings a connection is made anew.
const silentPings = 3

func newReach(n *Node) *reach {
	return &reach{node: n, seen: make(map[identity.NodeID]time.Time), asked: make(map[identity.NodeID]bool),
		silent: make(map[identity.NodeID]int), said: make(map[identity.NodeID]hearsay), evidence: time.Now()}
}

// refresh brings the evidence up to date and gives it.
func (r *reach) refresh() time.Time {
	voters, _ := r.node.servers()
	_, leader := r.node.raft.LeaderWithID()
	self := r.node.cfg.Identity.ID
	contact := r.node.raft.LastContact()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(voters) > 0 {
		times := make([]time.Time, len(voters))
		for i, id := range voters {
			if times[i] = r.seen[id]; id == self {
				times[i] = time.Now()
			}
		}
		slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
		if t := times[len(voters)/2]; t.After(r.evidence) {
			r.evidence = t
		}
	}
	if leader != "" && string(leader) != self.String() && contact.After(r.evidence) {
		r.evidence = contact
	}
	return r.evidence
}

// lost reports whether the majority has been out of reach for an election timeout.
func (r *reach) lost() bool {
	return time.Since(r.refresh()) >= r.node.cfg.Profile.Election
}

// leaderAway reports whether the others have a leader that has been out of this
// node's reach for an election timeout: a link is cut, and no election will
// help. Nobody is asked, and so nothing said, while the leader is heard.
func (r *reach) leaderAway() bool {
	n := r.node
	limit := n.cfg.Profile.Election
	contact := n.raft.LastContact()
	if n.raft.State() == raft.Leader || time.Since(contact) < limit {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.said {
		// A leader that died was heard last by all at about the same time.
		if h.heard.Sub(contact) >= limit/2 && time.Since(h.at) < limit && h.leader != n.cfg.Identity.ID && time.Since(r.seen[h.leader]) >= limit {
			return true
		}
	}
	return false
}

// unreachable gives the sites of the voters that have not answered lately.
func (r *reach) unreachable() []string {
	voters, _ := r.node.servers()
	view := r.node.state.View()
	r.mu.Lock()
	defer r.mu.Unlock()
	var sites []string
	for _, id := range voters {
		if id == r.node.cfg.Identity.ID || time.Since(r.seen[id]) < r.node.cfg.Profile.Election*3/4 {
			continue
		}
		name := "node " + id.Short()
		if m, ok := view.Node(id); ok {
			name = m.Site
		}
		sites = append(sites, name)
	}
	slices.Sort(sites)
	return slices.Compact(sites)
}

// run asks the voters while that is needed. The pings it starts are joined
// before it returns.
func (r *reach) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	every := r.node.cfg.Profile.Election / 5
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.refresh()
		for _, id := range r.whom() {
			wg.Go(func() { r.ping(ctx, id) })
		}
	}
}

// whom gives the voters to ask now.
func (r *reach) whom() []identity.NodeID {
	n := r.node
	if _, gone := n.Removed(); gone && !n.removals.asksAgain(time.Now()) {
		return nil
	}
	voters, _ := n.servers()
	leads := n.raft.State() == raft.Leader
	if !leads {
		_, leader := n.raft.LeaderWithID()
		if leader != "" && time.Since(n.raft.LastContact()) < n.cfg.Profile.Election/2 {
			return nil
		}
	}
	if len(voters) == 0 {
		voters = n.heardIDs() // a joiner before its first entry
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var ask []identity.NodeID
	for _, id := range voters {
		if id != n.cfg.Identity.ID && !r.asked[id] {
			r.asked[id] = true
			ask = append(ask, id)
		}
	}
	return ask
}

func (r *reach) ping(ctx context.Context, id identity.NodeID) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.node.cfg.Profile.Election/2)
	defer cancel()
	rep, err := r.node.ping(ctx, id)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[id] = false
	if err == nil {
		r.seen[id] = start
		r.silent[id] = 0
		delete(r.said, id)
		heard := time.Duration(rep.GetLastContactMs()) * time.Millisecond
		if leader, err := identity.NodeIDFromBytes(rep.GetLeaderId()); err == nil && heard >= 0 && heard < r.node.cfg.Profile.Election {
			r.said[id] = hearsay{leader: leader, at: start, heard: start.Add(-heard)}
		}
		return
	}
	if status.Code(err) == codes.DeadlineExceeded {
		if r.silent[id]++; r.silent[id] >= silentPings {
			r.silent[id] = 0
			r.node.peers.drop(id)
		}
	}
}

// ping asks a node how it is, and learns the members that it knows. It tells
// where this node is now, as long as the mesh does not know.
func (n *Node) ping(ctx context.Context, id identity.NodeID) (*PingReply, error) {
	return n.pingFor(ctx, id, false)
}

// pingFor is ping; with trips, the node is asked for what it measured, too.
func (n *Node) pingFor(ctx context.Context, id identity.NodeID, trips bool) (*PingReply, error) {
	c, err := n.peers.get(id)
	if err != nil {
		return nil, err
	}
	view := n.state.View()
	have := view.Index()
	req := &PingRequest{Index: have, Trips: trips, Acknowledged: n.acknowledgedBy()}
	if m, ok := view.Node(n.cfg.Identity.ID); ok && !proto.Equal(m.Command(), n.cfg.Self) {
		req.Self = n.cfg.Self
	}
	start := time.Now()
	rep, err := c.Ping(ctx, req)
	if err != nil {
		n.noteRemoval(id, fromStatus(err))
		return nil, err
	}
	n.noteMember(id)
	n.trips.add(id, time.Since(start))
	if rep.GetApplied() > have {
		n.hear(rep.GetNodes(), rep.GetApplied())
	}
	return rep, nil
}

func (n *Node) heardIDs() []identity.NodeID {
	n.mu.Lock()
	defer n.mu.Unlock()
	ids := make([]identity.NodeID, 0, len(n.heard))
	for id := range n.heard {
		ids = append(ids, id)
	}
	return ids
}
