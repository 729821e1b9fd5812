package peer

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/portolan/portolan/node/wire/door"
)

const (
	// maxHandshakes bounds the connections that have not shown their key yet. It is
	// below what libp2p allows (maxNodes), so that it is here that they are chosen
	// from: libp2p refuses whoever comes last, members among them.
	maxHandshakes = 192
	// maxHandshakesPerPeer is for one address, which several nodes may share.
	maxHandshakesPerPeer = 32
	// handshakeTimeout is libp2p's own for connections that come in
	// (upgrader.defaultAcceptTimeout): what has shown no key by then never will.
	handshakeTimeout = 15 * time.Second
)

// Reasons for refusals: label values of portolan_transfer_peer_refusals_total.
const (
	refusedStranger  = "stranger"  // its key is no member's
	refusedBusy      = "busy"      // too many handshakes at a time
	refusedHandshake = "handshake" // garbage, another protocol, too slow; too many of one address
)

// handshakes are the connections that came in and have shown no key yet. libp2p
// tells when one comes and when it has shown its key, and not when it goes
// before: such a one is counted when its time is over.
type handshakes struct {
	door  *door.Door
	count func(reason string)

	mu     sync.Mutex
	open   map[string]*handshake // by the other end's address and port
	closed bool
}

type handshake struct {
	guest *door.Guest
	end   *time.Timer
}

func newHandshakes(count func(reason string)) *handshakes {
	return &handshakes{count: count, open: make(map[string]*handshake),
		door: door.New(maxHandshakes, maxHandshakesPerPeer, func() { count(refusedBusy) })}
}

// begin is a connection that came in. It closes another one if there are too many.
func (h *handshakes) begin(at network.ConnMultiaddrs) {
	c, ok := at.(door.Conn) // a TCP connection: libp2p asks with what it has accepted
	if !ok {
		return
	}
	key := at.RemoteMultiaddr().String()
	x := &handshake{guest: h.door.Enter(c)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		x.guest.Leave()
		return
	}
	x.end = time.AfterFunc(handshakeTimeout, func() { h.over(key, x) })
	h.open[key] = x
}

// done: the other end has shown its key.
func (h *handshakes) done(at network.ConnMultiaddrs) {
	key := at.RemoteMultiaddr().String()
	h.mu.Lock()
	x := h.open[key]
	delete(h.open, key)
	h.mu.Unlock()
	if x != nil {
		x.end.Stop()
		x.guest.Leave()
	}
}

// over: it has not, and can't any more.
func (h *handshakes) over(key string, x *handshake) {
	h.mu.Lock()
	if h.open[key] == x {
		delete(h.open, key)
	}
	h.mu.Unlock()
	if x.guest.Leave() { // else it was turned away, and counted
		h.count(refusedHandshake)
	}
}

// close ends all of it; libp2p closes the connections.
func (h *handshakes) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for key, x := range h.open {
		x.end.Stop()
		x.guest.Leave()
		delete(h.open, key)
	}
}
