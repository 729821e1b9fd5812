// Package ports gives tests ports to listen on that stay free until they do.
//
// A port that the kernel chose (":0") and that was closed again is one that it
// may give to the next connection that anybody dials: between choosing it and
// listening on it, it is gone now and then. These lie below the range from which
// connections get theirs, and each stays with the process that it was given to:
// `go test` runs several packages at once, and one looks for ports while
// another's node is down and about to listen on its own again.
package ports

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
)

// lowest is above what services of a machine have.
const lowest = 20_000

var (
	mu    sync.Mutex
	given = map[int]io.Closer{} // the claim of each; kept, so that it stays open
)

// dialled is the lowest port of connections that are dialled.
func dialled() int {
	low := 32_768 // Linux's own
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var high int
		_, _ = fmt.Sscan(string(b), &low, &high)
	}
	if low < lowest+1000 {
		return 65_000 // the range is wide: anything may be taken from it
	}
	return low
}

// Free gives a port of this machine's loopback address that is free for TCP and
// UDP. It is given to no other caller of this package while this process runs (on
// Linux; elsewhere to no other in this process), which costs a descriptor until then:
// who counts those takes ports before.
func Free(t testing.TB) int {
	t.Helper()
	p, err := Take()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Take is Free for who has no test at hand.
func Take() (int, error) {
	mu.Lock()
	defer mu.Unlock()
	high := dialled()
	for range 1000 {
		p := lowest + rand.IntN(high-lowest)
		if _, ok := given[p]; ok {
			continue
		}
		c, err := claim(p)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("claim port %d: %w", p, err)
		}
		if free(p) {
			given[p] = c
			return p, nil
		}
		_ = c.Close()
	}
	return 0, fmt.Errorf("no free port from %d to %d", lowest, high)
}

// claim keeps a port from other processes that [Take] one. It comes before the look
// whether the port is free, as that look itself listens on it. The claim is a
// name of the abstract namespace of sockets: it leaves no file behind, ends with
// the process however that ends, and belongs to the network namespace, as the
// port does. Only Linux has them.
func claim(p int) (io.Closer, error) {
	if runtime.GOOS != "linux" {
		return io.NopCloser(nil), nil
	}
	return net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: "@portolan-test-port-" + strconv.Itoa(p)})
}

func free(p int) bool {
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
	l, err := net.Listen("tcp", addr) //nolint:noctx // at once
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", addr) //nolint:noctx // at once
	if err != nil {
		return false
	}
	return u.Close() == nil
}
