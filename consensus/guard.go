package consensus

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/node/identity"
)

// errNotTaken answers raft's calls to a node that takes no part.
var errNotTaken = errors.New("consensus: this node takes no part until it is known to have what it acknowledged")

// part is how much a node takes part in raft.
type part int

const (
	// noPart: nothing goes in or out.
	noPart part = iota
	// learns: what a leader of minTerm or later sends goes in; nobody gets a vote.
	learns
	// takesPart is the usual.
	takesPart
)

// guard is raft's transport, with a door: a node whose log may lack what it once
// promised neither votes, nor acknowledges, nor stands, before a leader has
// taken its vote away. It also notes what the others acknowledge.
type guard struct {
	*raft.NetworkTransport
	node *Node
	rpcs chan raft.RPC

	mu      sync.Mutex // leaf lock
	part    part
	minTerm uint64
	shut    bool // for ever
}

func newGuard(n *Node, t *raft.NetworkTransport) *guard {
	return &guard{NetworkTransport: t, node: n, rpcs: make(chan raft.RPC)}
}

// set opens or closes the door.
func (g *guard) set(p part, minTerm uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.shut {
		g.part, g.minTerm = p, minTerm
	}
}

// shutDoor ends this node's part for as long as it runs.
func (g *guard) shutDoor() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.part, g.shut = noPart, true
}

func (g *guard) is() part {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.part
}

// Consumer implements raft.Transport.
func (g *guard) Consumer() <-chan raft.RPC { return g.rpcs }

// run hands on what comes in, for as long as the node lives.
func (g *guard) run(ctx context.Context) {
	in := g.NetworkTransport.Consumer()
	for {
		var rpc raft.RPC
		select {
		case <-ctx.Done():
			return
		case rpc = <-in:
		}
		if !g.admits(rpc) {
			refuseRPC(rpc)
			continue
		}
		rpc = g.watchInstalls(rpc)
		select {
		case <-ctx.Done():
			return
		case g.rpcs <- rpc:
		}
	}
}

// admits also notes what a leader must have had to send it.
func (g *guard) admits(rpc raft.RPC) bool {
	g.mu.Lock()
	part, minTerm := g.part, g.minTerm
	g.mu.Unlock()
	var term uint64
	switch req := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		term = req.Term
		if k := len(req.Entries); k > 0 && part == takesPart {
			g.note(raft.ServerID(req.ID), position{req.Entries[k-1].Term, req.Entries[k-1].Index})
		}
	case *raft.InstallSnapshotRequest:
		term = req.Term
	default:
		return part == takesPart
	}
	return part == takesPart || (part == learns && term >= minTerm)
}

func (g *guard) note(server raft.ServerID, p position) {
	id, err := identity.ParseNodeID(string(server))
	if err == nil && id != g.node.cfg.Identity.ID && p.index > 0 {
		g.node.memory.note(id, p)
	}
}

func refuseRPC(rpc raft.RPC) {
	if rpc.Reader != nil {
		// A snapshot follows on the connection: it is read to its end, or what is
		// said next would be taken for a part of it (raft#212).
		go func() {
			_, _ = io.Copy(io.Discard, rpc.Reader) // ends with the connection at the latest
			rpc.Respond(nil, errNotTaken)
		}()
		return
	}
	rpc.Respond(nil, errNotTaken)
}

// SetHeartbeatHandler implements raft.Transport: heartbeats come past Consumer.
func (g *guard) SetHeartbeatHandler(handle func(raft.RPC)) {
	g.NetworkTransport.SetHeartbeatHandler(func(rpc raft.RPC) {
		if !g.admits(rpc) {
			refuseRPC(rpc)
			return
		}
		handle(rpc)
	})
}

// AppendEntries implements raft.Transport.
func (g *guard) AppendEntries(id raft.ServerID, to raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if g.is() != takesPart {
		return errNotTaken
	}
	// raft looks at the request again when it was taken, and goes on behind the last
	// entry that is in it.
	req.Entries = fitting(req.Entries)
	err := g.NetworkTransport.AppendEntries(id, to, req, resp)
	if err == nil && resp.Success {
		// Before raft counts it: what is committed is remembered.
		p := position{req.PrevLogTerm, req.PrevLogEntry}
		if k := len(req.Entries); k > 0 {
			p = position{req.Entries[k-1].Term, req.Entries[k-1].Index}
		}
		g.note(id, p)
	}
	return err
}

// fitting gives the first entries, as many as one message may carry, and one at
// least.
func fitting(entries []*raft.Log) []*raft.Log {
	size := 0
	for i, l := range entries {
		if size += len(l.Data); size > maxAppendBytes && i > 0 {
			return entries[:i]
		}
	}
	return entries
}

// InstallSnapshot implements raft.Transport.
func (g *guard) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if g.is() != takesPart {
		return errNotTaken
	}
	err := g.NetworkTransport.InstallSnapshot(id, to, req, resp, data)
	if err == nil && resp.Success {
		g.note(id, position{req.LastLogTerm, req.LastLogIndex})
	}
	return err
}

// RequestVote implements raft.Transport.
func (g *guard) RequestVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if g.is() != takesPart {
		return errNotTaken
	}
	return g.NetworkTransport.RequestVote(id, to, req, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (g *guard) RequestPreVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if g.is() != takesPart {
		return errNotTaken
	}
	return g.NetworkTransport.RequestPreVote(id, to, req, resp)
}

// TimeoutNow implements raft.Transport.
func (g *guard) TimeoutNow(id raft.ServerID, to raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	if g.is() != takesPart {
		return errNotTaken
	}
	return g.NetworkTransport.TimeoutNow(id, to, req, resp)
}
