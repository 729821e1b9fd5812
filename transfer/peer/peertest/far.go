package peertest

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// maxFarPieces bounds what is on its way through Far, in pieces of 64 KiB.
const maxFarPieces = 1024

// Far relays to an address on loopback as if it were far away: what is sent arrives
// so much later, in each direction. It ends with the test.
func Far(t testing.TB, to string, delay time.Duration) *net.TCPAddr {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			var d net.Dialer
			out, err := d.DialContext(ctx, "tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			wg.Go(func() { carry(ctx, out, in, delay) })
			wg.Go(func() { carry(ctx, in, out, delay) })
		}
	})
	return l.Addr().(*net.TCPAddr)
}

// carry passes on what comes, later, until either end closes.
func carry(ctx context.Context, to, from net.Conn, delay time.Duration) {
	type piece struct {
		b  []byte
		at time.Time
	}
	way := make(chan piece, maxFarPieces)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer to.Close()
		for p := range way {
			select {
			case <-time.After(time.Until(p.at)):
			case <-ctx.Done():
			}
			if _, err := to.Write(p.b); err != nil {
				_ = from.Close()
			}
		}
	})
	stop := context.AfterFunc(ctx, func() { _, _ = from.Close(), to.Close() })
	defer stop()
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if n > 0 {
			way <- piece{b[:n], time.Now().Add(delay)}
		}
		if err != nil {
			break
		}
	}
	close(way)
	wg.Wait()
	_ = from.Close()
}
