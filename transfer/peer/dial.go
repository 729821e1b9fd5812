package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/portolan/portolan/node/identity"
)

const (
	// dialTimeout bounds one connection attempt, handshakes included: five round
	// trips of the longest link there is (300 ms) with room for lost packets.
	dialTimeout = 10 * time.Second
	// redialAfter is how long a failed dial answers for the next ones: callers
	// that try many holders learn at once that one is down, and a host that
	// comes back is found again almost at once.
	redialAfter = time.Second
	// maxDialAddresses bounds what one host name may resolve to.
	maxDialAddresses = 8
)

// dial is one attempt to connect to a member. It belongs to the host and not to
// who asked first: somebody who can wait for 400 ms only must not cut off the
// handshake that others could wait for, nor make it look like a dead peer.
type dial struct {
	up    chan struct{} // closed when the handshake is done
	done  chan struct{}
	err   error     // after done
	until time.Time // after done: how long err answers for further ones
}

// connect makes sure that there is a connection. A recent failure answers at
// once.
func (h *Host) connect(ctx context.Context, to identity.NodeID, id corepeer.ID) error {
	name, port, ok := h.cfg.Members(to)
	if !ok {
		return fmt.Errorf("node %s: %w", to.Short(), ErrNotMember)
	}
	if h.h.Network().Connectedness(id) == network.Connected {
		return nil
	}
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return ErrClosed
	}
	d := h.dials[to]
	if d == nil || d.stale() {
		d = &dial{up: make(chan struct{}), done: make(chan struct{})}
		h.dials[to] = d
		h.handlers.Add(1)
		go func() {
			defer h.handlers.Done()
			h.run(d, to, id, name, port)
		}()
	}
	h.mu.Unlock()
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return &dialError{addr: net.JoinHostPort(name, strconv.Itoa(port)), reason: "no answer in time", cause: ctx.Err()}
		}
		return ctx.Err()
	}
}

// connected notes a handshake for those that wait for a sign of life.
func (h *Host) connected(n network.Network, c network.Conn) {
	h.countPeers(n)
	id, err := nodeID(c.RemotePeer())
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.dials[id]; d != nil {
		select {
		case <-d.up:
		default:
			close(d.up)
		}
	}
}

// countPeers notes how many nodes are connected. Notifications come at the same time:
// what one saw must not be kept over what a later one did.
func (h *Host) countPeers(n network.Network) {
	h.counting.Lock()
	defer h.counting.Unlock()
	h.peers.Store(int32(len(n.Peers())))
}

// disconnected ends the lines to a node with its last common connection.
func (h *Host) disconnected(n network.Network, c network.Conn) {
	h.countPeers(n)
	if id, err := nodeID(c.RemotePeer()); err == nil && !h.Connected(id) {
		h.lines.drop(id)
	}
}

func (d *dial) underWay() bool {
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// stale says whether a new attempt is due.
func (d *dial) stale() bool { return !d.underWay() && time.Now().After(d.until) }

func (h *Host) run(d *dial, to identity.NodeID, id corepeer.ID, name string, port int) {
	ctx, cancel := context.WithTimeout(h.ctx, dialTimeout)
	defer cancel()
	err := h.dial(ctx, id, name, port)
	if h.ctx.Err() != nil {
		err = ErrClosed
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		delete(h.dials, to)
	} else {
		h.metrics.dialFailures.Inc()
	}
	d.err, d.until = err, time.Now().Add(redialAfter)
	close(d.done)
}

func (h *Host) dial(ctx context.Context, id corepeer.ID, name string, port int) error {
	at := net.JoinHostPort(name, strconv.Itoa(port))
	addrs, err := resolve(ctx, name, port)
	if err != nil {
		return &dialError{addr: at, reason: dialReason(err), cause: err}
	}
	// What identify learned about the peer is what it says of itself; only the
	// member list decides where a node is dialed.
	ps := h.h.Peerstore()
	ps.ClearAddrs(id)
	ps.AddAddrs(id, addrs, peerstore.TempAddrTTL)
	if s, ok := h.h.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(id) // redialAfter is our back-off; libp2p's grows to minutes
	}
	if err := h.h.Connect(ctx, corepeer.AddrInfo{ID: id}); err != nil {
		return &dialError{addr: at, reason: dialReason(err), cause: err}
	}
	return nil
}

// dialError is why a member could not be connected to, in one phrase: it ends up
// in what people read (`portolan wait`, the sites' list). libp2p's own text has
// a line per address.
type dialError struct {
	addr, reason string
	cause        error
}

func (e *dialError) Error() string { return e.addr + ": " + e.reason }
func (e *dialError) Unwrap() error { return e.cause }

// dialReason says in few words what a dial ran into, each reason once.
func dialReason(err error) string {
	var all *swarm.DialError
	if !errors.As(err, &all) || len(all.DialErrors) == 0 {
		return shortReason(err)
	}
	var out []string
	for i := range all.DialErrors {
		if r := shortReason(all.DialErrors[i].Cause); !slices.Contains(out, r) {
			out = append(out, r)
		}
	}
	return strings.Join(out, ", ")
}

func shortReason(err error) string {
	var (
		errno   syscall.Errno
		dns     *net.DNSError
		other   sec.ErrPeerIDMismatch
		timeout interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &other):
		return "another node answers there"
	case errors.As(err, &errno) && !errno.Timeout():
		return errno.Error()
	case errors.As(err, &dns):
		return "the name can't be resolved: " + dns.Err
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("no answer within %s", dialTimeout)
	case errors.Is(err, network.ErrResourceLimitExceeded):
		return "too many connections"
	}
	// The last clause has the cause. One line, whatever libp2p says.
	text, _, _ := strings.Cut(err.Error(), "\n")
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return text
}

// resolve turns a member's host into addresses to dial.
func resolve(ctx context.Context, name string, port int) ([]multiaddr.Multiaddr, error) {
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, name)
	if err != nil {
		return nil, err
	}
	var out []multiaddr.Multiaddr
	for _, ip := range ips {
		if len(out) == maxDialAddresses {
			break
		}
		a, err := manet.FromNetAddr(&net.TCPAddr{IP: ip.IP, Port: port, Zone: ip.Zone})
		if err != nil {
			continue
		}
		out = append(out, a)
	}
	if len(out) == 0 {
		return nil, errors.New("the name has no address that can be dialed")
	}
	return out, nil
}
