package consensus

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/portolan/portolan/consensus/voters"
	"github.com/portolan/portolan/node/identity"
)

// promoter is voters.Promoter with the round trips of this moment: they are put
// together once for a round, not for each pair. While leadership
// is on its way to another node, that one decides.
type promoter struct {
	voters.Promoter
	node   *Node
	ballot *ballot
}

// CalculatePromotionsAndDemotions implements autopilot.Promoter.
func (p *promoter) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) autopilot.RaftChanges {
	if p.node.removals.yielding.Load() {
		return autopilot.RaftChanges{} // the next leader decides
	}
	if !p.ballot.judge(s) {
		return autopilot.RaftChanges{} // votes were given or taken since s was put together
	}
	p.Trip = p.node.distances()
	return p.Promoter.CalculatePromotionsAndDemotions(c, s)
}

// ballot is raft as autopilot may use it: handovers have a limit, and votes are
// given and taken on top of the configuration that was judged, or not at all.
type ballot struct {
	*raft.Raft
	node *Node
	at   seen // that configuration; of autopilot's one goroutine alone
}

// judge takes note of the present configuration; false if the servers that vote
// are others than those in s.
func (b *ballot) judge(s *autopilot.State) bool {
	servers, at, err := b.node.configuration()
	if err != nil {
		return false
	}
	votes := make(map[raft.ServerID]bool)
	for _, srv := range servers {
		if srv.Suffrage == raft.Voter {
			votes[srv.ID] = true
		}
	}
	for id, srv := range s.Servers {
		if srv.HasVotingRights() != votes[id] {
			return false
		}
		delete(votes, id)
	}
	b.at = at
	return len(votes) == 0
}

// AddVoter implements autopilot.Raft.
func (b *ballot) AddVoter(id raft.ServerID, address raft.ServerAddress, _ uint64, timeout time.Duration) raft.IndexFuture {
	return b.change(func() raft.IndexFuture { return b.Raft.AddVoter(id, address, 0, timeout) })
}

// DemoteVoter implements autopilot.Raft.
func (b *ballot) DemoteVoter(id raft.ServerID, _ uint64, timeout time.Duration) raft.IndexFuture {
	return b.change(func() raft.IndexFuture { return b.Raft.DemoteVoter(id, 0, timeout) })
}

// change lets the next one of the same round come on top of it.
func (b *ballot) change(do func() raft.IndexFuture) raft.IndexFuture {
	var err error
	b.at, err = b.node.change(b.at, do)
	return changed{handedOver{err}}
}

// changed is a raft.IndexFuture that is done; nobody asks it for the index.
type changed struct{ handedOver }

func (changed) Index() uint64 { return 0 }

// LeadershipTransferToServer hands over once, and waits an election timeout.
func (b *ballot) LeadershipTransferToServer(id raft.ServerID, _ raft.ServerAddress) raft.Future {
	to, err := identity.ParseNodeID(string(id))
	if err == nil {
		n := b.node
		m, _ := n.state.View().Node(to)
		n.log.Info("leadership goes nearer to the other voters", "site", m.Site)
		err = n.transfer(to)
	}
	return handedOver{err}
}

// handedOver is a raft.Future that is done.
type handedOver struct{ err error }

func (h handedOver) Error() error { return h.err }

// draining says whether no vote may go to a server: its site drains, it is about
// to leave, or its own word says so before the command came here.
func (n *Node) draining(id raft.ServerID) bool {
	node, err := identity.ParseNodeID(string(id))
	return err == nil && (n.state.View().Draining(node) || n.removals.leaves(node) || n.cfg.Draining != nil && n.cfg.Draining(node))
}

// exchange moves a vote nearer to the others, demoted first as everywhere: what
// fails in between leaves fewer votes than the mesh wants, for the next round to
// give away, and never more. For that round trip or two there is no spare, so
// the promoter has asked all the others just before. Each step is made on top of
// the configuration that it was decided on, or not at all. If the second one
// fails the vote goes back.
func (n *Node) exchange(from, to raft.ServerID) {
	servers, at, err := n.configuration()
	if err != nil {
		return
	}
	for _, s := range servers {
		if s.ID == from && s.Suffrage != raft.Voter || s.ID == to && s.Suffrage == raft.Voter {
			return // it was changed since the round began
		}
	}
	start := time.Now()
	at, err = n.change(at, func() raft.IndexFuture { return n.raft.DemoteVoter(from, 0, n.cfg.Profile.Election) })
	if err != nil {
		n.log.Debug("a vote was not moved", "err", err)
		return
	}
	_, err = n.change(at, func() raft.IndexFuture { return n.raft.AddVoter(to, raft.ServerAddress(to), 0, n.cfg.Profile.Election) })
	if err == nil {
		n.log.Info("a vote went to a site that is nearer to the other voters", "from", n.siteOf(from), "to", n.siteOf(to), "took", time.Since(start).Round(time.Millisecond))
		return
	}
	_, back := n.change(n.votesNow(), func() raft.IndexFuture {
		return n.raft.AddVoter(from, raft.ServerAddress(from), 0, n.cfg.Profile.Election)
	})
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) {
		return // the next leader goes on from there
	}
	n.log.Warn("a vote could not be moved to a nearer site", "from", n.siteOf(from), "to", n.siteOf(to), "err", errors.Join(err, back))
}

// siteOf names a server for people.
func (n *Node) siteOf(id raft.ServerID) string {
	node, err := identity.ParseNodeID(string(id))
	if err != nil {
		return string(id)
	}
	return n.siteName(node)
}
