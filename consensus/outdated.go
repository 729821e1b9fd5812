package consensus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/durable"
	"github.com/portolan/portolan/node/identity"
)

// OutdatedError ends a node that has to begin anew: its caller closes all that
// uses it, calls [SetAside], and opens it again.
type OutdatedError struct{ Reason string }

func (e *OutdatedError) Error() string {
	return "consensus: this node's control state has to be taken anew: " + e.Reason
}

const (
	outdatedFile  = "outdated"
	returningFile = "returning"

	reasonOutdated = "this node's control state is an old one, and waits to be replaced by the mesh's"
)

// beOutdated ends this node's part in raft, at once and over restarts. It goes
// on answering reads from what it has until a leader is there to take it back.
func (n *Node) beOutdated(reason string, generation []byte) {
	o := &Outdated{Reason: reason, Generation: generation, Voters: n.electorate()}
	if !n.outdated.CompareAndSwap(nil, o) {
		return
	}
	n.guard.shutDoor()
	n.log.Warn("this node takes no part in the mesh's decisions until it has taken its control state anew", "reason", reason)
	// Before it can be started again: it must not vote then either.
	n.keepOutdated(o)
	close(n.isOut)
}

func (n *Node) keepOutdated(o *Outdated) {
	b, err := proto.Marshal(o)
	if err == nil {
		err = durable.WriteFile(filepath.Join(n.cfg.Dir, outdatedFile), b)
	}
	if err != nil {
		n.stop(fmt.Errorf("consensus: %s, and this cannot be kept: %w", o.GetReason(), err))
	}
}

func (n *Node) isOutdated() *Outdated { return n.outdated.Load() }

// loadOutdated finds what a run before found.
func (n *Node) loadOutdated() error {
	var o Outdated
	if found, err := readMessage(filepath.Join(n.cfg.Dir, outdatedFile), &o); err != nil || !found {
		return err
	}
	n.outdated.Store(&o)
	n.guard.shutDoor()
	close(n.isOut)
	return nil
}

// loadReturning finds whether this directory was begun anew.
func (n *Node) loadReturning() error {
	found, err := readMessage(filepath.Join(n.cfg.Dir, returningFile), &n.returning)
	if found {
		n.comingBack.Store(true)
	}
	return err
}

// takePart opens this node's part in raft, when it may; and when it may not, or
// no more, waits for the one who takes it back.
func (n *Node) takePart(ctx context.Context) {
	switch {
	case n.isOutdated() != nil:
	case n.comingBack.Load():
		n.comeBack(ctx)
	default:
		n.greetOthers(ctx)
		n.awaitNotRemoved(ctx)
		n.guard.set(takesPart, 0)
	}
	if n.isOutdated() == nil {
		n.stand(ctx)
	}
	select {
	case <-ctx.Done():
		return
	case <-n.isOut:
	}
	// raft does no more here: neither as leader, nor by its timers.
	n.down()
	o := n.isOutdated()
	w := awaited{generation: o.GetGeneration(), follow: o.GetFollow(), voters: o.GetVoters()}
	w.moved = func(generation []byte) {
		// Before the directory is set aside: the next one shall wait for this too.
		o = &Outdated{Reason: o.GetReason(), Generation: generation, Follow: o.GetFollow(), Voters: o.GetVoters()}
		n.outdated.Store(o)
		n.keepOutdated(o)
	}
	if _, ok := n.awaitLeader(ctx, w); ok {
		n.stop(&OutdatedError{Reason: o.GetReason()})
	}
}

// awaited is the leader that a node without a part waits for.
type awaited struct {
	generation []byte   // whose leader; empty: any
	follow     []byte   // whom to ask; empty: any member
	voters     [][]byte // whose word is taken for a later recovery
	moved      func(generation []byte)
	stop       <-chan struct{} // ends the waiting
}

