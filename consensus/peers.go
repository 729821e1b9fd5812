package consensus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
)

// raftAddr is what raft takes for a server's address: its id. Where that is, is
// looked up at each dial, so a node's address may change under raft's feet.
type raftAddr identity.NodeID

func (raftAddr) Network() string  { return "portolan" }
func (a raftAddr) String() string { return identity.NodeID(a).String() }

// streamLayer implements raft.StreamLayer.
type streamLayer struct {
	net.Listener
	self identity.NodeID
	node *Node

	mu   sync.Mutex
	open map[*dialled]struct{} // dialled; closed at the end, or raft waits for their time-outs
}

// dialled is a connection that leaves the list when it is closed.
type dialled struct {
	net.Conn
	layer *streamLayer
	to    identity.NodeID
}

func (d *dialled) Close() error {
	d.layer.mu.Lock()
	delete(d.layer.open, d)
	d.layer.mu.Unlock()
	return d.Conn.Close()
}

func (s *streamLayer) closeDialled() {
	s.mu.Lock()
	conns := make([]net.Conn, 0, len(s.open))
	for c := range s.open {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// closeTo ends what was dialled to one node.
func (s *streamLayer) closeTo(id identity.NodeID) {
	s.mu.Lock()
	var conns []net.Conn
	for c := range s.open {
		if c.to == id {
			conns = append(conns, c)
		}
	}
	s.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// Accept implements net.Listener: who comes is greeted before raft hears of it.
func (s *streamLayer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &greeted{Conn: c, node: s.node}, nil
}

func (s *streamLayer) Addr() net.Addr { return raftAddr(s.self) }

func (s *streamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	id, err := identity.ParseNodeID(string(address))
	if err != nil {
		return nil, err
	}
	if id != s.self && s.node.dialsNobody() {
		return nil, errors.New("this node was removed from the mesh")
	}
	addr, ok := s.node.addrOf(id)
	if !ok {
		return nil, fmt.Errorf("no address is known of node %s", id)
	}
	ctx, cancel := context.WithTimeout(s.node.lifetime, timeout)
	defer cancel()
	c, err := s.node.cfg.DialRaft(ctx, addr, id)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = c.SetDeadline(deadline)
	}
	if err == nil {
		err = s.node.greet(ctx, c, id, true)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	d := &dialled{Conn: c, layer: s, to: id}
	s.mu.Lock()
	s.open[d] = struct{}{}
	s.mu.Unlock()
	if s.node.lifetime.Err() != nil {
		return nil, errors.Join(errStopping, d.Close())
	}
	return d, nil
}

// peers keeps one gRPC connection to each node that was called.
type peers struct {
	node *Node

	mu     sync.Mutex
	closed bool
	conns  map[identity.NodeID]*peer
	ending sync.WaitGroup // connections that are being closed
}

type peer struct {
	addr string
	conn *grpc.ClientConn
}

func controlAddr(n state.Node) string {
	return net.JoinHostPort(n.Host, strconv.Itoa(n.ControlPort))
}

// get gives the client for a node, wherever it is now.
func (p *peers) get(id identity.NodeID) (ControlClient, error) {
	c, err := p.conn(id)
	if err != nil {
		return nil, err
	}
	return NewControlClient(c), nil
}

// connected gives the client for a node that is connected, so that a call which
// fails may have got through, and one that was never made is known not to have.
func (p *peers) connected(ctx context.Context, id identity.NodeID) (ControlClient, error) {
	c, err := p.conn(id)
	if err != nil {
		return nil, err
	}
	for {
		switch s := c.GetState(); s {
		case connectivity.Ready:
			return NewControlClient(c), nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return nil, fmt.Errorf("node %s cannot be reached", id)
		default:
			c.Connect()
			if !c.WaitForStateChange(ctx, s) {
				return nil, ctx.Err()
			}
		}
	}
}

func (p *peers) conn(id identity.NodeID) (*grpc.ClientConn, error) {
	addr, ok := p.node.addrOf(id)
	if !ok {
		return nil, fmt.Errorf("no address is known of node %s", id)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errStopping
	}
	c := p.conns[id]
	if c != nil && c.addr != addr {
		p.end(c)
		c = nil
	}
	if c == nil {
		conn, err := dialControl(addr, wire.Credentials(p.node.cfg.Identity, id), p.node.cfg.DialControl, p.node.cfg.Profile.Election)
		if err != nil {
			return nil, err
		}
		c = &peer{addr: addr, conn: conn}
		p.conns[id] = c
	}
	return c.conn, nil
}

// drop closes a connection that answers no more: after a cut, TCP alone would
// go on waiting for its retransmission timer long after the link is back.
func (p *peers) drop(id identity.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.conns[id]; c != nil {
		p.end(c)
		delete(p.conns, id)
	}
}

// end closes a connection while others are used: gRPC says good-bye first, and
// waits 5 s for a link that takes nothing. A caller that holds p.mu would keep
// this node from all other nodes for so long.
func (p *peers) end(c *peer) { p.ending.Go(func() { _ = c.conn.Close() }) }

func (p *peers) close() {
	p.mu.Lock()
	p.closed = true
	for id, c := range p.conns {
		p.end(c)
		delete(p.conns, id)
	}
	p.mu.Unlock()
	p.ending.Wait()
}

// dialControl makes a connection that tries again within an election timeout;
// gRPC's own back-off goes up to two minutes.
func dialControl(addr string, creds credentials.TransportCredentials, dial func(context.Context, string) (net.Conn, error), election time.Duration) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: election / 2},
			MinConnectTimeout: max(election, 2*time.Second),
		}))
}

// addrOf finds where a node's control port is: the later of what the state says
// and of what was heard. Nodes that were away are told by others where a third
// one has moved to, or they could not reach it to be told by itself.
func (n *Node) addrOf(id identity.NodeID) (string, bool) {
	view := n.state.View()
	if _, gone := view.Removed(id); gone {
		return "", false
	}
	m, ok := view.Node(id)
	if heard, known := n.heardOf(id); known && (!ok || heard.index > view.Index()) {
		m, ok = heard.Node, true
	}
	if !ok {
		return "", false
	}
	return controlAddr(m), true
}

// IsMember tells the control listener whom to let in. Beside the nodes of the
// state that this node has, it knows for a while those that it heard of from
// members: a node that was away must let a leader in that joined meanwhile, or
// it could never learn of it.
func (n *Node) IsMember(id identity.NodeID) bool {
	view := n.state.View()
	if _, ok := view.Node(id); ok {
		return true
	}
	if _, gone := view.Removed(id); gone {
		return false // whatever a member that is behind may say
	}
	_, ok := n.heardOf(id)
	return ok
}

// heardFor is how long hearsay counts at a node that has a state.
const heardFor = 5 * time.Minute

// heardNode is a member by hearsay.
type heardNode struct {
	state.Node
	index uint64 // of the state of who told; 0: the join's answer
}

func (n *Node) heardOf(id identity.NodeID) (heardNode, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.isReady() && time.Since(n.heardAt) > heardFor {
		clear(n.heard)
	}
	m, ok := n.heard[id]
	return m, ok
}

// hear takes the members that another member knows, whose state is at index.
func (n *Node) hear(nodes []*command.Node, index uint64) {
	if len(nodes) > maxPeekedNodes {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heardAt = time.Now()
	for _, m := range nodes {
		row, err := state.NodeOf(m)
		if err != nil {
			continue
		}
		if old, known := n.heard[row.ID]; index >= old.index && (known || len(n.heard) < maxPeekedNodes) {
			n.heard[row.ID] = heardNode{row, index}
		}
	}
}
