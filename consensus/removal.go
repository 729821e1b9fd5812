package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// Removal is what became of a node that was taken out of the mesh.
type Removal struct {
	Site string // that it was
	At   time.Time
	By   string // actor
}

// String is for people at the removed node.
func (r Removal) String() string {
	return fmt.Sprintf("this node was site %s and was removed from the mesh at %s by %s: the other sites have cut it off, it takes no edits and no pushes, and its key never comes back; to make this machine a site again, join with an empty data directory",
		r.Site, r.At.UTC().Format(time.RFC3339), r.By)
}

// removedError is a member's answer to a removed key.
type removedError struct{ Removal }

func (e *removedError) Error() string { return e.String() }

func removalOf(r state.Removed) Removal { return Removal{Site: r.Site, At: r.At, By: r.By} }

const (
	// removedAsksEvery is how often a node that was told of its removal asks
	// again: a mesh that was recovered to an earlier state may know it still.
	removedAsksEvery = 10 * time.Second
	// leavingFor is how long the leader gives a node that is about to be removed
	// no vote: longer than the edit that removes it can take.
	leavingFor = 2 * maxProposeFor
)

// told is a removal by hearsay.
type told struct {
	Removal
	at time.Time
}

// removals is what a node knows of removals beside the state.
type removals struct {
	told     atomic.Pointer[told] // of this node, by a member
	yielding atomic.Bool          // leadership is on its way to another node
	// yieldedAt is of the last try for a drain; govern's alone.
	yieldedAt time.Time

	mu      sync.Mutex
	askedAt time.Time                     // of the last question whether this node is removed still
	leaving map[identity.NodeID]time.Time // votes that were taken for a removal, and when
}

// Removed says that this node was removed, by its own state or by what members
// told it since a leader was heard last.
func (n *Node) Removed() (Removal, bool) {
	view := n.state.View()
	if _, member := view.Node(n.cfg.Identity.ID); !member {
		if r, ok := view.Removed(n.cfg.Identity.ID); ok {
			return removalOf(r), true
		}
	}
	if t := n.removals.told.Load(); t != nil && !n.raft.LastContact().After(t.at) && n.raft.State() != raft.Leader {
		return t.Removal, true
	}
	return Removal{}, false
}

// dialsNobody says whether raft's dials are in vain. Raft may dial before Open
// returns, so nothing of it is asked here.
func (n *Node) dialsNobody() bool {
	view := n.state.View()
	if _, member := view.Node(n.cfg.Identity.ID); !member {
		if _, gone := view.Removed(n.cfg.Identity.ID); gone {
			return true
		}
	}
	t := n.removals.told.Load()
	return t != nil && time.Since(t.at) < 2*removedAsksEvery
}

// refuseRemoved answers edits and strict reads at a node that was removed.
func (n *Node) refuseRemoved() error {
	if r, ok := n.Removed(); ok {
		return &command.Error{Code: command.CodeDenied, Message: r.String()}
	}
	return nil
}

// noteRemoval keeps what a member said of this node, and gives up the connection
// to it: whoever was removed holds none.
func (n *Node) noteRemoval(from identity.NodeID, err error) {
	var gone *removedError
	if errors.As(err, &gone) {
		n.removals.told.Store(&told{gone.Removal, time.Now()})
		n.peers.drop(from)
	}
}

// asksAgain paces the questions of a node that was removed.
func (r *removals) asksAgain(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.askedAt) < removedAsksEvery {
		return false
	}
	r.askedAt = now
	return true
}

// CutOff closes the connections that this node has opened to one that was
// removed. Call it after the state has learned of the removal.
func (n *Node) CutOff(id identity.NodeID) {
	n.mu.Lock()
	delete(n.heard, id)
	n.mu.Unlock()
	n.peers.drop(id)
	n.stream.closeTo(id)
}

// beforeRemoval is what the leader does before the edit goes into the log: a
// node that votes gives its vote back first, and only if those that are left
// have a majority in reach. What the state will refuse anyway moves nothing.
func (n *Node) beforeRemoval(ctx context.Context, env *command.Envelope) error {
	if env.GetType() != command.Type_TYPE_NODE_REMOVE {
		return nil
	}
	body, err := env.Open()
	if err != nil {
		return &command.Error{Code: command.CodeInvalid, Message: err.Error()}
	}
	m := body.(*command.NodeRemove)
	id, err := identity.NodeIDFromBytes(m.GetNodeId())
	if err != nil {
		return &command.Error{Code: command.CodeInvalid, Message: err.Error()}
	}
	view := n.state.View()
	node, member := view.Node(id)
	site, _ := view.SiteByID(node.SiteID)
	if !member || view.CheckRemove(id) != nil || (m.GetIfVersion() != 0 && m.GetIfVersion() != site.Version) {
		return nil //nolint:nilerr // a repetition of what was done already, among others
	}
	voters, _ := n.servers()
	if !slices.Contains(voters, id) {
		n.removals.leave(id)
		return nil
	}
	if id == n.cfg.Identity.ID {
		if err := n.yield(ctx, true); err != nil {
			return &command.Error{Code: command.CodeConflict, Message: fmt.Sprintf("site %s leads the mesh and no other can take over: %s", node.Site, err)}
		}
		return &notLeader{} // whoever leads now goes on
	}
	rest := slices.DeleteFunc(slices.Clone(voters), func(v identity.NodeID) bool { return v == id })
	alive := n.answering(ctx, rest)
	if need := len(rest)/2 + 1; len(alive) < need {
		var away []string
		for _, v := range rest {
			if !slices.Contains(alive, v) {
				away = append(away, n.siteName(v))
			}
		}
		slices.Sort(away)
		return &command.Error{Code: command.CodeConflict, Message: fmt.Sprintf(
			"site %s votes, and without it %d of %d voters would be in reach, too few to go on: bring %s back first, or remove what is gone for good",
			node.Site, len(alive), len(rest), strings.Join(away, ", "))}
	}
	n.removals.leave(id)
	n.log.Info("taking the vote of a node that is being removed", "site", node.Site, "node", id)
	if err := n.raft.DemoteVoter(raft.ServerID(id.String()), 0, n.cfg.Profile.Election).Error(); err != nil {
		return n.watchTransfer(err)
	}
	return nil
}

// leave keeps a node from getting a vote while its removal is on its way.
func (r *removals) leave(id identity.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving == nil {
		r.leaving = make(map[identity.NodeID]time.Time)
	}
	for other, at := range r.leaving {
		if time.Since(at) > leavingFor {
			delete(r.leaving, other)
		}
	}
	r.leaving[id] = time.Now()
}

func (r *removals) leaves(id identity.NodeID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.leaving[id]
	return ok && time.Since(at) <= leavingFor
}

// answering asks nodes for a sign of life, all at once, and gives those that
// answer, in their order. This node always does.
func (n *Node) answering(ctx context.Context, ids []identity.NodeID) []identity.NodeID {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Profile.Election/2)
	defer cancel()
	answers := make([]bool, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		if id == n.cfg.Identity.ID {
			answers[i] = true
			continue
		}
		wg.Go(func() {
			_, err := n.ping(ctx, id)
			answers[i] = err == nil
		})
	}
	wg.Wait()
	var out []identity.NodeID
	for i, id := range ids {
		if answers[i] {
			out = append(out, id)
		}
	}
	return out
}
