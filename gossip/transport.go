package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/node/wire/door"
)

// portOption is the option that moves the gossip port.
const portOption = "--gossip-port"

const (
	// maxStreams bounds the TCP streams that strangers and members have open
	// to us: one full exchange each, with a deadline by memberlist. Above it the
	// oldest goes, of the address that has most.
	maxStreams = 128
	// maxStreamsPerPeer is for one address, which several nodes may share.
	maxStreamsPerPeer = 32
	// maxStreamBytes bounds what one stream brings: memberlist would keep 20 MiB
	// for whoever knows the mesh's label, before it sees that the key is wrong. A
	// list of 1,000 nodes has 400 KiB.
	maxStreamBytes = 1 << 20
	// maxPacketBytes is the largest UDP packet there is.
	maxPacketBytes = 64 << 10
	// packetBufferBytes is asked of the kernel, for bursts of announcements.
	packetBufferBytes = 2 << 20
	// pickPortTries: a free TCP port may be a busy UDP port.
	pickPortTries = 10
	// errorPause is the wait after an error of a socket that is still open.
	errorPause = 50 * time.Millisecond
)

// transport is memberlist's way to the network: one UDP and one TCP socket on
// the same port. Unlike memberlist's own it ends what it began: shutdown closes
// every stream and cancels every dial, and bounds the streams that come in.
type transport struct {
	tcp       net.Listener
	udp       net.PacketConn
	advertise net.IP
	port      int // advertised
	refuse    filter
	refused   func(reason string) // counts; nil: nobody does
	guests    *door.Door          // streams that came in

	packets chan *memberlist.Packet
	streams chan net.Conn

	ctx    context.Context // ends at Shutdown
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// dials ends at abort, when Run is about to say good-bye and waits for no
	// answer any more.
	dials context.Context
	abort context.CancelFunc

	mu    sync.Mutex
	conns map[*stream]struct{}
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// newTransport binds host:port on TCP and UDP. It reads nothing before start.
func newTransport(host string, port int) (*transport, error) {
	t := &transport{
		packets: make(chan *memberlist.Packet),
		streams: make(chan net.Conn),
		conns:   make(map[*stream]struct{}),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.dials, t.abort = context.WithCancel(t.ctx)
	t.guests = door.New(maxStreams, maxStreamsPerPeer, func() { t.count(refusedBusy) })
	tries := 1
	if port == 0 {
		tries = pickPortTries
	}
	var err error
	for range tries {
		if err = t.bind(host, port); err == nil {
			return t, nil
		}
	}
	t.cancel()
	return nil, err
}

func (t *transport) bind(host string, port int) error {
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	var lc net.ListenConfig
	tcp, err := lc.Listen(t.ctx, "tcp", addr)
	if err != nil {
		return wire.ListenError(addr, portOption, err)
	}
	addr = net.JoinHostPort(host, strconv.Itoa(tcp.Addr().(*net.TCPAddr).Port))
	udp, err := lc.ListenPacket(t.ctx, "udp", addr)
	if err != nil {
		_ = tcp.Close()
		return wire.ListenError(addr, portOption, err)
	}
	// Best effort: the kernel's limit may be lower, and lost packets are only
	// hints lost.
	_ = udp.(*net.UDPConn).SetReadBuffer(packetBufferBytes)
	t.tcp, t.udp = tcp, udp
	return nil
}

func (t *transport) boundPort() int { return t.tcp.Addr().(*net.TCPAddr).Port }

// start begins to read. The advertised address is set before.
func (t *transport) start() {
	t.wg.Go(t.readPackets)
	t.wg.Go(t.acceptStreams)
}

func (t *transport) readPackets() {
	buf := make([]byte, maxPacketBytes)
	for {
		n, from, err := t.udp.ReadFrom(buf)
		now := time.Now()
		if err != nil {
			if !t.pause(err) {
				return
			}
			continue
		}
		if n == 0 {
			continue
		}
		if t.refuse.packet(from.String()) {
			t.count(refusedRemoved)
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: now}
		select {
		case t.packets <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) acceptStreams() {
	for {
		c, err := t.tcp.Accept()
		if err != nil {
			if !t.pause(err) {
				return
			}
			continue
		}
		if t.refuse.stream(c.RemoteAddr()) {
			t.count(refusedRemoved)
			_ = c.Close()
			continue
		}
		s, ok := t.track(c, true)
		if !ok {
			_ = c.Close()
			continue
		}
		select {
		case t.streams <- s:
		case <-t.ctx.Done():
			_ = s.Close()
			return
		}
	}
}

// pause waits a moment after a socket error, and says whether to go on.
func (t *transport) pause(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	select {
	case <-t.ctx.Done():
		return false
	case <-time.After(errorPause):
		return true
	}
}

// Reasons for refusals: label values of portolan_gossip_refusals_total.
const (
	refusedBusy       = "busy"       // too many streams
	refusedRemoved    = "removed"    // of a node that was taken out of the mesh
	refusedTooLong    = "too long"   // a stream
	refusedUnreadable = "unreadable" // garbage, no key or another one, another mesh, too slow
)

func (t *transport) count(reason string) {
	if t.refused != nil {
		t.refused(reason)
	}
}

// stream is a TCP connection that Shutdown knows of.
type stream struct {
	net.Conn
	t     *transport
	guest *door.Guest // of inbound streams
	left  int         // bytes that may yet come on an inbound stream
	stop  func() bool // ends the watch for abort, of outbound streams
	once  sync.Once
}

var errStreamTooLong = fmt.Errorf("a stream of more than %d bytes", maxStreamBytes)

func (s *stream) Read(b []byte) (int, error) {
	if s.guest == nil {
		return s.Conn.Read(b)
	}
	if s.left == 0 {
		s.t.count(refusedTooLong)
		return 0, errStreamTooLong
	}
	n, err := s.Conn.Read(b[:min(len(b), s.left)])
	s.left -= n
	return n, err
}

func (s *stream) Close() error {
	var err error
	s.once.Do(func() {
		s.t.mu.Lock()
		delete(s.t.conns, s)
		s.t.mu.Unlock()
		if s.stop != nil {
			s.stop()
		}
		s.guest.Leave()
		err = s.Conn.Close()
	})
	return err
}

func (t *transport) track(c net.Conn, inbound bool) (*stream, bool) {
	s := &stream{Conn: c, t: t}
	if inbound {
		s.left = maxStreamBytes
		s.guest = t.guests.Enter(s) // may close another one, so without t.mu
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		s.guest.Leave()
		return nil, false
	}
	if !inbound {
		s.stop = context.AfterFunc(t.dials, func() { _ = s.Close() })
	}
	t.conns[s] = struct{}{}
	return s, true
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise, t.port, nil
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	if t.refuse.packet(addr) {
		return time.Time{}, errRemoved
	}
	to, err := net.ResolveUDPAddr("udp", addr) // always a literal address: no lookup
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.udp.WriteTo(b, to)
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: timeout}).DialContext(t.dials, "tcp", addr)
	if err != nil {
		return nil, err
	}
	s, ok := t.track(c, false)
	if !ok {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	return s, nil
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if t.refuse.dial(a.Name) {
		return nil, errRemoved
	}
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown implements memberlist.Transport: it returns when nothing that
// started here is left.
func (t *transport) Shutdown() error {
	t.cancel()
	err := errors.Join(t.tcp.Close(), t.udp.Close())
	t.mu.Lock()
	all := make([]*stream, 0, len(t.conns))
	for s := range t.conns {
		all = append(all, s)
	}
	t.mu.Unlock()
	for _, s := range all {
		_ = s.Close()
	}
	t.wg.Wait()
	return err
}
