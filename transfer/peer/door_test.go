package peer

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// caller is a TCP connection that came in.
type caller struct {
	addr   net.TCPAddr
	mu     sync.Mutex
	closed bool
}

var _ network.ConnMultiaddrs = (*caller)(nil)

func newCaller(ip string, port int) *caller {
	return &caller{addr: *net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port)))}
}

func (c *caller) RemoteAddr() net.Addr { return &c.addr }

func (c *caller) RemoteMultiaddr() ma.Multiaddr {
	m, err := manet.FromNetAddr(&c.addr)
	if err != nil {
		panic(err)
	}
	return m
}

func (c *caller) LocalMultiaddr() ma.Multiaddr { return ma.StringCast("/ip4/192.0.2.200/tcp/7948") }

func (c *caller) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *caller) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// refusals counts them by reason.
type refusals struct {
	mu sync.Mutex
	by map[string]int
}

func (r *refusals) count(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[string]int{}
	}
	r.by[reason]++
}

func (r *refusals) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprint(r.by)
}

// within gives how many are at the door, and how many of them it remembers.
func within(h *handshakes) [2]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return [2]int{h.door.Len(), len(h.open)}
}

// TestHandshakes_Timing: who has shown its key by the time that libp2p gives it
// is no refusal, who has not is one, at that time and not before.
func TestHandshakes_Timing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusals
		h := newHandshakes(r.count)
		member, slow, later := newCaller("192.0.2.1", 1), newCaller("192.0.2.2", 1), newCaller("192.0.2.3", 1)
		h.begin(member)
		h.begin(slow)
		<-time.After(handshakeTimeout - time.Second)
		h.done(member)
		h.begin(later)
		synctest.Wait()
		if got := within(h); got != [2]int{2, 2} || r.String() != "map[]" {
			t.Fatalf("a second before the end: %v, %s", got, &r)
		}
		<-time.After(time.Second)
		synctest.Wait()
		if got := within(h); got != [2]int{1, 1} || r.String() != "map[handshake:1]" {
			t.Fatalf("at the end of the first: %v, %s", got, &r)
		}
		h.done(slow) // too late: libp2p has closed it
		<-time.After(time.Hour)
		synctest.Wait()
		if got := within(h); got != [2]int{} || r.String() != "map[handshake:2]" {
			t.Fatalf("an hour later: %v, %s", got, &r)
		}
		if member.isClosed() || slow.isClosed() {
			t.Error("a connection was closed that is libp2p's to close")
		}
	})
}

// TestHandshakes_TurnedAway: one that goes for want of room is counted once, and
// its time, which still runs, counts nothing.
func TestHandshakes_TurnedAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusals
		h := newHandshakes(r.count)
		first := newCaller("192.0.2.1", 1)
		h.begin(first)
		for i := range maxHandshakesPerPeer {
			h.begin(newCaller("192.0.2.1", 2+i))
		}
		member := newCaller("192.0.2.2", 1)
		h.begin(member)
		if !first.isClosed() || member.isClosed() || r.String() != "map[busy:1]" {
			t.Fatalf("first closed %v, member %v, %s", first.isClosed(), member.isClosed(), &r)
		}
		h.done(member)
		<-time.After(2 * handshakeTimeout)
		synctest.Wait()
		if want := fmt.Sprintf("map[busy:1 handshake:%d]", maxHandshakesPerPeer); r.String() != want || within(h) != [2]int{} {
			t.Fatalf("%s, want %s; %v are within", &r, want, within(h))
		}
	})
}

// TestHandshakes_CrowdFromElsewhere: however many come from many addresses,
// there are never more than may be.
func TestHandshakes_CrowdFromElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusals
		h := newHandshakes(r.count)
		for i := range 2 * maxHandshakes {
			h.begin(newCaller(fmt.Sprintf("10.0.%d.%d", i/250, i%250), 1))
			if got := within(h); got[0] > maxHandshakes {
				t.Fatalf("%v are within", got)
			}
		}
		<-time.After(2 * handshakeTimeout)
		synctest.Wait()
		if want := fmt.Sprintf("map[busy:%d handshake:%d]", maxHandshakes, maxHandshakes); r.String() != want || within(h) != [2]int{} {
			t.Fatalf("%s, want %s; %v are within", &r, want, within(h))
		}
	})
}

// TestHandshakes_SamePlaceAgain: a place from which one came before its last
// connection's time was over is the new one's.
func TestHandshakes_SamePlaceAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusals
		h := newHandshakes(r.count)
		h.begin(newCaller("192.0.2.1", 1)) // it has gone, and libp2p does not tell
		<-time.After(handshakeTimeout / 2)
		h.begin(newCaller("192.0.2.1", 1))
		<-time.After(handshakeTimeout / 2)
		synctest.Wait()
		if got := within(h); got != [2]int{1, 1} || r.String() != "map[handshake:1]" {
			t.Fatalf("the first one's end: %v, %s", got, &r)
		}
		h.done(newCaller("192.0.2.1", 1))
		<-time.After(handshakeTimeout)
		synctest.Wait()
		if got := within(h); got != [2]int{} || r.String() != "map[handshake:1]" {
			t.Fatalf("after the second: %v, %s", got, &r)
		}
	})
}

// TestHandshakes_Close: nothing is counted after it, and no timer is left.
func TestHandshakes_Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r refusals
		h := newHandshakes(r.count)
		for i := range 5 {
			h.begin(newCaller("192.0.2.1", 1+i))
		}
		h.close()
		h.begin(newCaller("192.0.2.1", 9))
		h.done(newCaller("192.0.2.1", 1))
		<-time.After(2 * handshakeTimeout)
		synctest.Wait()
		if got := within(h); got != [2]int{} || r.String() != "map[]" {
			t.Fatalf("%v, %s", got, &r)
		}
	})
}

// noConn is what libp2p may ask with that is no TCP connection.
type noConn struct{ network.ConnMultiaddrs }

func TestHandshakes_OtherThanTCP(t *testing.T) {
	h := newHandshakes(func(string) {})
	h.begin(noConn{newCaller("192.0.2.1", 1)})
	if got := within(h); got != [2]int{} {
		t.Fatalf("%v are within", got)
	}
}
