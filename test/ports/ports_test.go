package ports

import (
	"net"
	"strconv"
	"testing"
)

// TestFree_OnceEach: each port is given once, is free for both protocols when it
// is given, and lies where no dialled connection gets its own from.
func TestFree_OnceEach(t *testing.T) {
	seen := map[int]bool{}
	high := dialled()
	for range 50 {
		p := Free(t)
		if seen[p] {
			t.Fatalf("port %d is given twice", p)
		}
		seen[p] = true
		if p < lowest || p >= high {
			t.Errorf("port %d is not from %d to %d", p, lowest, high)
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		u.Close()
	}
}

// TestFree_SeesBoth: a port that is taken for one protocol is not free.
func TestFree_SeesBoth(t *testing.T) {
	p := Free(t)
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if free(p) {
		t.Error("somebody listens by TCP, and it is free")
	}
	l.Close()
	u, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if free(p) {
		t.Error("somebody listens by UDP, and it is free")
	}
	u.Close()
	if !free(p) {
		t.Error("nobody listens, and it is not free")
	}
}
