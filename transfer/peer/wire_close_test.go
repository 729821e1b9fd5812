package peer

import (
	"net"
	"sync"
	"testing"
	"time"
)

// stuck is a kernel whose buffers are full for ever.
type stuck struct {
	net.Conn
	writes chan struct{} // one began
	closed chan struct{}
	once   sync.Once
}

func (s *stuck) Write([]byte) (int, error) {
	select {
	case s.writes <- struct{}{}:
	default:
	}
	<-s.closed
	return 0, net.ErrClosed
}

func (s *stuck) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

// TestWire_CloseEndsAWriteThatIsNotTaken: the muxer resets its streams only when its
// connection's Close has returned.
func TestWire_CloseEndsAWriteThatIsNotTaken(t *testing.T) {
	from, _, _ := wiredPair(t)
	full := &stuck{Conn: from.wire.Conn, writes: make(chan struct{}, 1), closed: make(chan struct{})}
	from.wire.Conn = full
	t.Cleanup(func() { _ = full.Close() })
	wrote, closed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := from.Write(dataFrame(make([]byte, MaxFrame)))
		wrote <- err
	}()
	<-full.writes
	go func() { closed <- from.Close() }()
	for _, done := range []chan error{wrote, closed} {
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("it waits for what nobody takes")
		}
	}
	if _, err := from.Write(dataFrame(make([]byte, MaxFrame))); err == nil {
		t.Error("a closed connection took a frame")
	}
}