// awaitLeader waits until some member names a leader of the generation, or of
// one that a later recovery began.
func (n *Node) awaitLeader(ctx context.Context, w awaited) (identity.NodeID, bool) {
	tick := time.NewTicker(max(n.cfg.Profile.Election/5, pollLost))
	defer tick.Stop()
	for {
		strangers := 0
		for _, id := range n.others(w.follow) {
			ask, cancel := context.WithTimeout(ctx, n.cfg.Profile.Election/2)
			rep, err := n.ping(ask, id)
			cancel()
			if status.Code(err) == codes.PermissionDenied {
				strangers++
				continue
			}
			if err != nil && len(w.follow) > 0 {
				site := n.siteName(id)
				n.sayOnce("follows "+site, func() {
					n.log.Warn("this node was told to follow one site alone, which does not answer: if it is lost, stop this node and run here: portolan recover --follow ANOTHER-SITE", "site", site, "error", err)
				})
			}
			if err != nil || !n.isAwaited(&w, id, rep) {
				continue
			}
			leader, err := identity.NodeIDFromBytes(rep.GetLeaderId())
			if err == nil && !leader.IsZero() && leader != n.cfg.Identity.ID {
				return leader, true
			}
		}
		if strangers > 0 {
			n.sayOnce("no member", func() {
				n.log.Error("other sites say that this node is no member: if it was removed, join again with a new token, in a new data directory")
			})
		}
		select {
		case <-ctx.Done():
			return identity.NodeID{}, false
		case <-w.stop:
			return identity.NodeID{}, false
		case <-tick.C:
		}
	}
}

// isAwaited judges an answer by the generation that it is of. A node that waits
// for the leader of one recovery would wait for ever if that one's node was lost
// in its turn and the mesh recovered once more. The later recovery says which ones
// it ended; it is followed as the first was, on a voter's word: invariant C22.
func (n *Node) isAwaited(w *awaited, id identity.NodeID, rep *PingReply) bool {
	theirs := rep.GetGeneration()
	if len(w.generation) == 0 || string(theirs) == string(w.generation) {
		return true
	}
	is := func(b []byte) func([]byte) bool { return func(o []byte) bool { return string(o) == string(b) } }
	site := n.siteName(id)
	switch {
	case !slices.ContainsFunc(rep.GetEnded(), is(w.generation)):
		n.sayOnce("generation "+string(theirs), func() {
			n.log.Warn("this node waits for a leader of one raft generation, and another site answers in another: it has not come back yet itself, or was recovered apart: see consensus/RECOVERY.md",
				"site", site, "waits_for", fmt.Sprintf("%x", w.generation), "answers_in", fmt.Sprintf("%x", theirs))
		})
		return false
	case !slices.ContainsFunc(w.voters, is(id[:])):
		n.sayOnce("follow "+site, func() {
			n.log.Error("a site that did not vote was recovered; if that was meant, stop this node and run here: portolan recover --follow "+site, "site", site, "node", id)
		})
		return false
	}
	n.log.Warn("the mesh was recovered once more while this node waited: it comes back to that", "site", site, "node", id)
	w.generation = theirs
	w.moved(theirs)
	return true
}

// electorate are the nodes whose word of a recovery is taken: who voted by this
// node's own log and, until it is back, by the one that it set aside.
func (n *Node) electorate() [][]byte {
	voters, _ := n.servers()
	var out [][]byte
	for _, id := range voters {
		out = append(out, id[:])
	}
	if !n.comingBack.Load() {
		return out
	}
	for _, b := range n.returning.GetBefore() {
		if b.GetVoter() {
			out = append(out, b.GetNodeId())
		}
	}
	return out
}

// others gives the members that this node knows but for itself.
func (n *Node) others(follow []byte) []identity.NodeID {
	if id, err := identity.NodeIDFromBytes(follow); err == nil {
		return []identity.NodeID{id}
	}
	ids := n.heardIDs()
	for _, m := range n.state.View().Nodes() {
		if !slices.Contains(ids, m.ID) {
			ids = append(ids, m.ID)
		}
	}
	return slices.DeleteFunc(ids, func(id identity.NodeID) bool { return id == n.cfg.Identity.ID })
}

