package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"github.com/portolan/portolan/node/identity"
)

// noticePause is the least time between two notices to one member: under load
// raft's own messages say what is committed, and each notice costs a round.
const noticePause = 2 * time.Millisecond

// commits shortens the way of what is committed. raft's leader tells its
// followers with the next message that it has for them: at once if there are
// entries to send, else after a commit timeout; and while a message is on its
// way to a follower it sends that one no other. So a follower would see its own
// edit, and everybody else's, up to a round trip late.
//
// A leader therefore tells all members in a notice of its own, and whoever made
// the edit in its answer. The member hands the notice to its raft as what it is:
// an AppendEntries without entries, in the words that the leader's raft would
// use. raft takes it or leaves it by its own rules: one of an older term, or
// about an entry that is not in this log with that term, changes nothing. A
// notice that is lost costs a commit timeout, no more: invariant C14.
type commits struct {
	node   *Node
	stored atomic.Uint64 // last index that this node's log took in

	mu      sync.Mutex // leaf lock
	latest  notice     // of those that this node has as the leader
	pending notice     // of those that it was told
	tell    chan struct{}
	wake    chan struct{}
}

// notice is: leader, who leads or led in term, has committed the entry of index
// and term.
type notice struct {
	leader      identity.NodeID
	index, term uint64
}

// after orders notices: those of a later term go first.
func (a notice) after(b notice) bool {
	return a.term > b.term || (a.term == b.term && a.index > b.index)
}

func newCommits(n *Node) *commits {
	return &commits{node: n, tell: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// made is called at the leader that appended the entry, once it is committed.
// Only such a node may say so: there is one leader in a term.
func (c *commits) made(index, term uint64) {
	n := notice{leader: c.node.cfg.Identity.ID, index: index, term: term}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.after(c.latest) {
		c.latest = n
		signal(c.tell)
	}
}

// heard is called with what a leader said, by its notice or its answer.
func (c *commits) heard(leader identity.NodeID, index, term uint64) {
	if index == 0 || term == 0 || leader == c.node.cfg.Identity.ID {
		return
	}
	n := notice{leader: leader, index: index, term: term}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.after(c.pending) {
		c.pending = n
		signal(c.wake)
	}
}

// run hands what was heard to raft, when the log has come that far.
func (c *commits) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		c.mu.Lock()
		p := c.pending
		c.mu.Unlock()
		// The log's next entries wake this loop again.
		if p.index > c.node.raft.CommitIndex() && p.index <= c.stored.Load() && p.term >= c.node.raft.CurrentTerm() {
			c.handOn(p)
		}
	}
}

// handOn is the message that the leader's raft would send next.
func (c *commits) handOn(p notice) {
	n := c.node
	from, self := raft.ServerID(p.leader.String()), raft.ServerID(n.cfg.Identity.ID.String())
	leader := raft.RPCHeader{ProtocolVersion: protocolVersion, ID: []byte(from), Addr: n.trans.EncodePeer(from, raft.ServerAddress(from))}
	req := &raft.AppendEntriesRequest{RPCHeader: leader,
		Term: p.term, PrevLogEntry: p.index, PrevLogTerm: p.term, LeaderCommitIndex: p.index}
	if err := n.trans.AppendEntries(self, raft.ServerAddress(self), req, &raft.AppendEntriesResponse{}); err != nil {
		n.log.Debug("a commit notice was not taken", "index", p.index, "err", err)
	}
}

// storedUpTo is called when the log took in entries.
func (c *commits) storedUpTo(index uint64) {
	c.stored.Store(index)
	signal(c.wake)
}

// lead tells the members, for as long as this node leads.
func (c *commits) lead(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	told := make(map[identity.NodeID]chan struct{})
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.tell:
		}
		voters, learners := c.node.servers()
		for _, id := range append(voters, learners...) {
			if id == c.node.cfg.Identity.ID {
				continue
			}
			if told[id] == nil && len(told) < maxPeekedNodes {
				ch := make(chan struct{}, 1)
				told[id] = ch
				wg.Go(func() { c.tellOne(ctx, id, ch) })
			}
			signal(told[id])
		}
	}
}

// tellOne keeps a stream of notices to one member. What comes while a notice
// waits is told with the next one.
func (c *commits) tellOne(ctx context.Context, id identity.NodeID, news <-chan struct{}) {
	var stream grpc.ClientStreamingClient[CommitNotice, CommittedReply]
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
		c.mu.Lock()
		l := c.latest
		c.mu.Unlock()
		var err error
		if stream == nil {
			stream, err = c.open(ctx, id)
		}
		if err == nil {
			err = stream.Send(&CommitNotice{Index: l.index, Term: l.term})
		}
		if err != nil {
			stream = nil // the next notice tries again
		}
		pause.Reset(noticePause)
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
	}
}

func (c *commits) open(ctx context.Context, id identity.NodeID) (grpc.ClientStreamingClient[CommitNotice, CommittedReply], error) {
	dial, cancel := context.WithTimeout(ctx, c.node.cfg.Profile.Election)
	defer cancel()
	client, err := c.node.peers.connected(dial, id)
	if err != nil {
		return nil, err
	}
	return client.Committed(ctx)
}

// Committed implements ControlServer.
func (n *server) Committed(stream grpc.ClientStreamingServer[CommitNotice, CommittedReply]) error {
	if _, err := n.member(stream.Context()); err != nil {
		return err // a stranger shall not hold streams open
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return stream.SendAndClose(&CommittedReply{})
		} else if err != nil {
			return err
		}
		// Looked at each time: a member that was removed has nothing to say.
		leader, err := n.member(stream.Context())
		if err != nil {
			return err
		}
		n.commits.heard(leader, m.GetIndex(), m.GetTerm())
	}
}

// toldLog is raft's log, and tells how far it is.
type toldLog struct {
	raft.LogStore
	stored func(index uint64)
	// config is the index of the newest of raft's configurations that was stored;
	// one that was cut off again counts until the next: it is never too low.
	config atomic.Uint64
}

// StoreLogs implements raft.LogStore.
func (l *toldLog) StoreLogs(logs []*raft.Log) error {
	if err := l.LogStore.StoreLogs(logs); err != nil {
		return err
	}
	for _, e := range logs {
		if e.Type == raft.LogConfiguration {
			l.config.Store(e.Index)
		}
	}
	if len(logs) > 0 {
		l.stored(logs[len(logs)-1].Index)
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (l *toldLog) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// IsMonotonic implements raft.MonotonicLogStore: raft-wal is (raft#697).
func (l *toldLog) IsMonotonic() bool {
	m, ok := l.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// findConfig looks for a configuration among the entries from one on, which may
// not be committed: those before were applied.
func (l *toldLog) findConfig(from uint64) error {
	last, err := l.LastIndex()
	if err != nil {
		return err
	}
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	var e raft.Log
	for i := max(from, first, 1); i <= last; i++ {
		if err := l.GetLog(i, &e); err != nil {
			return fmt.Errorf("consensus: entry %d of the raft log: %w", i, err)
		}
		if e.Type == raft.LogConfiguration {
			l.config.Store(i)
		}
	}
	return nil
}
