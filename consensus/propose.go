package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// notLeader is internal: the command was not taken, another node leads.
type notLeader struct{ leader string }

func (e *notLeader) Error() string { return "consensus: this node does not lead" }

// decided is a refusal with the index at which the state gave it.
type decided struct {
	refusal     *command.Error
	index, term uint64
}

func (d *decided) Error() string { return d.refusal.Message }

// Unwrap lets errors.As find the refusal.
func (d *decided) Unwrap() error { return d.refusal }

// Propose makes an edit: it brings body to the leader, and returns when this
// node has applied it. actor is "user:NAME", "node:ID" or "system".
//
// A *command.Error means that the state refuses it; nothing was changed. A
// *command.Unavailable means that no majority could decide; see its
// Indeterminate. Retries on the way carry the same request id, so the edit is
// made once at most.
func (n *Node) Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error) {
	env, err := command.New(actor, n.cfg.Now(), body)
	if err != nil {
		return command.Result{}, err
	}
	return n.propose(ctx, env)
}

func (n *Node) propose(ctx context.Context, env *command.Envelope) (command.Result, error) {
	done, err := n.begin()
	if err != nil {
		return command.Result{}, err
	}
	defer done()
	start := time.Now()
	var res command.Result
	err = n.decide(ctx, func(ctx context.Context) (err error) {
		res, err = n.attempt(ctx, env)
		return err
	})
	n.stats.proposed(time.Since(start), err)
	var d *decided
	if errors.As(err, &d) {
		n.mustArrive(ctx, d.index)
		return command.Result{Index: d.index}, d.refusal
	}
	if err != nil {
		return command.Result{}, err
	}
	n.mustArrive(ctx, res.Index)
	return res, nil
}

// begin counts an edit under way; Close waits for them.
func (n *Node) begin() (done func(), err error) {
	select {
	case n.edits <- struct{}{}:
	default:
		return nil, &command.Unavailable{Reason: fmt.Sprintf("%d edits are under way at this node", maxInFlight), RetryAfter: time.Second}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopped {
		<-n.edits
		return nil, n.stoppingError(false)
	}
	n.work.Add(1)
	return func() { <-n.edits; n.work.Done() }, nil
}

func (n *Node) stoppingError(indeterminate bool) *command.Unavailable {
	return &command.Unavailable{Reason: "this node is stopping", RetryAfter: n.cfg.Profile.Election, Indeterminate: indeterminate}
}

// unavailable is the answer when no majority decides.
func (n *Node) unavailable(reason string, indeterminate bool) *command.Unavailable {
	if reason == reasonOutdated { // no other site's fault
		return &command.Unavailable{Reason: reason, RetryAfter: n.cfg.Profile.Election, Indeterminate: indeterminate}
	}
	return &command.Unavailable{Reason: reason, Sites: n.reach.unreachable(), RetryAfter: n.cfg.Profile.Election, Indeterminate: indeterminate}
}

const (
	reasonLost     = "the majority of the voting sites cannot be reached from here"
	reasonAway     = "the leading site cannot be reached from here, though others reach it"
	reasonNoLeader = "the voting sites have not elected a leader yet"
	reasonSlow     = "the leading site does not answer in time"
	reasonBehind   = "this node has not got the newest edits yet"
)

// decide tries until someone decides, within the bounds that the package's
// comment promises.
func (n *Node) decide(ctx context.Context, attempt func(context.Context) error) error {
	if err := n.refuseRemoved(); err != nil {
		return err
	}
	if why := n.cutOff(); why != "" {
		return n.unavailable(why, false)
	}
	ctx, cancel := context.WithTimeout(ctx, maxProposeFor)
	defer cancel()
	var (
		unsure  bool      // an attempt may have got through
		waiting time.Time // since when there has been nobody to decide
		pause   = time.NewTimer(0)
	)
	defer pause.Stop()
	for {
		err := attempt(ctx)
		var refusal *command.Error
		var maybe *command.Unavailable
		switch {
		case err == nil || errors.As(err, &refusal):
			return err
		case errors.As(err, &maybe):
			unsure = unsure || maybe.Indeterminate
		}
		why := n.cutOff()
		switch {
		case n.lifetime.Err() != nil:
			return n.stoppingError(unsure)
		case !unsure && n.refuseRemoved() != nil:
			return n.refuseRemoved()
		case why != "":
			return n.unavailable(why, unsure)
		case ctx.Err() != nil:
			return n.unavailable(reasonSlow, unsure)
		case waiting.IsZero():
			waiting = time.Now()
		case time.Since(waiting) >= n.cfg.Profile.Election:
			return n.unavailable(reasonNoLeader, unsure)
		}
		pause.Reset(retryPause + rand.N(retryPause)) // jitter: all that wait would come at once
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
}

// lostMajority reports whether the majority is out of reach.
func (n *Node) lostMajority() bool {
	return n.reach.lost()
}

// cutOff gives the reason why edits are refused at once; empty: they are not.
func (n *Node) cutOff() string {
	switch {
	case n.isOutdated() != nil:
		return reasonOutdated
	case n.lostMajority():
		return reasonLost
	case n.reach.leaderAway():
		return reasonAway
	}
	return ""
}

// whileLed gives a context for a call to the leader. It ends when another node
// leads, or none: a call to a leader that was cut off would wait for ever while
// the others have long gone on. It also ends when this node is cut off.
func (n *Node) whileLed(ctx context.Context, leader raft.ServerID) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		defer cancel()
		t := time.NewTicker(pollLost)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-n.lifetime.Done():
				return
			case <-t.C:
				if _, now := n.raft.LeaderWithID(); now != leader || n.cutOff() != "" {
					return
				}
			}
		}
	}()
	return ctx, func() { cancel(); <-finished }
}

