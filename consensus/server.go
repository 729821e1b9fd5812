package consensus

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
)

// Register offers the node's calls on the control port.
func (n *Node) Register(r grpc.ServiceRegistrar) { RegisterControlServer(r, &server{Node: n}) }

// server is the node as other nodes see it.
type server struct {
	UnimplementedControlServer
	*Node
}

// member refuses callers that are no members.
func (n *Node) member(ctx context.Context) (identity.NodeID, error) {
	id, ok := wire.PeerNodeID(ctx)
	if r, gone := n.state.View().Removed(id); ok && gone {
		return id, toStatus(&removedError{removalOf(r)})
	}
	if !ok || !n.IsMember(id) {
		return id, status.Error(codes.PermissionDenied, "only members of the mesh may ask this")
	}
	return id, nil
}

// Propose implements ControlServer: one hop, never another.
func (n *server) Propose(ctx context.Context, req *ProposeRequest) (*ProposeReply, error) {
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
	res, term, err := n.apply(ctx, req.GetEnvelope())
	if err != nil {
		return nil, toStatus(err)
	}
	return &ProposeReply{Index: res.Index, Id: res.ID, Term: term}, nil
}

// Ping implements ControlServer.
func (n *server) Ping(ctx context.Context, req *PingRequest) (*PingReply, error) {
	caller, err := n.member(ctx)
	if err != nil {
		return nil, err
	}
	view := n.state.View()
	if self := req.GetSelf(); self != nil && string(self.GetId()) == string(caller[:]) {
		// It has moved, and may need this node's vote to say so: what it says of
		// itself counts until the state here goes on.
		n.hear([]*command.Node{self}, view.Index()+1)
	}
	if _, leader := n.raft.LeaderWithID(); string(leader) == caller.String() {
		n.memory.take(req.GetAcknowledged()) // from its leader, as raft's own messages are
	}
	mesh := view.Mesh()
	rep := &PingReply{Term: n.raft.CurrentTerm(), LastIndex: n.raft.LastIndex(), LastTerm: n.lastTerm(), Applied: view.Index(), LastContactMs: -1,
		NowUnixNs: n.cfg.Now().UnixNano(), MeshId: mesh.ID[:], Generation: mesh.Generation[:], Ended: n.endedGenerations(), GossipRevision: n.keys.installed()}
	// One that takes no part, yet or any more, hears no leader whatever it is sent:
	// nobody shall count on it, nor give it a vote.
	if c := n.lastContact(); c >= 0 && n.guard.is() == takesPart {
		rep.LastContactMs = c.Milliseconds()
	}
	if _, id := n.raft.LeaderWithID(); id != "" {
		if leader, err := identity.ParseNodeID(string(id)); err == nil {
			rep.LeaderId = leader[:]
		}
	}
	if view.Index() > req.GetIndex() {
		rep.Nodes = nodeRecords(view)
	}
	if req.GetTrips() {
		rep.Trips = n.trips.tell()
	}
	return rep, nil
}

func nodeRecords(view *state.View) []*command.Node {
	nodes := view.Nodes()
	out := make([]*command.Node, len(nodes))
	for i, m := range nodes {
		out[i] = m.Command()
	}
	return out
}

// Join implements ControlServer. The caller may be a stranger.
func (n *server) Join(ctx context.Context, req *JoinRequest) (*JoinReply, error) {
	caller, ok := wire.PeerNodeID(ctx)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "a node key is needed")
	}
	select {
	case n.joins <- struct{}{}:
		defer func() { <-n.joins }()
	default:
		return nil, toStatus(&command.Unavailable{Reason: "too many joins are under way at this node", RetryAfter: time.Second})
	}
	if req.GetForwarded() {
		if !n.IsMember(caller) {
			return nil, status.Error(codes.PermissionDenied, "only members of the mesh may pass on a join")
		}
		rep, err := n.admit(ctx, req)
		return rep, toStatus(err)
	}
	joiner, err := identity.NodeIDFromBytes(req.GetNode().GetId())
	if err != nil || joiner != caller {
		return nil, toStatus(&command.Error{Code: command.CodeDenied, Message: "the node's record names another key than the one that it shows"})
	}
	if err := n.judgeJoiner(req); err != nil {
		return nil, toStatus(err)
	}
	rep, err := n.admitAnywhere(ctx, req)
	return rep, toStatus(err)
}

