package consensus

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// CatchUp brings this node's state up to date: it returns when the state has
// every edit that was answered, at any node, before CatchUp was called. What is
// read from State then is as if it were read at the one true copy. It costs a
// round trip to the leader and what an edit costs there; calls that wait at the
// same time share it. It gives the index that the state has at least.
//
// A *command.Unavailable, with Read set, means that no majority could say.
func (n *Node) CatchUp(ctx context.Context) (uint64, error) {
	done, err := n.begin()
	if err == nil {
		defer done()
		var to uint64
		if to, err = n.reads.wait(ctx); err == nil {
			if n.awaitApplied(ctx, to) {
				n.stats.reads.WithLabelValues("read").Inc()
				return n.state.View().Index(), nil
			}
			err = n.unavailable(reasonBehind, false)
		}
	}
	var u *command.Unavailable
	if errors.As(err, &u) {
		said := *u
		said.Read, said.Indeterminate = true, false
		err = &said
	}
	n.stats.reads.WithLabelValues("unavailable").Inc()
	return 0, err
}

// barrier is what a leader's barrier gives: the entry, and the last command that
// was applied at the leader by then.
type barrier struct {
	index, term uint64
	applied     uint64
}

// askIndex finds out how far the state must be: from the leader, wherever it is.
func (n *Node) askIndex() (uint64, error) {
	var b barrier
	err := n.decide(n.lifetime, func(ctx context.Context) (err error) {
		b, err = n.askBarrier(ctx)
		return err
	})
	return b.applied, err
}

func (n *Node) askBarrier(ctx context.Context) (barrier, error) {
	if n.raft.State() == raft.Leader {
		return n.barriers.wait(ctx)
	}
	_, id := n.raft.LeaderWithID()
	leader, err := identity.ParseNodeID(string(id))
	if err != nil || leader == n.cfg.Identity.ID {
		return barrier{}, &notLeader{}
	}
	ctx, stop := n.whileLed(ctx, id)
	defer stop()
	c, err := n.peers.connected(ctx, leader)
	if err != nil {
		return barrier{}, err
	}
	rep, err := c.Barrier(ctx, &BarrierRequest{})
	if err != nil {
		return barrier{}, fromStatus(err)
	}
	// This node may not have the barrier's entry committed, or even the commands
	// before it.
	n.commits.heard(leader, rep.GetIndex(), rep.GetTerm())
	return barrier{index: rep.GetIndex(), term: rep.GetTerm(), applied: rep.GetApplied()}, nil
}

// makeBarrier is the leader's part. An entry goes through the log: that it was
// committed proves that this node led after the call began, and all that was
// committed before it is applied here. raft's VerifyLeader proves less: it
// counts learners, and answers that were sent before.
func (n *Node) makeBarrier() (barrier, error) {
	if n.isOutdated() != nil {
		return barrier{}, &notLeader{}
	}
	f := n.raft.Barrier(n.cfg.Profile.Election)
	if err := n.watchTransfer(f.Error()); err != nil {
		return barrier{}, err
	}
	b := barrier{applied: n.state.View().Index()}
	// For the notice: the entry is of the term in which this node leads.
	if at, ok := f.(interface{ Index() uint64 }); ok {
		var l raft.Log
		if n.wal.GetLog(at.Index(), &l) == nil {
			b.index, b.term = l.Index, l.Term
		}
	}
	n.stats.barriers.Inc()
	return b, nil
}

// Barrier implements ControlServer: one hop, as Propose.
func (n *server) Barrier(ctx context.Context, _ *BarrierRequest) (*BarrierReply, error) {
	if _, err := n.member(ctx); err != nil {
		return nil, err
	}
	if n.raft.State() != raft.Leader {
		_, id := n.raft.LeaderWithID()
		return nil, toStatus(&notLeader{leader: string(id)})
	}
	done, err := n.begin()
	if err != nil {
		return nil, toStatus(err)
	}
	defer done()
	b, err := n.barriers.wait(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	return &BarrierReply{Index: b.index, Term: b.term, Applied: b.applied}, nil
}

// shared does one thing at a time for many who wait for it. Who comes while it
// is being done waits for the next time: what was begun before he came may be
// too old for him.
type shared[T any] struct {
	do   func() (T, error)
	work *sync.WaitGroup // counts the doing; whoever waits is counted there himself

	mu   sync.Mutex
	next *turn[T]
	busy bool
}

type turn[T any] struct {
	done chan struct{}
	got  T
	err  error
}

func (s *shared[T]) wait(ctx context.Context) (T, error) {
	s.mu.Lock()
	if s.next == nil {
		s.next = &turn[T]{done: make(chan struct{})}
	}
	t := s.next
	if !s.busy {
		s.busy = true
		s.work.Go(s.run)
	}
	s.mu.Unlock()
	select {
	case <-t.done:
		return t.got, t.err
	case <-ctx.Done():
		var none T
		return none, &command.Unavailable{Reason: reasonSlow, Indeterminate: true}
	}
}

func (s *shared[T]) run() {
	for {
		s.mu.Lock()
		t := s.next
		s.next = nil
		if t == nil {
			s.busy = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		t.got, t.err = s.do()
		close(t.done)
	}
}
