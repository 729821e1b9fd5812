package peer

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/peer/congestion"
)

const (
	// openTimeout bounds Open when its context has no deadline.
	openTimeout = 15 * time.Second
	// sweepEvery is how often connections are compared with the member list, in
	// case a removal was not announced by CutOff.
	sweepEvery = 5 * time.Second
)

var (
	// ErrNotMember is returned for a node that the member list does not name.
	ErrNotMember = errors.New("not a member of this mesh")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("the data plane is closed")
)

// A Keyholder gives the node's private key (*identity.Identity does).
type Keyholder interface {
	PrivateKey() ed25519.PrivateKey
}

// Config is what a Host needs.
type Config struct {
	// Identity is this node's key; its public half is what peers know it by.
	Identity Keyholder
	// Listen is the address of the data port, "host:port"; an empty host means
	// every address, port 0 one that is free.
	Listen string
	// Members says whether a node belongs to the mesh and where its data port
	// is. It is asked at every dial, accept and stream and must answer from
	// memory. The host may be a name: it is resolved at each dial.
	Members func(identity.NodeID) (host string, port int, ok bool)
	// Logger takes refusals and cut-offs.
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
}

// Host is this node's end of the data plane.
type Host struct {
	cfg  Config
	self identity.NodeID
	log  *slog.Logger
	h    host.Host
	addr net.Addr

	ctx    context.Context // ends with Close; every handler's context derives from it
	cancel context.CancelFunc

	mu       sync.Mutex
	closed   bool
	dials    map[identity.NodeID]*dial // under way, or failed just now
	probes   map[identity.NodeID]*probe
	handlers sync.WaitGroup // and dials and probes
	closeErr error
	closing  sync.Once

	metrics    *metrics
	handshakes *handshakes
	lines      *lines
	windows    *windows
	counting   sync.Mutex   // held while peers is counted and stored
	peers      atomic.Int32 // that are connected
	window     int64        // bytes that one connection can hold
	congestion *congestion.Watcher
}

// New listens. Streams are refused until Handle names their protocol.
func New(cfg Config) (*Host, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	key := cfg.Identity.PrivateKey()
	self, err := identity.NodeIDFromBytes(key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("data plane: %w", err)
	}
	priv, err := crypto.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("data plane: node key: %w", err)
	}
	listen, err := listenAddresses(cfg.Listen)
	if err != nil {
		return nil, err
	}
	limits, err := resourceManager()
	if err != nil {
		return nil, fmt.Errorf("data plane: limits: %w", err)
	}
	h := &Host{cfg: cfg, self: self, log: cfg.Logger, dials: map[identity.NodeID]*dial{}, probes: map[identity.NodeID]*probe{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.metrics = newMetrics(h)
	h.windows = newWindows(h.metrics.windowRefusals.Inc)
	h.handshakes = newHandshakes(h.metrics.refuse)
	h.lines, h.window = newLines(h), kernelWindow("/proc/sys/net/ipv4")
	h.congestion = congestion.Watch(cfg.Logger)
	p2p, err := libp2p.New(
		libp2p.Identity(priv),
		libp2p.NoListenAddrs,
		libp2p.NoTransports,
		// Without SO_REUSEPORT a second process on the data port is an error and
		// does not take half of the connections.
		libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport(), tcp.WithConnectionTimeout(dialTimeout)),
		libp2p.Security(libp2ptls.ID, newWired),
		libp2p.Muxer(muxerID, bounded{crediting{muxer()}, h.windows}),
		libp2p.ConnectionGater(gater{h}),
		libp2p.ConnectionManager(connmgr.NullConnMgr{}),
		libp2p.ResourceManager(limits),
		libp2p.DisableRelay(),
		libp2p.Ping(false),
		libp2p.DisableMetrics(),
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.ForceReachabilityPrivate(), // no probing by AutoNAT
		libp2p.UserAgent("portolan"),
		libp2p.WithDialTimeout(dialTimeout),
	)
	if err != nil {
		h.cancel()
		h.congestion.Close()
		_ = limits.Close()
		return nil, fmt.Errorf("data plane: %w", err)
	}
	h.h = p2p
	p2p.Network().Notify(&network.NotifyBundle{ConnectedF: h.connected, DisconnectedF: h.disconnected})
	if err := p2p.Network().Listen(listen...); err != nil {
		err = listenError(cfg.Listen, err)
		h.cancel()
		h.congestion.Close()
		_ = p2p.Close()
		return nil, err
	}
	for _, a := range p2p.Network().ListenAddresses() {
		if h.addr, err = manet.ToNetAddr(a); err == nil {
			break
		}
	}
	if cfg.Registerer != nil {
		if err := h.metrics.register(cfg.Registerer); err != nil {
			h.cancel()
			h.congestion.Close()
			_ = p2p.Close()
			return nil, fmt.Errorf("data plane: metrics: %w", err)
		}
	}
	return h, nil
}

// ID is this node.
func (h *Host) ID() identity.NodeID { return h.self }

// Addr is where the data port listens.
func (h *Host) Addr() net.Addr { return h.addr }

// Run compares connections with the member list until ctx ends, then closes the
// host.
func (h *Host) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return h.Close()
		case <-h.ctx.Done():
			return h.Close()
		case <-tick.C:
			h.sweep()
		}
	}
}

// Close ends all streams and connections and waits for the handlers to return.
func (h *Host) Close() error {
	h.closing.Do(func() {
		h.mu.Lock()
		h.closed = true
		h.mu.Unlock()
		h.cancel()
		h.lines.close()
		h.closeErr = h.h.Close()
		h.congestion.Close()
		h.handshakes.close()
		h.handlers.Wait()
		if h.cfg.Registerer != nil {
			h.metrics.unregister(h.cfg.Registerer)
		}
	})
	return h.closeErr
}

