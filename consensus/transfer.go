package consensus

import (
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/node/identity"
)

var (
	errTransferring   = errors.New("a handover is under way")
	errTransferLasted = errors.New("no answer within an election timeout")
)

// transfer gives leadership to a voter (zero: the one that has most of the log)
// and waits one election timeout at most: a transfer can hang for ever, and does
// if a second one is asked for while one is under way (raft#696). A node whose
// first one hangs asks for no other; watchTransfer ends it.
func (n *Node) transfer(to identity.NodeID) error {
	if !n.transferring.CompareAndSwap(false, true) {
		return errTransferring
	}
	done := make(chan error, 1)
	go func() { // ends with raft at the latest
		defer n.transferring.Store(false)
		if to.IsZero() {
			done <- n.raft.LeadershipTransfer().Error()
			return
		}
		id := raft.ServerID(to.String())
		done <- n.raft.LeadershipTransferToServer(id, raft.ServerAddress(id)).Error()
	}()
	late := time.NewTimer(n.cfg.Profile.Election)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return errTransferLasted
	}
}

// handOver gives leadership away before the node stops: to the voter that was
// heard from last, or that has most of the log while nobody was asked yet.
func (n *Node) handOver() {
	if n.raft.State() != raft.Leader {
		return
	}
	if voters, _ := n.servers(); len(voters) < 2 {
		return
	}
	to, _ := n.reach.closest()
	if err := n.transfer(to); err != nil {
		// No trouble: the others elect a leader, or stop as well.
		n.log.Info("leadership was not handed over: the other voters elect a leader by themselves", "err", err)
		return
	}
	m, _ := n.state.View().Node(to)
	n.log.Info("leadership was handed over", "site", m.Site)
}

// closest gives the other voter that answered last, of those that do not drain
// if there are any.
func (r *reach) closest() (identity.NodeID, bool) {
	voters, _ := r.node.servers()
	view := r.node.state.View()
	r.mu.Lock()
	defer r.mu.Unlock()
	var best identity.NodeID
	var at time.Time
	bestDrains := false
	for _, id := range voters {
		t := r.seen[id]
		if id == r.node.cfg.Identity.ID || t.IsZero() {
			continue
		}
		// One that drains would hand it on: only if there is no other.
		if known, drains := !at.IsZero(), view.Draining(id); !known || (bestDrains && !drains) || (bestDrains == drains && t.After(at)) {
			best, at, bestDrains = id, t, drains
		}
	}
	return best, !at.IsZero()
}
