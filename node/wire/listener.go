package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire/door"
)

// controlPortOption is the option that moves the control port.
const controlPortOption = "--control-port"

const (
	// maxHandshakes bounds the handshakes under way: each costs about 40 KiB
	// and one signature.
	maxHandshakes = 256
	// maxHandshakesPerPeer keeps one address (one /64 of IPv6) from taking all
	// of them. Several nodes may share an address, so it is not small.
	maxHandshakesPerPeer = 32
	// maxStrangers bounds the connections of nodes that are no members. A
	// joiner needs one. As with handshakes, the one that has been there longest
	// goes when there are more, of the address that has most.
	maxStrangers = 64
	// strangerFor is how long a connection may stay that of a stranger: a
	// joiner is a member long before.
	strangerFor = 2 * time.Minute
	// acceptPause is the wait after a failed accept (out of file descriptors).
	acceptPause = 50 * time.Millisecond
	// backlog is how many ready connections wait for the raft or gRPC side.
	backlog = 16
)

// Reasons for refusals: label values of portolan_wire_refusals_total.
const (
	refusedBusy      = "busy"      // too many handshakes under way
	refusedHandshake = "handshake" // garbage, no certificate, no ALPN, too slow, not a member
	refusedStrangers = "strangers" // too many strangers
	refusedExpired   = "expired"   // a stranger's time was up
)

// Listener is the control port. See the package comment.
type Listener struct {
	tcp     net.Listener
	tls     *tls.Config
	members Members
	log     *slog.Logger
	// handshakeFor is handshakeTimeout, save in tests.
	handshakeFor time.Duration

	raft, grpc *virtual

	refusals *prometheus.CounterVec
	open     *prometheus.Desc

	closeOnce sync.Once
	closed    chan struct{}
	wg        sync.WaitGroup // handshakes

	shaking   *door.Door // TCP connections before the end of their handshake
	strangers *door.Door // connections of nodes that are no members

	mu    sync.Mutex // nothing is called under it but map operations and Leave
	conns map[*Conn]struct{}
}

// Listen opens the control port at addr ("host:port"). Nothing is accepted
// before Run. m is asked at every raft handshake, from any goroutine.
func Listen(addr string, id *identity.Identity, m Members, log *slog.Logger) (*Listener, error) {
	var lc net.ListenConfig
	tcp, err := lc.Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, ListenError(addr, controlPortOption, err)
	}
	l := &Listener{
		tcp: tcp, tls: serverConfig(id, m), members: m, log: log, handshakeFor: handshakeTimeout,
		closed: make(chan struct{}),
		conns:  make(map[*Conn]struct{}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "portolan_wire_refusals_total",
			Help: "Connections to the control port that were refused, by reason.",
		}, []string{"reason"}),
		open: prometheus.NewDesc("portolan_wire_connections_count",
			"Open connections of the control port, by protocol.", []string{"protocol"}, nil),
	}
	l.shaking = door.New(maxHandshakes, maxHandshakesPerPeer, l.refusals.WithLabelValues(refusedBusy).Inc)
	l.strangers = door.New(maxStrangers, 0, l.refusals.WithLabelValues(refusedStrangers).Inc)
	l.raft = newVirtual(tcp.Addr())
	l.grpc = newVirtual(tcp.Addr())
	return l, nil
}

// Addr is where the listener listens.
func (l *Listener) Addr() net.Addr { return l.tcp.Addr() }

// Raft gives the members' raft connections. Closing it refuses further ones and
// leaves the control port open.
func (l *Listener) Raft() net.Listener { return l.raft }

// GRPC gives the HTTP/2 connections; serve them with [ServerCredentials].
func (l *Listener) GRPC() net.Listener { return l.grpc }

// Run accepts until ctx ends or Close is called, then closes everything and
// returns when no goroutine of the listener is left. It is called once.
func (l *Listener) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	defer l.wg.Wait()
	defer func() { _ = l.Close() }()
	for {
		raw, err := l.tcp.Accept()
		if err != nil {
			if l.isClosed() {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("control port %s: %w", l.Addr(), err)
			}
			l.log.Warn("control port cannot accept", "err", err)
			select {
			case <-l.closed:
				return nil
			case <-time.After(acceptPause):
			}
			continue
		}
		guest := l.shaking.Enter(raw)
		if l.isClosed() { // Close may not have seen it
			guest.Leave()
			_ = raw.Close()
			return nil
		}
		l.wg.Go(func() {
			defer guest.Leave()
			l.serve(raw, guest)
		})
	}
}

// serve brings one TCP connection through its handshake to the side that its
// protocol names.
func (l *Listener) serve(raw net.Conn, guest *door.Guest) {
	conn := tls.Server(raw, l.tls)
	ctx, cancel := context.WithTimeout(context.Background(), l.handshakeFor)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		if l.isClosed() || !guest.Leave() {
			return // turned away, which is counted
		}
		l.refusals.WithLabelValues(refusedHandshake).Inc()
		// Debug: anybody on the network can cause these lines.
		l.log.Debug("control handshake refused", "remote", raw.RemoteAddr().String(), "err", err)
		return
	}
	cs := conn.ConnectionState()
	node, err := peerNodeID(cs)
	if err != nil { // VerifyConnection has seen it: cannot happen
		_ = raw.Close()
		return
	}
	c := &Conn{Conn: conn, l: l, node: node, protocol: cs.NegotiatedProtocol}
	if !l.track(c) {
		l.refusals.WithLabelValues(refusedHandshake).Inc()
		l.log.Debug("control connection refused: not a member", "remote", raw.RemoteAddr().String(), "node", node)
		_ = c.Close()
		return
	}
	side := l.grpc
	if c.protocol == ALPNRaft {
		side = l.raft
	}
	if !side.deliver(ctx, c) {
		_ = c.Close()
	}
}

