package consensus

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/consensus/voters"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/telemetry"
)

const (
	// lastContactLimit and maxTrailing are when a server counts as ill.
	lastContactLimit = 5 * time.Second
	maxTrailing      = 1000
	// reconcileEvery repeats what failed; changes of the state come at once.
	reconcileEvery = time.Second
)

// lead does the leader's work for as long as this node leads.
func (n *Node) lead(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-n.raft.LeaderCh():
			for leads {
				leads = n.term(ctx)
			}
		}
	}
}

// term is one term of leadership. It returns at its end, or true when another
// one has begun.
func (n *Node) term(ctx context.Context) (again bool) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	n.transferStuck.Store(0) // what was refused in an earlier term says nothing of this one
	n.log.Info("this node leads the mesh now", "term", n.raft.CurrentTerm())
	wg.Go(func() { n.commits.lead(ctx) })
	wg.Go(func() {
		// What earlier leaders committed is applied here first: raft#603.
		for n.raft.Barrier(n.cfg.Profile.Election).Error() != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryPause):
			}
		}
		n.govern(ctx)
	})
	select {
	case <-ctx.Done():
		return false
	case again = <-n.raft.LeaderCh():
		if !again {
			n.log.Info("this node leads no more", "term", n.raft.CurrentTerm())
		}
		return again
	}
}

// govern keeps raft's configuration as the node list says, and the votes as
// package voters says.
func (n *Node) govern(ctx context.Context) {
	p := &pilot{node: n, last: make(map[raft.ServerID]report)}
	// Long enough for an answer over the profile's slowest link, twice.
	update := max(500*time.Millisecond, n.cfg.Profile.Election*2/5)
	votes := &ballot{Raft: n.raft, node: n}
	ap := autopilot.New(votes, p,
		autopilot.WithLogger(telemetry.HCLog(n.log, "voters", repeatsAutopilot)),
		autopilot.WithPromoter(&promoter{node: n, ballot: votes, Promoter: voters.Promoter{
			Sites: p.votingSites, Want: func() int { return n.state.View().Mesh().WantsVoters() }, Draining: n.draining, Exchange: n.exchange,
			Lasting: n.cfg.lasting, Answers: func(id raft.ServerID) bool { return p.answers(ctx, id) }}}),
		autopilot.WithUpdateInterval(update), autopilot.WithReconcileInterval(2*update))
	ap.Start(ctx)
	defer func() { <-ap.Stop() }()
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		changed := n.state.Changed()
		if err := n.reconcile(); err != nil && ctx.Err() == nil {
			n.log.Warn("raft's configuration does not follow the node list yet", "err", err)
		}
		n.yieldIfDraining(ctx)
		n.raiseLevel(ctx)
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// reconcile adds members that raft does not know, as learners, and removes
// servers that are no members. One change at a time, each on top of the
// configuration that it was decided on.
func (n *Node) reconcile() error {
	for range maxPeekedNodes {
		servers, at, err := n.configuration()
		if err != nil {
			return err
		}
		view := n.state.View()
		if view.Mesh().ID.IsZero() {
			return nil
		}
		next := n.nextChange(view, servers)
		if next == nil {
			return nil
		}
		switch _, err := n.change(at, next); {
		case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost):
			return nil
		case errors.Is(err, errVotesChanged):
			// looked at again
		case err != nil:
			return err
		}
	}
	return nil
}

func (n *Node) nextChange(view *state.View, servers []raft.Server) func() raft.IndexFuture {
	known := make(map[raft.ServerID]bool, len(servers))
	for _, s := range servers {
		known[s.ID] = true
	}
	for _, m := range view.Nodes() {
		id := raft.ServerID(m.ID.String())
		if !known[id] {
			n.log.Debug("adding a member as learner", "node", m.ID, "site", m.Site)
			return func() raft.IndexFuture {
				return n.raft.AddNonvoter(id, raft.ServerAddress(id), 0, n.cfg.Profile.Election)
			}
		}
	}
	for _, s := range servers {
		id, err := identity.ParseNodeID(string(s.ID))
		if _, member := view.Node(id); err == nil && !member && id != n.cfg.Identity.ID {
			n.log.Info("removing a server that is no member", "node", id)
			return func() raft.IndexFuture { return n.raft.RemoveServer(s.ID, 0, n.cfg.Profile.Election) }
		}
	}
	return nil
}

