package peer

import (
	"fmt"
	"net"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
)

// windows decides which receive windows grow. yamux asks the resource manager for
// a first window with the highest priority, and for growth with a lower one, which
// the resource manager knows as a part of the limit in which first windows count
// as well: many streams, and no window grows any more; large windows, and no
// stream is opened. So growth has room of its own here, and the resource manager,
// asked with the highest priority for both, is the wall behind it.
//
// A refusal is not seen on a stream: yamux goes on with the window that it has.
type windows struct {
	refused func() // counts a window that was left as it is

	mu    sync.Mutex
	grown int64
	of    map[corepeer.ID]*peerWindows // of those that have any
}

type peerWindows struct {
	first int // streams
	grown int64
}

func newWindows(refused func()) *windows {
	return &windows{refused: refused, of: map[corepeer.ID]*peerWindows{}}
}

// open counts a stream of a peer's; false: it has too many. Streams that are to be
// refused have a window for a moment. A peer that opens them faster than they are
// refused would reach the wall, where any other one's stream may be the next: it
// is its own connection that yamux ends for it here.
func (w *windows) open(id corepeer.ID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.of[id]
	if p == nil {
		p = &peerWindows{}
		w.of[id] = p
	}
	if p.first == maxOpenedPerPeer {
		return false
	}
	p.first++
	return true
}

// close counts a stream out, with what its window had grown.
func (w *windows) close(id corepeer.ID, grown int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.of[id]
	p.first--
	p.grown -= grown
	w.grown -= grown
	if p.first == 0 {
		delete(w.of, id)
	}
}

// grow takes room for a window of a peer's; false: it stays as it is. One takes at
// most a part of what is left: yamux doubles a window as long as a round trip needs
// an eighth of it, so the first ones would take all, and those that come later have
// 256 KiB each, some 6 Mbit/s at 160 ms. (A peer with one stream after the other
// comes to 32, 8, 4, 2 and 2 MiB.)
func (w *windows) grow(id corepeer.ID, n int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.of[id]
	if n > (maxGrowth-w.grown)/growthPart || n > (maxPeerGrowth-p.grown)/peerGrowthPart {
		return false
	}
	w.grown += n
	p.grown += n
	return true
}

// shrink gives back what grow took.
func (w *windows) shrink(id corepeer.ID, n int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.grown -= n
	w.of[id].grown -= n
}

// bounded is a muxer whose streams' windows grow as windows lets them.
type bounded struct {
	network.Multiplexer
	windows *windows
}

func (m bounded) NewConn(nc net.Conn, isServer bool, scope network.PeerScope) (network.MuxedConn, error) {
	return m.Multiplexer.NewConn(nc, isServer, windowScope{scope, m.windows})
}

// windowScope is a peer's scope. The muxer begins a span of it for each stream.
type windowScope struct {
	network.PeerScope
	windows *windows
}

func (s windowScope) BeginSpan() (network.ResourceScopeSpan, error) {
	id := s.Peer()
	if !s.windows.open(id) {
		return nil, fmt.Errorf("%w: the peer opens streams faster than they are refused", network.ErrResourceLimitExceeded)
	}
	span, err := s.PeerScope.BeginSpan()
	if err != nil {
		s.windows.close(id, 0)
		return nil, err
	}
	return &windowSpan{ResourceScopeSpan: span, windows: s.windows, of: id}, nil
}

// windowSpan is what one stream's window takes.
type windowSpan struct {
	network.ResourceScopeSpan
	windows *windows
	of      corepeer.ID

	mu    sync.Mutex
	grown int64
	ended bool
}

func (s *windowSpan) ReserveMemory(size int, prio uint8) error {
	if prio == network.ReservationPriorityAlways { // a first window
		err := s.ResourceScopeSpan.ReserveMemory(size, prio)
		if err != nil {
			s.Done() // yamux forgets to
		}
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended { // the reader has not noticed yet
		return network.ErrResourceScopeClosed
	}
	n := int64(size)
	if !s.windows.grow(s.of, n) {
		s.windows.refused()
		return fmt.Errorf("%w: windows may not grow by %d bytes more", network.ErrResourceLimitExceeded, size)
	}
	if err := s.ResourceScopeSpan.ReserveMemory(size, network.ReservationPriorityAlways); err != nil {
		s.windows.shrink(s.of, n)
		s.windows.refused()
		return err
	}
	s.grown += n
	return nil
}

func (s *windowSpan) Done() {
	s.ResourceScopeSpan.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		s.windows.close(s.of, s.grown)
	}
}
