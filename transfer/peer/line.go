package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"github.com/portolan/portolan/node/identity"
)

const (
	// MaxLines bounds the lines to one peer.
	MaxLines = 4
	// lineRetry lies between two attempts to dial a line: streams go over the
	// common connection meanwhile, so there is no hurry.
	lineRetry = 5 * time.Second
)

// line is a connection of its own for streams on which the other side sends
// much. Only the side that dialed it opens streams there, so it carries bytes
// one way: requests and window updates go the other way and wait behind
// nothing. On a connection with bytes both ways they wait for what the muxer
// (64 frames) and the kernel have queued, which is seconds on a slow link.
type line struct {
	conn    transport.CapableConn
	streams int // guarded by lines.mu
}

// bundle is the lines to one node. Guarded by lines.mu.
type bundle struct {
	up      []*line
	want    int
	dialing bool
	retry   time.Time // no dial before
}

// lines are those that this node dialed. They live no longer than the common
// connection to their node.
type lines struct {
	h  *Host
	mu sync.Mutex
	to map[identity.NodeID]*bundle
}

func newLines(h *Host) *lines { return &lines{h: h, to: map[identity.NodeID]*bundle{}} }

// OpenBulk is Open for a stream on which the other side will send much: it is
// opened on a line, if there is one, and otherwise as Open does, while a line is
// dialed.
func (h *Host) OpenBulk(ctx context.Context, to identity.NodeID, proto string) (*Stream, error) {
	if l := h.lines.take(to); l != nil {
		s, err := h.openOn(ctx, l, to, proto)
		if err == nil {
			return s, nil
		}
		h.lines.leave(to, l)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		h.log.Debug("no stream on a line", "node", to, "error", err)
	}
	return h.Open(ctx, to, proto)
}

// Filled tells what was measured of a node's sending: bytes a second times the
// round trip. A connection holds no more than the kernel's buffers, so as many
// lines are dialed as it takes to hold that and half as much again, at most
// MaxLines; streams of OpenBulk are spread over them.
func (h *Host) Filled(to identity.NodeID, bytes int64) {
	h.lines.aim(to, int(min(1+bytes*3/2/h.window, MaxLines)))
}

// take gives the line with the fewest streams and counts one more; nil: there is
// none. Missing lines are dialed.
func (ls *lines) take(to identity.NodeID) *line {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	b := ls.to[to]
	if b == nil {
		return nil
	}
	ls.grow(to, b)
	var best *line
	for _, l := range b.up {
		if best == nil || l.streams < best.streams {
			best = l
		}
	}
	if best != nil {
		best.streams++
	}
	return best
}

// leave counts a stream out. A line that is not wanted any more is closed when
// nobody uses it.
func (ls *lines) leave(to identity.NodeID, l *line) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l.streams--
	if b := ls.to[to]; b != nil && l.streams == 0 && len(b.up) > b.want && slices.Contains(b.up, l) && ls.h.hold() {
		b.up = slices.DeleteFunc(b.up, func(x *line) bool { return x == l })
		go func() {
			defer ls.h.handlers.Done()
			_ = l.conn.Close() // and watch ends
		}()
	}
}

// ready notes that there is a common connection to a node, and dials lines.
func (ls *lines) ready(to identity.NodeID) { ls.aim(to, 0) }

// aim sets how many lines there shall be; 0: as before, at least one.
func (ls *lines) aim(to identity.NodeID, n int) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	b := ls.to[to]
	if b == nil {
		b = &bundle{want: 1}
		ls.to[to] = b
	}
	if n > 0 {
		b.want = n
	}
	ls.grow(to, b)
}

// grow dials a line if one is missing; mu is held.
func (ls *lines) grow(to identity.NodeID, b *bundle) {
	if b.dialing || len(b.up) >= b.want || time.Now().Before(b.retry) || !ls.h.hold() {
		return
	}
	b.dialing = true
	go func() {
		defer ls.h.handlers.Done()
		ctx, cancel := context.WithTimeout(ls.h.ctx, dialTimeout)
		conn, err := ls.h.dialLine(ctx, to)
		cancel()
		ls.mu.Lock()
		b.dialing = false
		if err == nil && (ls.to[to] != b || ls.h.ctx.Err() != nil || !ls.h.Connected(to)) {
			err = errors.New("the node is gone")
			defer conn.Close()
		}
		if err != nil {
			b.retry = time.Now().Add(lineRetry)
			ls.mu.Unlock()
			ls.h.log.Debug("line not dialed", "node", to, "error", err)
			return
		}
		l := &line{conn: conn}
		b.up = append(b.up, l)
		ls.grow(to, b)
		ls.mu.Unlock()
		ls.watch(to, b, l)
	}()
}