// Close closes the port and every connection. It does not wait for Run.
func (l *Listener) Close() error {
	l.closeOnce.Do(func() {
		close(l.closed)
		_ = l.tcp.Close()
		_ = l.raft.Close()
		_ = l.grpc.Close()
		l.shaking.CloseAll()
		l.mu.Lock()
		var all []net.Conn
		for c := range l.conns {
			all = append(all, c)
		}
		l.mu.Unlock()
		for _, c := range all {
			_ = c.Close()
		}
	})
	return nil
}

// CutOff closes the connections that node opened to this one. Call it after
// [Members] has learned that node is no longer a member.
func (l *Listener) CutOff(node identity.NodeID) {
	l.mu.Lock()
	var cut []*Conn
	for c := range l.conns {
		if c.node == node {
			cut = append(cut, c)
		}
	}
	l.mu.Unlock()
	for _, c := range cut {
		_ = c.Close()
	}
}

func (l *Listener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

// track enters c into the list that Close and CutOff work from; false: it must go
// instead.
func (l *Listener) track(c *Conn) bool {
	l.mu.Lock()
	if l.isClosed() {
		l.mu.Unlock()
		return false
	}
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	// Asked again, and now that it is in the list: a node removed meanwhile is
	// known as removed here, or CutOff finds it.
	if l.members.IsMember(c.node) {
		return true
	}
	if c.protocol == ALPNRaft {
		return false
	}
	guest := l.strangers.Enter(c)
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, still := l.conns[c]; !still { // turned away, or closed, at once
		guest.Leave()
		return true
	}
	c.guest = guest
	c.stranger = time.AfterFunc(strangerFor, c.expire)
	return true
}

func (l *Listener) untrack(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.conns[c]; !ok {
		return
	}
	delete(l.conns, c)
	l.noStranger(c)
}

// noStranger ends c's count as a stranger. The caller holds l.mu.
func (l *Listener) noStranger(c *Conn) {
	if c.stranger != nil {
		c.stranger.Stop()
		c.stranger = nil
		c.guest.Leave()
	}
}

// Describe implements prometheus.Collector.
func (l *Listener) Describe(ch chan<- *prometheus.Desc) {
	l.refusals.Describe(ch)
	ch <- l.open
}

// Collect implements prometheus.Collector.
func (l *Listener) Collect(ch chan<- prometheus.Metric) {
	l.refusals.Collect(ch)
	n := map[string]int{ALPNRaft: 0, ALPNGRPC: 0}
	l.mu.Lock()
	for c := range l.conns {
		n[c.protocol]++
	}
	l.mu.Unlock()
	for p, v := range n {
		ch <- prometheus.MustNewConstMetric(l.open, prometheus.GaugeValue, float64(v), p)
	}
}

// Conn is a connection that came through the control port.
type Conn struct {
	*tls.Conn
	l        *Listener
	node     identity.NodeID
	protocol string
	stranger *time.Timer // while the node is no member; guarded by l.mu
	guest    *door.Guest // likewise
	once     sync.Once
	closeErr error
}

// NodeID is the node at the other end.
func (c *Conn) NodeID() identity.NodeID { return c.node }

// Close closes the connection; further calls do nothing.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.l.untrack(c)
		// The TCP connection, not the TLS one: tls.Conn.Close waits up to 5 s
		// for a peer that does not read, to say goodbye.
		c.closeErr = c.NetConn().Close()
	})
	return c.closeErr
}

// expire ends a stranger's connection unless the node became a member.
func (c *Conn) expire() {
	if c.l.members.IsMember(c.node) {
		c.l.mu.Lock()
		c.l.noStranger(c)
		c.l.mu.Unlock()
		return
	}
	c.l.refusals.WithLabelValues(refusedExpired).Inc()
	_ = c.Close()
}

// virtual is one protocol's side of the listener.
type virtual struct {
	addr   net.Addr
	ch     chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newVirtual(addr net.Addr) *virtual {
	return &virtual{addr: addr, ch: make(chan net.Conn, backlog), closed: make(chan struct{})}
}

// deliver hands c to Accept, and gives up when ctx ends or the side is closed.
func (v *virtual) deliver(ctx context.Context, c net.Conn) bool {
	select {
	case <-v.closed: // first: select would choose at random
		return false
	default:
	}
	select {
	case v.ch <- c:
		return true
	case <-v.closed:
		return false
	case <-ctx.Done():
		return false
	}
}

func (v *virtual) Accept() (net.Conn, error) {
	select {
	case <-v.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-v.ch:
		return c, nil
	case <-v.closed:
		return nil, net.ErrClosed
	}
}

// Close refuses what comes and drops what waits.
func (v *virtual) Close() error {
	v.once.Do(func() {
		close(v.closed)
		for {
			select {
			case c := <-v.ch:
				_ = c.Close()
			default:
				return
			}
		}
	})
	return nil
}

func (v *virtual) Addr() net.Addr { return v.addr }