// attempt brings the command to whoever leads now.
func (n *Node) attempt(ctx context.Context, env *command.Envelope) (command.Result, error) {
	if n.raft.State() == raft.Leader {
		res, _, err := n.apply(ctx, env)
		return res, err
	}
	_, id := n.raft.LeaderWithID()
	if id == "" {
		return command.Result{}, &notLeader{}
	}
	leader, err := identity.ParseNodeID(string(id))
	if err != nil || leader == n.cfg.Identity.ID {
		return command.Result{}, &notLeader{}
	}
	ctx, stop := n.whileLed(ctx, id)
	defer stop()
	c, err := n.peers.connected(ctx, leader)
	if err != nil {
		return command.Result{}, err // nothing was sent
	}
	rep, err := c.Propose(ctx, &ProposeRequest{Envelope: env})
	if err != nil {
		err = fromStatus(err)
		n.noteRemoval(leader, err)
		var d *decided
		if errors.As(err, &d) {
			n.commits.heard(leader, d.index, d.term)
		}
		return command.Result{}, err
	}
	n.commits.heard(leader, rep.GetIndex(), rep.GetTerm())
	return command.Result{Index: rep.GetIndex(), ID: rep.GetId()}, nil
}

// apply is the leader's part: it stamps the command with its clock and has raft
// commit it. It gives the term of the entry too, in which this node leads.
func (n *Node) apply(ctx context.Context, env *command.Envelope) (command.Result, uint64, error) {
	if err := command.Check(env); err != nil {
		return command.Result{}, 0, err
	}
	if n.isOutdated() != nil {
		return command.Result{}, 0, &notLeader{}
	}
	if env.GetType() == command.Type_TYPE_MESH_RECOVERED {
		return command.Result{}, 0, &command.Error{Code: command.CodeDenied, Message: "only portolan recover begins a raft generation"}
	}
	if mesh := n.state.View().Mesh(); !mesh.ID.IsZero() && env.GetMinLevel() > mesh.Level {
		return command.Result{}, 0, &command.Error{Code: command.CodeConflict,
			Message: fmt.Sprintf("the edit needs command level %d and the mesh is at %d: upgrade all nodes first", env.GetMinLevel(), mesh.Level)}
	}
	if !command.Known(env.GetType()) && !command.CanIgnore(env.GetType()) {
		return command.Result{}, 0, &command.Error{Code: command.CodeInvalid,
			Message: fmt.Sprintf("the leading site does not know command type %d: upgrade it first", uint32(env.GetType()))}
	}
	if err := n.beforeRemoval(ctx, env); err != nil {
		return command.Result{}, 0, err
	}
	stamped := proto.Clone(env).(*command.Envelope)
	stamped.ProposedUnixNs = n.cfg.Now().UnixNano()
	b, err := proto.Marshal(stamped)
	if err != nil {
		return command.Result{}, 0, &command.Error{Code: command.CodeInvalid, Message: fmt.Sprintf("the edit cannot be encoded: %v", err)}
	}
	f := n.raft.Apply(b, n.cfg.Profile.Election)
	done := make(chan error, 1)
	n.work.Add(1) // the caller's own entry in work keeps it above zero
	go func() {
		defer n.work.Done()
		done <- f.Error() // ends when raft commits, steps down or stops
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		return command.Result{}, 0, &command.Unavailable{Reason: reasonSlow, Indeterminate: true, RetryAfter: n.cfg.Profile.Election}
	}
	if err := n.watchTransfer(err); err != nil {
		return command.Result{}, 0, err
	}
	a, ok := f.Response().(applied)
	var refusal *command.Error
	switch {
	case !ok || (a.err == nil && a.result.Index == 0):
		return command.Result{}, 0, &command.Unavailable{Reason: "the leading site was restored meanwhile", Indeterminate: true, RetryAfter: n.cfg.Profile.Election}
	case errors.As(a.err, &refusal):
		n.commits.made(a.result.Index, a.term)
		return a.result, a.term, &decided{refusal: refusal, index: a.result.Index, term: a.term}
	case a.err != nil:
		return command.Result{}, 0, &command.Unavailable{Reason: "the leading site is stopping", Indeterminate: true, RetryAfter: n.cfg.Profile.Election}
	}
	n.commits.made(a.result.Index, a.term)
	return a.result, a.term, nil
}

