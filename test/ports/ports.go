// Package ports gives tests ports to listen on that stay free until they do.
//
// A port that the kernel chose (":0") and that was closed again is one that it
// may give to the next connection that anybody dials: between choosing it and
// listening on it, it is gone now and then. These lie below the range from which
// connections get theirs.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
)

// lowest is above what services of a machine have.
const lowest = 20_000

var (
	mu    sync.Mutex
	given = map[int]bool{}
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
// UDP, and gives it once in a process.
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
		if !given[p] && free(p) {
			given[p] = true
			return p, nil
		}
	}
	return 0, fmt.Errorf("no free port from %d to %d", lowest, high)
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
