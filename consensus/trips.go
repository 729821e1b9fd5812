package consensus

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/node/identity"
)

const (
	tripsKept = 64 // pings a figure is of; at the leader that is half a minute
	tripsMin  = 16 // fewer say nothing
	// tripsRank leaves out the slowest eighth: pings wait for busy processors.
	tripsRank = 7.0 / 8

	// surveyEvery is how often a node pings each of the others and asks for what
	// that one measured: with 20 sites, a kilobyte and a half a second in all.
	surveyEvery = 5 * time.Second
	// surveyAtOnce bounds the pings under way.
	surveyAtOnce = 16
	// usualOf is how many of the last pings the usual round trip is the median of,
	// usualMin how many there must be: the first one has a handshake in it.
	usualOf  = 9
	usualMin = 3
	// tripsFresh is how long a measurement, or a node's word of its own, counts.
	tripsFresh = time.Minute
	// maxTrips bounds a node's own measurements, what it says of them (4 KiB) and
	// the nodes whose word is kept (a megabyte). Meshes are tens of nodes.
	maxTrips = 100
	// maxTrip is the longest round trip that is believed.
	maxTrip = time.Minute
)

// trips keeps how long pings to other nodes took, and what the others say of
// theirs. The pings are those of the control port: the way that edits and votes
// take, open where UDP is blocked, and under the nodes' keys.
type trips struct {
	mu     sync.Mutex // leaf lock
	of     map[identity.NodeID]*measured
	tables map[identity.NodeID]table
}

type measured struct {
	took []time.Duration // the last tripsKept
	at   time.Time       // of the last
}

// table is what another node measured.
type table struct {
	usual map[identity.NodeID]time.Duration
	at    time.Time
}

func (t *trips) add(id identity.NodeID, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of == nil {
		t.of = make(map[identity.NodeID]*measured)
	}
	m := t.of[id]
	if m == nil {
		if len(t.of) >= maxPeekedNodes {
			clear(t.of)
		}
		m = new(measured)
		t.of[id] = m
	}
	m.took = append(m.took, took)
	m.took, m.at = m.took[max(0, len(m.took)-tripsKept):], time.Now()
}

// keep forgets nodes that are no members.
func (t *trips) keep(member func(identity.NodeID) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.of {
		if !member(id) {
			delete(t.of, id)
		}
	}
	for id := range t.tables {
		if !member(id) {
			delete(t.tables, id)
		}
	}
}

// slowest gives the longest of the nodes' usual trips; 0: not known.
func (t *trips) slowest(of []identity.NodeID) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	var most time.Duration
	for _, id := range of {
		if m := t.of[id]; m != nil && len(m.took) >= tripsMin {
			s := slices.Clone(m.took)
			slices.Sort(s)
			most = max(most, s[int(tripsRank*float64(len(s)-1))])
		}
	}
	return most
}

// usual gives this node's own measurements, as far as they are fresh.
func (t *trips) usual() map[identity.NodeID]time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.usualLocked()
}

func (t *trips) usualLocked() map[identity.NodeID]time.Duration {
	out := make(map[identity.NodeID]time.Duration, len(t.of))
	for id, m := range t.of {
		if len(m.took) < usualMin || time.Since(m.at) > tripsFresh {
			continue
		}
		last := slices.Clone(m.took[max(0, len(m.took)-usualOf):])
		slices.Sort(last)
		out[id] = min(last[len(last)/2], maxTrip)
	}
	return out
}

// tell writes this node's own measurements for another node.
func (t *trips) tell() []*Trip {
	usual := t.usual()
	out := make([]*Trip, 0, len(usual))
	for id, d := range usual {
		out = append(out, &Trip{NodeId: slices.Clone(id[:]), Microseconds: uint32(max(1, d.Microseconds()))})
	}
	slices.SortFunc(out, func(a, b *Trip) int { return slices.Compare(a.GetNodeId(), b.GetNodeId()) })
	return out[:min(len(out), maxTrips)]
}

