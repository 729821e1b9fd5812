package congestion

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestWatcher_RealConnection reads and sets what the kernel has of a connection,
// and lets go of it when it is closed.
func TestWatcher_RealConnection(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	w := Watch(slog.New(slog.DiscardHandler))
	defer w.Close()
	w.Add(conn)
	w.Add("no connection")
	w.mu.Lock()
	if len(w.conns) != 1 {
		t.Errorf("%d connections are looked at", len(w.conns))
	}
	var c *watched
	for c = range w.conns {
	}
	w.mu.Unlock()
	if _, err := conn.Write([]byte("ahoy")); err != nil {
		t.Fatal(err)
	}
	have, err := read(c.raw)
	if err != nil || have.algorithm == "" || have.sent == 0 || have.shortest <= 0 || have.rtt < have.shortest {
		t.Fatalf("read %+v, %v", have, err)
	}
	if err := set(c.raw, reno); err != nil { // which every kernel has and allows
		t.Fatal(err)
	}
	if have, err = read(c.raw); err != nil || have.algorithm != reno {
		t.Errorf("read %+v, %v after it was set to %s", have, err, reno)
	}
	if err := set(c.raw, "no such"); err == nil {
		t.Error("an algorithm was set that no kernel has")
	}
	conn.Close()
	if gone := w.lookAt([]*watched{c}, time.Now()); len(gone) != 1 {
		t.Error("a closed connection is looked at")
	}
}