// watchTransfer sorts raft's errors into "not applied" and "not known", and ends
// the node when a leadership transfer hangs: raft#696 leaves it refusing every
// command for as long as it leads.
func (n *Node) watchTransfer(err error) error {
	if errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		now := time.Now().UnixNano()
		if !n.transferStuck.CompareAndSwap(0, now) && time.Duration(now-n.transferStuck.Load()) > 3*n.cfg.Profile.Election {
			n.stop(errors.New("consensus: a handover of leadership hangs (raft#696): this node must be restarted"))
		}
		return &notLeader{}
	}
	n.transferStuck.Store(0)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout):
		return &notLeader{}
	case errors.Is(err, raft.ErrRaftShutdown):
		return n.stoppingError(true)
	default: // ErrLeadershipLost, ErrAbortedByRestore, what is new: raft#561
		return &command.Unavailable{Reason: "leadership was lost while the edit was being made", Indeterminate: true, RetryAfter: n.cfg.Profile.Election}
	}
}

// mustArrive waits for an edit that is made: it can be seen here from then on,
// or the log says why not.
func (n *Node) mustArrive(ctx context.Context, index uint64) {
	if !n.awaitApplied(ctx, index) && ctx.Err() == nil && n.lifetime.Err() == nil {
		n.log.Warn("an edit was made but has not arrived at this node yet", "index", index)
	}
}

// awaitApplied waits until this node has applied index, one election timeout at
// most.
func (n *Node) awaitApplied(ctx context.Context, index uint64) bool {
	t := time.NewTimer(n.cfg.Profile.Election)
	defer t.Stop()
	for {
		changed := n.state.Changed()
		if n.state.View().Index() >= index {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		case <-n.lifetime.Done():
			return false
		case <-t.C:
			return false
		}
	}
}
