package peer

import (
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-yamux/v5"
)

// TestCredit_GrowsWithTheWindow is the other side of a session, frame by frame: it
// sends as much as it may, and after windows have doubled it may have as much on
// its way as the window says.
func TestCredit_GrowsWithTheWindow(t *testing.T) {
	const delay = 100 * time.Millisecond // four of them must not pass between two updates
	far, near := net.Pipe()
	defer far.Close()
	scope := &spanScope{}
	conn, err := crediting{muxer()}.NewConn(near, false, scope)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var credit atomic.Int64 // that the session gave and nothing was sent for
	var stream atomic.Uint32
	changed := make(chan struct{}, 1)
	go func() { // takes the session's frames
		var h [frameHeader]byte
		for {
			if _, err := io.ReadFull(far, h[:]); err != nil {
				return
			}
			flags, length := binary.BigEndian.Uint16(h[2:]), binary.BigEndian.Uint32(h[8:])
			switch h[1] {
			case 0: // data
				_, err = io.CopyN(io.Discard, far, int64(length))
			case windowUpdate:
				if flags&1 != 0 { // SYN
					stream.Store(binary.BigEndian.Uint32(h[4:]))
					credit.Add(256 << 10)
				}
				credit.Add(int64(length))
			case 2: // ping: the answer has a long way
				echo := h
				binary.BigEndian.PutUint16(echo[2:], 2) // ACK
				time.AfterFunc(delay, func() { _, _ = far.Write(echo[:]) })
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	var session *yamux.Session
	if !conn.As(&session) {
		t.Fatal("no session of yamux")
	}
	eventually(t, "the round trip is measured", func() bool { return session.RTT() > 0 })
	st, err := conn.OpenStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Reset()
	eventually(t, "the stream is open", func() bool { return stream.Load() > 0 })
	// send sends n bytes, or as many as there is credit for, and gives their number.
	send := func(n int64) int64 {
		n = min(n, credit.Load(), 64<<10)
		if n == 0 {
			return 0
		}
		b := make([]byte, frameHeader+n)
		binary.BigEndian.PutUint32(b[4:], stream.Load())
		binary.BigEndian.PutUint32(b[8:], uint32(n))
		credit.Add(-n)
		if _, err := far.Write(b); err != nil {
			t.Fatal(err)
		}
		return n
	}
	buf := make([]byte, 64<<10)
	take := func(n int64) {
		if _, err := io.ReadFull(st, buf[:n]); err != nil {
			t.Fatal(err)
		}
	}
	const large = 8 << 20
	for scope.reserved.Load() < large {
		n := send(64 << 10)
		if n == 0 {
			<-changed // the update for what was read is on its way
			continue
		}
		take(n)
	}
	window := scope.reserved.Load()
	doubled := 0
	for w := int64(256 << 10); w < window; w *= 2 {
		doubled++
	}
	// The last update is made with the read that doubled the window.
	least := window - int64(doubled)*64<<10
	eventually(t, "what is given for the window", func() bool { return credit.Load() >= least })
	// All of it can be sent: the session has room.
	sent := int64(0)
	for n := send(64 << 10); n > 0; n = send(64 << 10) {
		sent += n
	}
	for left := sent; left > 0; {
		n := min(left, int64(len(buf)))
		take(n)
		left -= n
	}
	if sent < least {
		t.Errorf("%d bytes may be on their way in a window of %d", sent, window)
	}
}

// spanScope counts what windows reserve.
type spanScope struct {
	network.NullScope
	reserved atomic.Int64
}

func (s *spanScope) BeginSpan() (network.ResourceScopeSpan, error) { return s, nil }
func (s *spanScope) ReserveMemory(n int, _ uint8) error {
	s.reserved.Add(int64(n))
	return nil
}

func TestCredit_Updates(t *testing.T) {
	const first = 256 << 10
	type update struct {
		flags         uint16
		stream, delta uint32
		more          uint32
	}
	for _, c := range []struct {
		name string
		is   []update
	}{
		{"a window that stays", []update{{stream: 1, delta: first / 2}, {stream: 1, delta: first/2 + 65535}}},
		{"one that doubles", []update{{stream: 1, delta: first, more: first / 2}, {stream: 1, delta: first}, {stream: 1, delta: 2 * first, more: first}}},
		{"each stream has its own", []update{{stream: 1, delta: first, more: first / 2}, {stream: 3, delta: first, more: first / 2}, {stream: 3, delta: first}}},
		{"the first frame", []update{{flags: 1, stream: 1}, {flags: 2, stream: 2}, {stream: 1, delta: first, more: first / 2}}},
		{"closed for writing", []update{{stream: 1, delta: first, more: first / 2}, {flags: 4, stream: 1}, {stream: 1, delta: first}}},
		{"reset", []update{{stream: 1, delta: first, more: first / 2}, {flags: 8, stream: 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := &credited{first: first}
			for i, u := range c.is {
				if more := conn.update(u.flags, u.stream, u.delta); more != u.more {
					t.Errorf("update %d has %d on top, want %d", i, more, u.more)
				}
			}
		})
	}
}

// TestCredit_Forgets: what is remembered is bounded, and a stream that was
// forgotten is never given what its session has no room for.
func TestCredit_Forgets(t *testing.T) {
	const first = 256 << 10
	conn := &credited{first: first}
	for i := range uint32(3 * maxGrown) {
		if conn.update(0, 2*i+1, first) == 0 {
			t.Fatalf("stream %d is given nothing", 2*i+1)
		}
	}
	if len(conn.grown) > maxGrown {
		t.Errorf("%d windows are remembered", len(conn.grown))
	}
	if more := conn.update(0, 1, first); more != 0 {
		t.Errorf("a forgotten stream is given %d, although half of its window may be what it read", more)
	}
	last := uint32(6*maxGrown - 1)
	if more := conn.update(0, last, 2*first); more != first {
		t.Errorf("the last stream is given %d", more)
	}
}
