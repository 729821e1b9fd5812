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
	from identity.NodeID
	at   time.Time
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
// told it since a leader was heard last. A node that leads because a majority of
// voters follows it believes no single member; one that leads alone does: nobody
// follows it, and its own log is all that says it may.
func (n *Node) Removed() (Removal, bool) {
	view := n.state.View()
	if _, member := view.Node(n.cfg.Identity.ID); !member {
		if r, ok := view.Removed(n.cfg.Identity.ID); ok {
			return removalOf(r), true
		}
	}
	t := n.removals.told.Load()
	switch {
	case t == nil:
	case n.isOnlyVoter():
		return t.Removal, true
	case !n.raft.LastContact().After(t.at) && n.raft.State() != raft.Leader:
		return t.Removal, true
	}
	return Removal{}, false
}

func (n *Node) isOnlyVoter() bool {
	voters, _ := n.servers()
	return len(voters) == 1 && voters[0] == n.cfg.Identity.ID
}

// awaitNotRemoved keeps this node's part in raft closed while a voter, or of an
// only voter any member, says that it was removed: two removed voters that come
// back together would be a majority of their own log. It returns at once if
// nobody has said so, and when that member knows this node again.
func (n *Node) awaitNotRemoved(ctx context.Context) {
	tick := time.NewTicker(pollLost)
	defer tick.Stop()
	for {
		t := n.removals.told.Load()
		if t == nil {
			return
		}
		if voters, _ := n.servers(); !n.isOnlyVoter() && !slices.Contains(voters, t.from) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-n.isOut:
			return
		case <-tick.C:
		}
	}
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
	if !errors.As(err, &gone) {
		return
	}
	n.removals.told.Store(&told{gone.Removal, from, time.Now()})
	n.peers.drop(from)
	if _, believed := n.Removed(); !believed && n.isLed() {
		n.sayOnce("removed "+from.String(), func() {
			n.log.Error("another site says that this node was removed, and the voters that this node knows go on without that site: a recovery there has ended this mesh, or is one too many; consensus/RECOVERY.md says how to decide",
				"site", n.siteName(from), "removed_at", gone.At.UTC().Format(time.RFC3339), "removed_by", gone.By)
		})
	}
}

// noteMember forgets what a member said of this node's removal, once it answers
// as to a member: the mesh there was recovered to a state before that.
func (n *Node) noteMember(from identity.NodeID) {
	if t := n.removals.told.Load(); t != nil && t.from == from {
		n.removals.told.CompareAndSwap(t, nil)
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
	servers, at, err := n.configuration()
	if err != nil {
		return &notLeader{}
	}
	voters, _ := split(servers)
	if !slices.Contains(voters, id) {
		n.removals.leave(id)
		return nil
	}
	if id == n.cfg.Identity.ID {
		var nobody *nobodyError
		if err := n.yield(ctx, true); errors.As(err, &nobody) {
			return &command.Error{Code: command.CodeConflict, Message: fmt.Sprintf("site %s leads the mesh and no other can take over: %s", node.Site, err)}
		}
		return &notLeader{} // whoever leads now goes on; this node again, if the handover failed
	}
	rest := slices.DeleteFunc(slices.Clone(voters), func(v identity.NodeID) bool { return v == id })
	need := len(rest)/2 + 1
	alive := n.awaitAnswering(ctx, rest, need)
	if len(alive) < need {
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
	// On top of the configuration that was judged, or not at all: of several
	// removals at a time each counts on the voters that another one takes.
	if _, err := n.change(at, func() raft.IndexFuture {
		return n.raft.DemoteVoter(raft.ServerID(id.String()), 0, n.cfg.Profile.Election)
	}); err != nil {
		_ = n.watchTransfer(err)
		n.removals.stay(id)
		return &notLeader{} // the edit was never in the log: it is tried again
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

// stay takes leave back: the vote was not taken.
func (r *removals) stay(id identity.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.leaving, id)
}

func (r *removals) leaves(id identity.NodeID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.leaving[id]
	return ok && time.Since(at) <= leavingFor
}

// answering asks nodes, all at once, and gives those that follow this node, the
// leader, in their order: that they run is not enough, one that comes back with
// an old log (invariant C21) answers and acknowledges nothing. This node always
// does.
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
			rep, err := n.ping(ctx, id)
			answers[i] = err == nil && n.isFollowedBy(rep)
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

// awaitAnswering is answering until so many do, one election timeout at most: of
// a leader that has just begun not everybody has heard yet.
func (n *Node) awaitAnswering(ctx context.Context, ids []identity.NodeID, need int) []identity.NodeID {
	for end := time.Now().Add(n.cfg.Profile.Election); ; {
		alive := n.answering(ctx, ids)
		if len(alive) >= need || !time.Now().Before(end) || n.raft.State() != raft.Leader {
			return alive
		}
		select {
		case <-ctx.Done():
			return alive
		case <-time.After(retryPause):
		}
	}
}

// isFollowedBy reports whether a node that answered hears from this one as its
// leader, takes part, and has about all of the log.
func (n *Node) isFollowedBy(rep *PingReply) bool {
	return rep.GetLastContactMs() >= 0 && string(rep.GetLeaderId()) == string(n.cfg.Identity.ID[:]) && rep.GetLastIndex()+maxTrailing >= n.raft.LastIndex()
}