// watch refuses what comes on a line until it ends: the other side opens streams
// on the common connection.
func (ls *lines) watch(to identity.NodeID, b *bundle, l *line) {
	for {
		s, err := l.conn.AcceptStream()
		if err != nil {
			break
		}
		_ = s.Reset()
	}
	_ = l.conn.Close()
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if n := len(b.up); n > 0 {
		b.up = slices.DeleteFunc(b.up, func(x *line) bool { return x == l })
		if len(b.up) < n { // it broke
			b.retry = time.Now().Add(lineRetry)
		}
	}
}

// drop closes the lines to a node.
func (ls *lines) drop(to identity.NodeID) {
	ls.mu.Lock()
	b := ls.to[to]
	delete(ls.to, to)
	var up []*line
	if b != nil {
		up = append(up, b.up...)
	}
	ls.mu.Unlock()
	for _, l := range up {
		_ = l.conn.Close() // and watch ends
	}
}

// close closes all.
func (ls *lines) close() {
	ls.mu.Lock()
	var all []identity.NodeID
	for to := range ls.to {
		all = append(all, to)
	}
	ls.mu.Unlock()
	for _, to := range all {
		ls.drop(to)
	}
}

// count is how many lines are up.
func (ls *lines) count() int {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	n := 0
	for _, b := range ls.to {
		n += len(b.up)
	}
	return n
}

// hold counts a goroutine that Close waits for; false: the host is closed.
func (h *Host) hold() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.handlers.Add(1)
	return true
}

// dialLine dials a member anew, although there is a connection: past libp2p's
// swarm, which has one to each peer.
func (h *Host) dialLine(ctx context.Context, to identity.NodeID) (transport.CapableConn, error) {
	id, err := peerID(to)
	if err != nil {
		return nil, err
	}
	name, port, ok := h.cfg.Members(to)
	if !ok {
		return nil, fmt.Errorf("node %s: %w", to.Short(), ErrNotMember)
	}
	sw, ok := h.h.Network().(*swarm.Swarm)
	if !ok {
		return nil, fmt.Errorf("the network is a %T", h.h.Network())
	}
	at := net.JoinHostPort(name, strconv.Itoa(port))
	addrs, err := resolve(ctx, name, port)
	if err != nil {
		return nil, &dialError{addr: at, reason: dialReason(err), cause: err}
	}
	for _, a := range addrs {
		t := sw.TransportForDialing(a)
		if t == nil {
			err = fmt.Errorf("there is no way to dial %s", a)
			continue
		}
		var conn transport.CapableConn
		if conn, err = t.Dial(ctx, a, id); err == nil {
			return conn, nil
		}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, &dialError{addr: at, reason: "no answer in time", cause: err}
	}
	return nil, &dialError{addr: at, reason: dialReason(err), cause: err}
}

// openOn opens a stream on a line, whose count it has.
func (h *Host) openOn(ctx context.Context, l *line, to identity.NodeID, proto string) (*Stream, error) {
	id, err := peerID(to)
	if err != nil {
		return nil, err
	}
	if !h.isMember(to) {
		return nil, fmt.Errorf("node %s: %w", to.Short(), ErrNotMember)
	}
	scope, err := h.h.Network().ResourceManager().OpenStream(id, network.DirOutbound)
	if err != nil {
		return nil, err
	}
	open, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	ms, err := l.conn.OpenStream(open)
	if err != nil {
		scope.Done()
		return nil, err
	}
	s, err := h.negotiate(open, id, ms, scope.SetProtocol, proto)
	if err != nil {
		scope.Done()
		return nil, err
	}
	s.ended = func() {
		scope.Done()
		h.lines.leave(to, l)
	}
	return newStream(ctx, s), nil
}

// common is the connection for streams that are not for bulk: one that this node
// dialed, else the first that the other one did. Later ones are its lines, on
// which it takes none.
func (h *Host) common(id corepeer.ID) network.Conn {
	var first network.Conn
	for _, c := range h.h.Network().ConnsToPeer(id) {
		switch {
		case c.IsClosed():
		case c.Stat().Direction == network.DirOutbound:
			return c
		case first == nil:
			first = c
		}
	}
	return first
}
