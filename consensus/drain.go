package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/node/identity"
)

// A site that drains leads nothing: its node hands leadership over as soon as it
// has it, and is given no vote anew. A vote that it has, it keeps until another
// site can take it.

// yieldIfDraining is the leader's, again and again, from one goroutine.
func (n *Node) yieldIfDraining(ctx context.Context) {
	if !n.state.View().Draining(n.cfg.Identity.ID) || time.Since(n.removals.yieldedAt) < reconcileEvery {
		return // state changes may come by the thousand
	}
	n.removals.yieldedAt = time.Now()
	if err := n.yield(ctx, false); err != nil {
		n.log.Debug("this site drains and leads still", "err", err)
	}
}

// yield gives leadership to another voter that answers, one that does not drain
// if there is one; any at all if this node must go. The only voter of a mesh
// makes a learner a voter first: the new leader then takes this node's vote,
// since two are worse than one.
//
// A *nobodyError says that nobody can take over; after any other error the same
// may go well in a moment.
func (n *Node) yield(ctx context.Context, must bool) error {
	if !n.removals.yielding.CompareAndSwap(false, true) {
		return errors.New("leadership is being handed over")
	}
	defer n.removals.yielding.Store(false)
	self := n.cfg.Identity.ID
	servers, at, err := n.configuration()
	if err != nil {
		return err
	}
	all, learners := split(servers)
	others := slices.DeleteFunc(all, func(id identity.NodeID) bool { return id == self })
	promote := len(others) == 0
	if promote {
		others = learners
	}
	if len(others) == 0 {
		return &nobodyError{"there is no other"}
	}
	view := n.state.View()
	need := 0
	if must {
		need = 1
	}
	alive := slices.DeleteFunc(n.awaitAnswering(ctx, others, need), func(id identity.NodeID) bool {
		_, member := view.Node(id)
		return !member || n.removals.leaves(id)
	})
	slices.SortStableFunc(alive, func(a, b identity.NodeID) int {
		return int(flag(view.Draining(a))) - int(flag(view.Draining(b)))
	})
	if len(alive) == 0 || (!must && view.Draining(alive[0])) {
		return &nobodyError{"no other node that could take over answers"}
	}
	to := alive[0]
	if promote {
		id := raft.ServerID(to.String())
		if _, err := n.change(at, func() raft.IndexFuture { return n.raft.AddVoter(id, raft.ServerAddress(id), 0, n.cfg.Profile.Election) }); err != nil {
			return fmt.Errorf("site %s was not made a voter: %w", n.siteName(to), err)
		}
	}
	if err := n.transfer(to); err != nil {
		return err
	}
	n.log.Info("leadership was handed over: this site drains or leaves", "to_site", n.siteName(to))
	return nil
}

// nobodyError means that there is nobody to give leadership to.
type nobodyError struct{ why string }

func (e *nobodyError) Error() string { return e.why }