// hear takes what another node measured. Its word replaces its last one.
func (t *trips) hear(from identity.NodeID, said []*Trip) {
	if len(said) > maxTrips {
		return
	}
	w := table{usual: make(map[identity.NodeID]time.Duration, len(said)), at: time.Now()}
	for _, s := range said {
		id, err := identity.NodeIDFromBytes(s.GetNodeId())
		d := time.Duration(s.GetMicroseconds()) * time.Microsecond
		if err == nil && id != from && d > 0 && d <= maxTrip {
			w.usual[id] = d
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tables == nil {
		t.tables = make(map[identity.NodeID]table)
	}
	if _, known := t.tables[from]; !known && len(t.tables) >= maxTrips {
		return
	}
	t.tables[from] = w
}

// Link is the usual round trip between two nodes.
type Link struct {
	From, To identity.NodeID
	Trip     time.Duration // as From measured it
}

// links gives all that is known and fresh, in the order of the ids.
func (t *trips) links(self identity.NodeID) []Link {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Link
	add := func(from identity.NodeID, usual map[identity.NodeID]time.Duration) {
		for to, d := range usual {
			out = append(out, Link{From: from, To: to, Trip: d})
		}
	}
	add(self, t.usualLocked())
	for from, w := range t.tables {
		if from != self && time.Since(w.at) <= tripsFresh {
			add(from, w.usual)
		}
	}
	slices.SortFunc(out, func(a, b Link) int {
		if c := slices.Compare(a.From[:], b.From[:]); c != 0 {
			return c
		}
		return slices.Compare(a.To[:], b.To[:])
	})
	return out
}

// RoundTrips gives the usual round trips between the nodes of the mesh, those
// that this node measured and those that the others told it of.
func (n *Node) RoundTrips() []Link {
	view := n.state.View()
	return slices.DeleteFunc(n.trips.links(n.cfg.Identity.ID), func(l Link) bool {
		_, from := view.Node(l.From)
		_, to := view.Node(l.To)
		return !from || !to
	})
}

// distances is the table for who chooses the voters. Of two measurements the
// longer one counts: a node cannot make itself look nearer than others find it.
func (n *Node) distances() func(a, b raft.ServerID) (time.Duration, bool) {
	known := make(map[[2]raft.ServerID]time.Duration)
	for _, l := range n.RoundTrips() {
		a, b := raft.ServerID(l.From.String()), raft.ServerID(l.To.String())
		known[[2]raft.ServerID{a, b}] = max(known[[2]raft.ServerID{a, b}], l.Trip)
		known[[2]raft.ServerID{b, a}] = known[[2]raft.ServerID{a, b}]
	}
	return func(a, b raft.ServerID) (time.Duration, bool) {
		d, ok := known[[2]raft.ServerID{a, b}]
		return d, ok
	}
}

// RoundTrip gives the longest usual round trip to another voter, as the leader
// measures it; 0 at other nodes, and as long as it is not known.
func (n *Node) RoundTrip() time.Duration {
	if n.raft.State() != raft.Leader {
		return 0
	}
	voters, _ := n.servers()
	return n.trips.slowest(voters)
}

// survey pings all other members again and again, and asks each for what it
// measured itself, so that every node has the whole table.
func (n *Node) survey(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(surveyEvery*3/4 + rand.N(surveyEvery/2)): // nodes that start together don't ask together
		}
		n.surveyOnce(ctx)
	}
}

func (n *Node) surveyOnce(ctx context.Context) {
	view := n.state.View()
	n.trips.keep(func(id identity.NodeID) bool { _, ok := view.Node(id); return ok })
	members := view.Nodes()
	ctx, cancel := context.WithTimeout(ctx, max(surveyEvery, n.cfg.Profile.Election))
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	free := make(chan struct{}, surveyAtOnce)
	for _, m := range members[:min(len(members), maxTrips)] {
		if m.ID == n.cfg.Identity.ID {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case free <- struct{}{}:
		}
		wg.Go(func() {
			defer func() { <-free }()
			ctx, cancel := context.WithTimeout(ctx, n.cfg.Profile.Election)
			defer cancel()
			if rep, err := n.pingFor(ctx, m.ID, true); err == nil {
				n.trips.hear(m.ID, rep.GetTrips())
			}
		})
	}
}