// comeBack has a leader take this node's vote away, then learns from it, and is
// a learner like any other once it has all that was committed by then. Invariant
// C21 has the reasons for this order.
func (n *Node) comeBack(ctx context.Context) {
	var until uint64
	for {
		leader, ok := n.awaitLeader(ctx, awaited{generation: n.generation(), follow: n.returning.GetFollow(), voters: n.electorate(), moved: n.comeBackTo, stop: n.isOut})
		if !ok || n.isOutdated() != nil {
			return
		}
		rep, err := n.askReturn(ctx, leader)
		if err == nil {
			n.guard.set(learns, rep.GetTerm())
			until = rep.GetIndex()
			break
		}
		n.log.Debug("the leader has not taken this node back yet", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-n.isOut:
			return
		case <-time.After(n.cfg.Profile.Election / 5):
		}
	}
	tick := time.NewTicker(pollLost)
	defer tick.Stop()
	for n.raft.CommitIndex() < until {
		select {
		case <-ctx.Done():
			return
		case <-n.isOut:
			return
		case <-tick.C:
		}
	}
	// From here on the log has more than anybody remembers of the one before.
	err := os.Remove(filepath.Join(n.cfg.Dir, returningFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(err, durable.SyncDirs(n.cfg.Dir)); err != nil {
		n.stop(fmt.Errorf("consensus: this node is back, and that cannot be kept: %w", err))
		return
	}
	n.guard.set(takesPart, 0)
	n.comingBack.Store(false)
	n.log.Info("this node has taken its control state anew: it learns, and votes again when the mesh says so", "index", until)
}

// comeBackTo is for a generation that began while this node came back to another.
func (n *Node) comeBackTo(generation []byte) {
	if !n.state.View().Mesh().ID.IsZero() {
		// Of the one before it has taken something: that is set aside in its turn.
		n.beOutdated("the mesh was recovered once more while this node came back", generation)
		return
	}
	n.mu.Lock()
	n.seedGeneration = generation
	n.mu.Unlock()
}

func (n *Node) askReturn(ctx context.Context, leader identity.NodeID) (*ReturnReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*n.cfg.Profile.Election)
	defer cancel()
	c, err := n.peers.connected(ctx, leader)
	if err != nil {
		return nil, err
	}
	return c.Return(ctx, &ReturnRequest{Generation: n.generation()})
}

// Return implements ControlServer.
func (n *server) Return(ctx context.Context, req *ReturnRequest) (*ReturnReply, error) {
	caller, err := n.member(ctx)
	if err != nil {
		return nil, err
	}
	if gen := req.GetGeneration(); len(gen) > 0 && string(gen) != string(n.generation()) {
		return nil, toStatus(&command.Error{Code: command.CodeConflict, Message: "this node is of another raft generation"})
	}
	if n.raft.State() != raft.Leader || n.isOutdated() != nil {
		_, id := n.raft.LeaderWithID()
		return nil, toStatus(&notLeader{leader: string(id)})
	}
	done, err := n.begin()
	if err != nil {
		return nil, toStatus(err)
	}
	defer done()
	servers, at, err := n.configuration()
	if err != nil {
		return nil, toStatus(err)
	}
	id := raft.ServerID(caller.String())
	if voters, _ := split(servers); slices.Contains(voters, caller) {
		// On top of the configuration that was looked at, or not at all.
		if _, err := n.change(at, func() raft.IndexFuture { return n.raft.DemoteVoter(id, 0, n.cfg.Profile.Election) }); err != nil {
			return nil, toStatus(&command.Unavailable{Reason: "the vote of a node that comes back cannot be taken away: " + err.Error(), RetryAfter: n.cfg.Profile.Election})
		}
	}
	n.memory.forget(caller)
	// What was decided of the configuration before is committed with it.
	b, err := n.barriers.wait(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	if b.index == 0 {
		return nil, toStatus(&notLeader{})
	}
	n.log.Info("a node that has lost its control state learns it anew", "site", n.siteName(caller), "node", caller)
	return &ReturnReply{Term: b.term, Index: b.index}, nil
}