// pilot is autopilot's view of the mesh.
type pilot struct {
	node *Node

	mu   sync.Mutex
	last map[raft.ServerID]report
}

type report struct {
	stats autopilot.ServerStats
	at    time.Time
}

// votingSites counts the sites with a member.
func (p *pilot) votingSites() int {
	sites := make(map[int64]bool)
	for _, m := range p.node.state.View().Nodes() {
		sites[m.SiteID] = true
	}
	return len(sites)
}

// AutopilotConfig implements autopilot.ApplicationIntegration. How long a server
// must be stable is the promoter's to say.
func (p *pilot) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{CleanupDeadServers: false, LastContactThreshold: lastContactLimit, MaxTrailingLogs: maxTrailing, MinQuorum: 3}
}

// NotifyState implements autopilot.ApplicationIntegration.
func (p *pilot) NotifyState(*autopilot.State) {}

// RemoveFailedServer implements autopilot.ApplicationIntegration: never.
func (p *pilot) RemoveFailedServer(*autopilot.Server) {}

// KnownServers implements autopilot.ApplicationIntegration.
func (p *pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	n := p.node
	out := make(map[raft.ServerID]*autopilot.Server)
	for _, m := range n.state.View().Nodes() {
		id := raft.ServerID(m.ID.String())
		out[id] = &autopilot.Server{ID: id, Name: m.Site, Address: raft.ServerAddress(id), NodeStatus: autopilot.NodeAlive,
			Version: m.Version, RaftVersion: 3, Meta: map[string]string{voters.MetaSite: m.Site}, IsLeader: m.ID == n.cfg.Identity.ID}
	}
	return out
}

// FetchServerStats implements autopilot.ApplicationIntegration: all servers are
// asked at once. Of one that does not answer, the last report grows older.
func (p *pilot) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	var wg sync.WaitGroup
	for id := range servers {
		wg.Go(func() {
			node, err := identity.ParseNodeID(string(id))
			if err != nil {
				return
			}
			stats, err := p.ask(ctx, node)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.last[id] = report{stats: stats, at: time.Now()}
			p.mu.Unlock()
		})
	}
	wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[raft.ServerID]*autopilot.ServerStats, len(servers))
	for id := range servers {
		r, ok := p.last[id]
		s := r.stats
		switch age := time.Since(r.at); {
		case !ok:
			s.LastContact = -1
		case s.LastContact >= 0 && age > lastContactLimit:
			s.LastContact += age
		}
		out[id] = &s
	}
	return out
}

// answers asks a node that shall vote for a sign of life: that it hears the
// leader and takes part. What was told of its health may be of before it began
// anew.
func (p *pilot) answers(ctx context.Context, id raft.ServerID) bool {
	node, err := identity.ParseNodeID(string(id))
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, p.node.cfg.Profile.Election/2)
	defer cancel()
	stats, err := p.ask(ctx, node)
	return err == nil && stats.LastContact >= 0
}

func (p *pilot) ask(ctx context.Context, id identity.NodeID) (autopilot.ServerStats, error) {
	n := p.node
	if id == n.cfg.Identity.ID {
		return autopilot.ServerStats{LastTerm: n.lastTerm(), LastIndex: n.raft.LastIndex()}, nil
	}
	rep, err := n.ping(ctx, id)
	if err != nil {
		return autopilot.ServerStats{}, err
	}
	return autopilot.ServerStats{LastContact: time.Duration(rep.GetLastContactMs()) * time.Millisecond, LastTerm: rep.GetLastTerm(), LastIndex: rep.GetLastIndex()}, nil
}

// lastTerm is the term of the last entry in the log.
func (n *Node) lastTerm() uint64 {
	t, err := strconv.ParseUint(n.raft.Stats()["last_log_term"], 10, 64)
	if err != nil {
		return 0
	}
	return t
}