// judgeJoiner looks at what any member can judge.
func (n *Node) judgeJoiner(req *JoinRequest) error {
	mesh := n.state.View().Mesh()
	now := n.cfg.Now()
	skew := time.Unix(0, req.GetNowUnixNs()).Sub(now)
	switch {
	case mesh.ID.IsZero():
		return &command.Unavailable{Reason: "this node has not got the mesh's state yet", RetryAfter: n.cfg.Profile.Election}
	case string(req.GetMeshId()) != string(mesh.ID[:]):
		return &command.Error{Code: command.CodeDenied, Message: "the token is for another mesh than the one that this address belongs to: make a new token in the mesh that you want to join"}
	case skew.Abs() > maxClockSkew:
		return &command.Error{Code: command.CodeInvalid, Message: fmt.Sprintf("the clocks differ by %s: here it is %s, at the mesh %s; set the clock of the machine that is wrong (NTP) and join again",
			skew.Abs().Round(time.Second), time.Unix(0, req.GetNowUnixNs()).UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))}
	case req.GetMinLevel() > mesh.Level:
		return &command.Error{Code: command.CodeConflict, Message: fmt.Sprintf("this version of portolan is too new: it needs command level %d and the mesh is at %d; upgrade the other sites first, or install the version that they run",
			req.GetMinLevel(), mesh.Level)}
	}
	return nil
}

// admitAnywhere brings the join to the leader, within the time of an edit.
func (n *Node) admitAnywhere(ctx context.Context, req *JoinRequest) (*JoinReply, error) {
	var waiting time.Time
	for {
		rep, err := n.admitAtLeader(ctx, req)
		var refusal *command.Error
		if err == nil || errors.As(err, &refusal) {
			return rep, err
		}
		switch {
		case n.lostMajority():
			return nil, n.unavailable(reasonLost, false)
		case ctx.Err() != nil:
			return nil, n.unavailable(reasonSlow, true)
		case waiting.IsZero():
			waiting = time.Now()
		case time.Since(waiting) >= n.cfg.Profile.Election:
			return nil, n.unavailable(reasonNoLeader, false)
		}
		select {
		case <-ctx.Done():
		case <-n.lifetime.Done():
			return nil, n.stoppingError(false)
		case <-time.After(retryPause):
		}
	}
}

func (n *Node) admitAtLeader(ctx context.Context, req *JoinRequest) (*JoinReply, error) {
	if n.raft.State() == raft.Leader {
		return n.admit(ctx, req)
	}
	_, id := n.raft.LeaderWithID()
	leader, err := identity.ParseNodeID(string(id))
	if err != nil {
		return nil, &notLeader{}
	}
	ctx, stop := n.whileLed(ctx, id)
	defer stop()
	c, err := n.peers.connected(ctx, leader)
	if err != nil {
		return nil, err
	}
	fwd := &JoinRequest{MeshId: req.GetMeshId(), TokenId: req.GetTokenId(), Secret: req.GetSecret(), Site: req.GetSite(), Node: req.GetNode(),
		NowUnixNs: req.GetNowUnixNs(), MinLevel: req.GetMinLevel(), Forwarded: true}
	rep, err := c.Join(ctx, fwd)
	if err != nil {
		return nil, fromStatus(err)
	}
	return rep, nil
}

// admit is the leader's part. The token is looked at before anything goes into
// the log: strangers must not be able to fill it.
func (n *Node) admit(ctx context.Context, req *JoinRequest) (*JoinReply, error) {
	if n.raft.State() != raft.Leader {
		return nil, &notLeader{}
	}
	joiner, err := identity.NodeIDFromBytes(req.GetNode().GetId())
	if err != nil {
		return nil, &command.Error{Code: command.CodeInvalid, Message: err.Error()}
	}
	hash := sha256.Sum256(req.GetSecret())
	if _, err := n.state.View().CheckToken(req.GetTokenId(), hash[:], req.GetSite(), joiner, n.cfg.Now()); err != nil {
		return nil, err
	}
	body := &command.NodeJoin{TokenId: req.GetTokenId(), SecretHash: hash[:], Site: req.GetSite(), Node: req.GetNode(),
		Keys: n.keys.forJoiner(n.state.View(), req.GetNode())}
	if _, err := n.Propose(ctx, "node:"+joiner.String(), body); err != nil {
		return nil, err
	}
	n.log.Info("a node joined the mesh", "node", joiner, "site", req.GetSite())
	view := n.state.View()
	mesh := view.Mesh()
	return &JoinReply{MeshId: mesh.ID[:], Nodes: nodeRecords(view), Profile: mesh.Profile, Generation: mesh.Generation[:],
		NowUnixNs: n.cfg.Now().UnixNano(), Level: mesh.Level}, nil
}
