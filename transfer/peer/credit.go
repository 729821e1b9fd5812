package peer

import (
	"encoding/binary"
	"net"

	"github.com/libp2p/go-libp2p/core/network"
	libp2pyamux "github.com/libp2p/go-libp2p/p2p/muxer/yamux"
)

// yamux doubles a stream's receive window when it is used up quickly, and then
// counts what it gives back twice: once for the old window, which it never tells
// the sender, and once for the growth, which it does. So each doubling takes half
// of the old window from what the sender may send, for ever; after some the sender
// has next to nothing left when the next update is made, and stands still for a
// round trip with each half window. (go-yamux up to 5.1.0,
// Stream.sendWindowUpdate: the first GrowTo's delta is dropped.)
//
// The frames are what can be got at from outside: an update that doubles a window
// is told by its length, and what was lost is put on top. A yamux that loses nothing
// gives more than the old window then, and is left alone.

const (
	// Of a frame: version, type, flags, stream, length. Sessions write each in one
	// piece, the body with it.
	frameHeader  = 12
	windowUpdate = 1 // a type
	flagReset    = 8

	// maxGrown bounds the streams of a connection whose windows are remembered. The
	// resource manager admits fewer at a time; those that the other side ended are
	// not noticed.
	maxGrown = 2 * maxStreamsPerPeerTotal
)

// crediting is a muxer whose windows lose nothing when they grow.
type crediting struct{ *libp2pyamux.Transport }

func (m crediting) NewConn(nc net.Conn, isServer bool, scope network.PeerScope) (network.MuxedConn, error) {
	c := &credited{Conn: nc, first: m.Config().InitialStreamWindowSize}
	if on, ok := nc.(*wiredConn); ok {
		c.wire = on.wire
	}
	return m.Transport.NewConn(c, isServer, scope)
}

// credited is a session's connection. Its session reads from one goroutine and
// writes from one: frame by frame, see wire.
type credited struct {
	net.Conn
	wire   *wire             // below it; nil in tests of its own
	first  uint32            // every stream's first window
	grown  map[uint32]uint32 // windows of streams that have another one
	unsure uint32            // streams up to it may have had one that was forgotten
}

// Read is asked for a frame's head, then for its body: all that is missing of it.
func (c *credited) Read(b []byte) (int, error) {
	if c.wire != nil {
		c.wire.await(len(b))
	}
	return c.Conn.Read(b)
}

func (c *credited) Write(b []byte) (int, error) {
	if len(b) > maxPlain && c.wire != nil {
		c.wire.hold()
		n, err := c.Conn.Write(b)
		if ferr := c.wire.flush(); err == nil {
			err = ferr
		}
		return n, err
	}
	if len(b) < frameHeader || b[1] != windowUpdate {
		return c.Conn.Write(b)
	}
	flags, stream, delta := binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	more := c.update(flags, stream, delta)
	if more == 0 {
		return c.Conn.Write(b)
	}
	var frame [frameHeader]byte
	copy(frame[:], b)
	binary.BigEndian.PutUint32(frame[8:], delta+more)
	return c.Conn.Write(frame[:])
}

// update gives what an update is to have on top of its length.
//
// One that does not double the window is made when half of the window was read and
// gives back what was read: half of it, and less than a frame's 64 KiB more, as no
// read takes more than a frame. Windows have 256 KiB at least, so only one that
// doubles gives as much as the whole old window. What was dropped before that is at
// least half of it: the receiver has room for all that is given here.
func (c *credited) update(flags uint16, stream, delta uint32) (more uint32) {
	if flags != 0 { // begins or ends a stream
		if flags&flagReset != 0 {
			delete(c.grown, stream) // after a FIN it may still receive
		}
		return 0
	}
	if stream <= c.unsure {
		return 0
	}
	window := c.first
	if w, ok := c.grown[stream]; ok {
		window = w
	}
	if delta != window {
		return 0
	}
	if c.grown == nil {
		c.grown = map[uint32]uint32{}
	}
	c.grown[stream] = 2 * window
	for len(c.grown) > maxGrown {
		oldest := stream
		for s := range c.grown {
			oldest = min(oldest, s)
		}
		delete(c.grown, oldest)
		c.unsure = max(c.unsure, oldest)
	}
	return window / 2
}
