package preflight

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/gossip"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// streamProtocol is the data plane's side of a check.
	streamProtocol = "/portolan/check/1"
	// maxMessage is far above the longest answer.
	maxMessage = 64 << 10
	// maxTokens bounds the packets of one question: a small one and a full one.
	maxTokens = 2
	// clockQuestions: the one with the shortest round trip tells of the clock.
	clockQuestions = 3
	// maxHelpers bounds the third nodes that are asked to pass a question on.
	maxHelpers = 3
)

// way is how a question travels.
type way struct {
	name string // for people: "over …"
	ask  func(ctx context.Context, q *Question) (*Answer, error)
}

// ways gives the ways to the checked node, the direct ones first.
func (k *check) ways() []way {
	out := []way{{"its control port", func(ctx context.Context, q *Question) (*Answer, error) { return k.c.askControl(ctx, k.to, q) }}}
	if k.p.Host != nil && !k.to.Witness {
		out = append(out, way{"its data port", func(ctx context.Context, q *Question) (*Answer, error) { return askStream(ctx, k.p.Host, k.to.ID, q) }})
	}
	helpers := 0
	for _, n := range k.view.Nodes() {
		if n.ID == k.self.ID || n.ID == k.to.ID || helpers == maxHelpers || !k.p.Gossip.Alive(n.ID) {
			continue
		}
		helpers++
		out = append(out, way{"site " + n.Site, func(ctx context.Context, q *Question) (*Answer, error) { return k.c.askControl(ctx, n, q) }})
	}
	return out
}

// ask has the checked node try its half, by the first way that works, and reads
// its clock.
func (k *check) ask(ctx context.Context, ways []way) {
	q := &Question{Answerer: k.to.ID[:], Origin: k.self.ID[:]}
	for _, w := range ways {
		if !k.readClock(ctx, w, q) {
			continue
		}
		look := &Question{Answerer: q.GetAnswerer(), Origin: q.GetOrigin(), Look: &Look{}}
		for i := range k.sent {
			look.Look.Sent = append(look.Look.Sent, k.sent[i][:])
			look.Look.Send = append(look.Look.Send, k.wanted[i][:])
		}
		within, cancel := context.WithTimeout(ctx, lookFor+dialFor)
		a, err := w.ask(within, look)
		cancel()
		if err == nil && len(a.GetHeard()) == len(k.sent) {
			k.answer, k.way = a, w.name
			return
		}
		if err == nil {
			err = errors.New("it answers to something else: its version does not know the question")
		}
		k.refusal = errors.Join(k.refusal, fmt.Errorf("by way of %s: %s", w.name, phrase(err)))
	}
}

// readClock asks for the clock alone, which is quick, and reports whether the way
// works.
func (k *check) readClock(ctx context.Context, w way, q *Question) bool {
	for range clockQuestions {
		within, cancel := context.WithTimeout(ctx, dialFor)
		asked, begun := k.c.cfg.Now(), time.Now()
		a, err := w.ask(within, q)
		took := time.Since(begun)
		cancel()
		if err != nil {
			k.refusal = errors.Join(k.refusal, fmt.Errorf("by way of %s: %s", w.name, phrase(err)))
			return false
		}
		r := reading{
			// The other's clock in the middle of the question, less this one's.
			offset: time.Duration((a.GetReceivedUnixNs()-asked.UnixNano())/2 + (a.GetSentUnixNs()-asked.Add(took).UnixNano())/2),
			trip:   took - time.Duration(a.GetSentUnixNs()-a.GetReceivedUnixNs()),
		}
		if !k.clockOK || r.trip < k.clock.trip {
			k.clock, k.clockOK = r, true
		}
	}
	return true
}

// reading is of the other node's clock.
type reading struct {
	offset time.Duration // its clock less this one's; wrong by half the trip at most
	trip   time.Duration
}

// askControl asks over a connection of its own to a node's control port.
func (c *Checker) askControl(ctx context.Context, to state.Node, q *Question) (*Answer, error) {
	var mu sync.Mutex
	var dialed error // what gRPC would hide in a sentence of its own, of the dial and of the handshake; guarded by mu
	note := func(err error) {
		mu.Lock()
		dialed = err
		mu.Unlock()
	}
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(to.Host, strconv.Itoa(to.ControlPort)),
		grpc.WithTransportCredentials(&notedCreds{wire.Credentials(c.cfg.Identity, to.ID), note}), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			note(err)
			return raw, err
		}))
	if err != nil {
		return nil, err
	}
	a, err := NewPreflightClient(conn).Ask(ctx, q)
	mu.Lock()
	noted := dialed // before the connection is closed, which ends a handshake that hangs
	mu.Unlock()
	if closeErr := conn.Close(); err == nil {
		err = closeErr
	}
	if err != nil && noted != nil {
		return nil, noted
	}
	if s, ok := status.FromError(err); ok && err != nil {
		switch s.Code() {
		case codes.DeadlineExceeded:
			return nil, context.DeadlineExceeded
		case codes.Unimplemented:
			return nil, errors.New("its version knows no checks: upgrade it")
		}
		return nil, errors.New(s.Message())
	}
	return a, err
}

// notedCreds tell of a handshake that failed: its error says whose key was shown.
type notedCreds struct {
	credentials.TransportCredentials
	note func(error)
}

func (c *notedCreds) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		c.note(err)
	}
	return conn, info, err
}

func (c *notedCreds) Clone() credentials.TransportCredentials {
	return &notedCreds{c.TransportCredentials.Clone(), c.note}
}

