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
	o := &Outdated{Reason: reason, Generation: generation}
	if !n.outdated.CompareAndSwap(nil, o) {
		return
	}
	n.guard.shutDoor()
	n.log.Warn("this node takes no part in the mesh's decisions until it has taken its control state anew", "reason", reason)
	// Before it can be started again: it must not vote then either.
	b, err := proto.Marshal(o)
	if err == nil {
		err = writeFile(filepath.Join(n.cfg.Dir, outdatedFile), b)
	}
	if err != nil {
		n.stop(fmt.Errorf("consensus: %s, and this cannot be kept: %w", reason, err))
	}
	close(n.isOut)
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
	var r Returning
	found, err := readMessage(filepath.Join(n.cfg.Dir, returningFile), &r)
	if found {
		n.follow = r.GetFollow()
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
		n.stand()
	}
	select {
	case <-ctx.Done():
		return
	case <-n.isOut:
	}
	// raft does no more here: neither as leader, nor by its timers.
	n.down()
	o := n.isOutdated()
	if _, ok := n.awaitLeader(ctx, o.GetGeneration(), o.GetFollow()); ok {
		n.stop(&OutdatedError{Reason: o.GetReason()})
	}
}

// awaitLeader waits until some member names a leader of the generation.
func (n *Node) awaitLeader(ctx context.Context, generation, follow []byte) (identity.NodeID, bool) {
	tick := time.NewTicker(max(n.cfg.Profile.Election/5, pollLost))
	defer tick.Stop()
	for {
		strangers := 0
		for _, id := range n.others(follow) {
			ask, cancel := context.WithTimeout(ctx, n.cfg.Profile.Election/2)
			rep, err := n.ping(ask, id)
			cancel()
			if status.Code(err) == codes.PermissionDenied {
				strangers++
				continue
			}
			if err != nil {
				continue
			}
			if len(generation) > 0 && string(rep.GetGeneration()) != string(generation) {
				n.sayOnce("generation "+string(rep.GetGeneration()), func() {
					n.log.Warn("this node waits for a leader of one raft generation, and another site answers in another: it has not come back yet itself, or the mesh was recovered once more, and then this node waits in vain: see consensus/RECOVERY.md",
						"site", n.siteName(id), "waits_for", fmt.Sprintf("%x", generation), "answers_in", fmt.Sprintf("%x", rep.GetGeneration()))
				})
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
		case <-tick.C:
		}
	}
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
		leader, ok := n.awaitLeader(ctx, n.generation(), n.follow)
		if !ok {
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
		case <-time.After(n.cfg.Profile.Election / 5):
		}
	}
	tick := time.NewTicker(pollLost)
	defer tick.Stop()
	for n.raft.CommitIndex() < until {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
	// From here on the log has more than anybody remembers of the one before.
	err := os.Remove(filepath.Join(n.cfg.Dir, returningFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(err, syncDirs(n.cfg.Dir)); err != nil {
		n.stop(fmt.Errorf("consensus: this node is back, and that cannot be kept: %w", err))
		return
	}
	n.guard.set(takesPart, 0)
	n.comingBack.Store(false)
	n.log.Info("this node has taken its control state anew: it learns, and votes again when the mesh says so", "index", until)
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
