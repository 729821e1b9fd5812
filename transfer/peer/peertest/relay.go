// Package peertest bends the network between the hosts of tests.
package peertest

import (
	"context"
	"net"
	"sync"
	"testing"
)

// Relay stands in front of a node. Frozen, it takes connections and passes
// nothing on, as the kernel does for a process that is paused.
type Relay struct {
	l  net.Listener
	to string
	wg sync.WaitGroup

	mu     sync.Mutex
	ended  bool
	thawed chan struct{} // closed: bytes pass
	conns  []net.Conn
}

// NewRelay relays to an address until the test ends.
func NewRelay(t testing.TB, to string) *Relay {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{l: l, to: to, thawed: make(chan struct{})}
	close(r.thawed)
	r.wg.Go(r.accept)
	t.Cleanup(r.close)
	return r
}

// Addr is where the relay listens.
func (r *Relay) Addr() *net.TCPAddr { return r.l.Addr().(*net.TCPAddr) }

// Freeze holds up everything that comes from now on.
func (r *Relay) Freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.thawed = make(chan struct{})
}

// Thaw lets it pass.
func (r *Relay) Thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.thawed:
	default:
		close(r.thawed)
	}
}

func (r *Relay) close() {
	_ = r.l.Close()
	r.mu.Lock()
	r.ended = true
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	r.Thaw()
	r.wg.Wait()
}

func (r *Relay) accept() {
	for {
		in, err := r.l.Accept()
		if err != nil {
			return
		}
		var d net.Dialer
		out, err := d.DialContext(context.Background(), "tcp", r.to)
		if err != nil {
			_ = in.Close()
			continue
		}
		r.mu.Lock()
		if r.ended {
			_, _ = in.Close(), out.Close()
		}
		r.conns = append(r.conns, in, out)
		r.mu.Unlock()
		r.wg.Go(func() { r.pass(in, out) })
		r.wg.Go(func() { r.pass(out, in) })
	}
}

func (r *Relay) pass(to, from net.Conn) {
	defer func() { _, _ = to.Close(), from.Close() }()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		r.mu.Lock()
		thawed := r.thawed
		r.mu.Unlock()
		<-thawed
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}