// Handle serves a protocol: each stream that a member opens gets a goroutine of
// its own, at most maxStreamsPerPeer per peer and protocol; when there are too many
// of all peers, the newest of those that have the most are reset. The context ends
// with the host; when it does the stream is reset. When handle returns the
// stream is closed.
func (h *Host) Handle(proto string, handle func(ctx context.Context, from identity.NodeID, s *Stream)) {
	var streams admitted
	h.h.SetStreamHandler(protocol.ID(proto), func(ns network.Stream) {
		h.mu.Lock()
		if h.closed {
			h.mu.Unlock()
			_ = ns.Reset()
			return
		}
		h.handlers.Add(1)
		h.mu.Unlock()
		defer h.handlers.Done()
		from, err := nodeID(ns.Conn().RemotePeer())
		if err != nil || !h.isMember(from) {
			_ = ns.Reset() // removed between accept and now
			return
		}
		ctx, cancel := context.WithCancel(h.ctx)
		defer cancel()
		s := newStream(ctx, ns)
		out, ok := streams.enter(from, s)
		if !ok {
			_ = s.refuse()
			return
		}
		if out != nil {
			h.metrics.streamsShed.Inc()
			_ = out.refuse() // its handler ends by that
		}
		defer func() { _ = s.Close() }()
		defer streams.leave(from, s)
		handle(ctx, from, s)
	})
}

// Open opens a stream to a member, dialing it if there is no connection. The
// context bounds the opening and lives on in the stream: when it ends the
// stream is reset.
func (h *Host) Open(ctx context.Context, to identity.NodeID, proto string) (*Stream, error) {
	if h.ctx.Err() != nil {
		return nil, ErrClosed
	}
	if to == h.self {
		return nil, fmt.Errorf("open %s: the node asked for is this one", proto)
	}
	id, err := peerID(to)
	if err != nil {
		return nil, err
	}
	open, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	stop := context.AfterFunc(h.ctx, cancel)
	defer stop()
	if err := h.connect(open, to, id); err != nil {
		return nil, err
	}
	c := h.common(id)
	if c == nil {
		return nil, fmt.Errorf("node %s: open %s: %w", to.Short(), proto, network.ErrNoConn)
	}
	ns, err := c.NewStream(open)
	if err != nil {
		return nil, fmt.Errorf("node %s: open %s: %w", to.Short(), proto, err)
	}
	s, err := h.negotiate(open, id, ns, ns.SetProtocol, proto)
	if err != nil {
		return nil, fmt.Errorf("node %s: open %s: %w", to.Short(), proto, err)
	}
	h.lines.ready(to) // before bulk is asked for: a flight stays where it began
	return newStream(ctx, s), nil
}

// Connected reports whether there is a connection to the node now.
func (h *Host) Connected(id identity.NodeID) bool {
	p, err := peerID(id)
	return err == nil && h.h.Network().Connectedness(p) == network.Connected
}

// CutOff closes what is open to a node: call it when a member is removed.
func (h *Host) CutOff(id identity.NodeID) {
	p, err := peerID(id)
	if err != nil {
		return
	}
	if h.h.Network().Connectedness(p) == network.Connected {
		h.log.Info("data connection cut off", "node", id)
	}
	h.lines.drop(id)
	_ = h.h.Network().ClosePeer(p)
}

func (h *Host) isMember(id identity.NodeID) bool {
	_, _, ok := h.cfg.Members(id)
	return ok
}

func (h *Host) sweep() {
	h.mu.Lock()
	maps.DeleteFunc(h.dials, func(_ identity.NodeID, d *dial) bool { return d.stale() })
	h.mu.Unlock()
	for _, p := range h.h.Network().Peers() {
		if id, err := nodeID(p); err != nil || !h.isMember(id) {
			h.log.Info("data connection of a node that is no member cut off", "peer", p.String())
			_ = h.h.Network().ClosePeer(p)
		}
	}
}

func listenAddresses(listen string) ([]multiaddr.Multiaddr, error) {
	name, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, fmt.Errorf("data port: %q is not an address to listen on: expected host:port", listen)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("data port: %q is not a port number (see --data-port)", portText)
	}
	if name == "" {
		name = "0.0.0.0"
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	addrs, err := resolve(ctx, name, int(port))
	if err != nil {
		return nil, fmt.Errorf("data port: %w", err)
	}
	return addrs[:1], nil
}

// listenError asks the kernel again, because libp2p hands on only text.
func listenError(listen string, err error) error {
	var lc net.ListenConfig
	l, again := lc.Listen(context.Background(), "tcp", listen)
	if again == nil {
		_ = l.Close()
		return fmt.Errorf("data port: listen on %s: %w", listen, err)
	}
	if errors.Is(again, syscall.EADDRINUSE) {
		return fmt.Errorf("data port %s is in use by another program: stop it or choose another port with --data-port: %w", listen, again)
	}
	return fmt.Errorf("data port: %w (choose another with --data-port)", again)
}

func nodeID(p corepeer.ID) (identity.NodeID, error) {
	pub, err := p.ExtractPublicKey()
	if err != nil {
		return identity.NodeID{}, fmt.Errorf("peer ID %s: %w", p, err)
	}
	if pub.Type() != crypto.Ed25519 {
		return identity.NodeID{}, fmt.Errorf("peer ID %s: not an ed25519 key", p)
	}
	raw, err := pub.Raw()
	if err != nil {
		return identity.NodeID{}, err
	}
	return identity.NodeIDFromBytes(raw)
}