// askStream asks over the data plane's connection, which the other side may have
// opened: it may work where a dial does not.
func askStream(ctx context.Context, host Host, to identity.NodeID, q *Question) (*Answer, error) {
	st, err := host.Open(ctx, to, streamProtocol)
	if err != nil {
		return nil, err
	}
	a := new(Answer)
	if err = peer.WriteMsg(st, &StreamRequest{Kind: &StreamRequest_Question{Question: q}}, maxMessage); err == nil {
		err = peer.ReadMsg(st, a, maxMessage)
	}
	if err != nil {
		_ = st.Reset()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	return a, st.Close()
}

// Ask implements PreflightServer.
func (c *Checker) Ask(ctx context.Context, q *Question) (*Answer, error) {
	from, ok := wire.PeerNodeID(ctx)
	if !ok || !c.cfg.Members.IsMember(from) {
		return nil, status.Error(codes.PermissionDenied, "only members of the mesh may ask this")
	}
	if !q.GetPassedOn() && string(q.GetOrigin()) != string(from[:]) {
		return nil, status.Error(codes.InvalidArgument, "a node asks for itself alone")
	}
	answerer, err := identity.NodeIDFromBytes(q.GetAnswerer())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if answerer == c.cfg.Identity.ID {
		a, err := c.reply(ctx, q)
		if err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		return a, nil
	}
	if q.GetPassedOn() { // one hop, never another
		return nil, status.Error(codes.InvalidArgument, "the question is another node's")
	}
	to, ok := c.cfg.View().Node(answerer)
	if !ok {
		return nil, status.Error(codes.NotFound, "there is no such node")
	}
	a, err := c.askControl(ctx, to, &Question{Answerer: q.GetAnswerer(), Origin: q.GetOrigin(), Look: q.GetLook(), PassedOn: true})
	if err != nil {
		return nil, status.Error(codes.Unavailable, fmt.Sprintf("it cannot be reached from there: %s", phrase(err)))
	}
	return a, nil
}

// reply tries this node's half.
func (c *Checker) reply(ctx context.Context, q *Question) (*Answer, error) {
	a := &Answer{ReceivedUnixNs: c.cfg.Now().UnixNano()}
	if q.GetLook() == nil {
		a.SentUnixNs = c.cfg.Now().UnixNano()
		return a, nil
	}
	p, err := c.started()
	if err != nil {
		return nil, err
	}
	select {
	case c.answers <- struct{}{}:
		defer func() { <-c.answers }()
	default:
		return nil, errors.New("too many checks are under way there: try again later")
	}
	origin, err := identity.NodeIDFromBytes(q.GetOrigin())
	if err != nil {
		return nil, err
	}
	view := c.cfg.View()
	self, _ := view.Node(c.cfg.Identity.ID)
	to, ok := view.Node(origin) // dialed is what the control state says, whoever asks
	if !ok {
		return nil, errors.New("it does not know the asking node yet: its control state is behind")
	}
	sent, err := tokens(q.GetLook().GetSent())
	if err != nil {
		return nil, err
	}
	send, err := tokens(q.GetLook().GetSend())
	if err != nil {
		return nil, err
	}
	within, cancel := context.WithTimeout(ctx, packetsFor)
	defer cancel()
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		a.Findings = c.look(ctx, p, self, to)
	}()
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		a.Kept = keep(ctx, p.Store)
	}()
	packets := make(chan struct{})
	go func() {
		defer close(packets)
		c.sendProbes(within, p, to, send, nil)
	}()
	for _, t := range sent {
		a.Heard = append(a.Heard, p.Gossip.Heard(within, t))
	}
	<-looked
	<-kept
	cancel()
	<-packets
	if p.Store != nil {
		room, err := p.Store.Room(1)
		a.Room = &Room{Free: room.Free, Total: room.Total, Left: room.Left, Bucket: room.Bucket}
		if err != nil {
			a.Room.Error = err.Error()
		}
	}
	a.SentUnixNs = c.cfg.Now().UnixNano()
	return a, nil
}

func tokens(list [][]byte) ([]gossip.Token, error) {
	if len(list) > maxTokens {
		return nil, fmt.Errorf("%d packets in one question, at most %d are possible", len(list), maxTokens)
	}
	var out []gossip.Token
	for _, b := range list {
		if len(b) != len(gossip.Token{}) {
			return nil, errors.New("a token of another length than tokens have")
		}
		out = append(out, gossip.Token(b))
	}
	return out, nil
}

// serveStream answers one question, or takes or gives a burst.
func (c *Checker) serveStream(ctx context.Context, from identity.NodeID, st plane.Stream) {
	st.SetIdle(dialFor)
	q := new(StreamRequest)
	if peer.ReadMsg(st, q, maxMessage) != nil {
		_ = st.Reset()
		return
	}
	p, err := c.started()
	if err != nil {
		_ = st.Reset()
		return
	}
	switch q := q.GetKind().(type) {
	case *StreamRequest_Question:
		// The asker's key is the stream's: it asks this node, and for itself.
		q.Question.Origin, q.Question.Answerer = from[:], c.cfg.Identity.ID[:]
		var a *Answer
		if a, err = c.reply(ctx, q.Question); err == nil {
			err = peer.WriteMsg(st, a, maxMessage)
		}
	case *StreamRequest_Burst:
		err = c.serveBurst(ctx, p, from, st, q.Burst)
	default:
		err = errors.New("a question that this version does not know")
	}
	if err != nil {
		c.cfg.Logger.Debug("a check of a path by another node ended early", "node", from, "error", err)
		_ = st.Reset()
	}
}
