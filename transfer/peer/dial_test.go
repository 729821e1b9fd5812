package peer

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portolan/portolan/transfer/peer/peertest"
)

func TestHost_DialErrorsAreOneShortPhrase(t *testing.T) {
	var m mesh
	a, b, c := m.start(t), m.start(t), m.start(t)
	at := c.Addr().String()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	err := ping(t.Context(), a, c.ID())
	if err == nil || err.Error() != at+": connection refused" || !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("dead node: %v", err)
	}
	m.set(c.ID(), b.Addr().String())
	eventually(t, "the address of another node is told", func() bool {
		err := ping(t.Context(), a, c.ID())
		return err != nil && err.Error() == b.Addr().String()+": another node answers there"
	})
	m.set(c.ID(), "no-such-host.invalid:1")
	eventually(t, "a name that is unknown is told", func() bool {
		err := ping(t.Context(), a, c.ID())
		return err != nil && strings.HasPrefix(err.Error(), "no-such-host.invalid:1: the name can't be resolved: ")
	})
	// Somebody who speaks another protocol, or hangs up.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			s, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(s, "220 mail.example.org\r\n")
			_ = s.Close()
		}
	})
	defer wg.Wait()
	defer l.Close()
	m.set(c.ID(), l.Addr().String())
	eventually(t, "another protocol is told", func() bool {
		err := ping(t.Context(), a, c.ID())
		return err != nil && strings.HasPrefix(err.Error(), l.Addr().String()+": ") &&
			!strings.ContainsAny(err.Error(), "\n*") && len(err.Error()) < 100
	})
}

func TestHost_AShortPatienceDoesNotSpoilADial(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	b.Handle("/test/1", echo)
	r := peertest.NewRelay(t, b.Addr().String())
	m.set(b.ID(), r.Addr().String())
	r.Freeze()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := ping(short, a, b.ID()); !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), r.Addr().String()+": no answer") {
		t.Fatalf("within 50 ms: %v", err)
	}
	// The handshake goes on for whoever can wait.
	r.Thaw()
	if err := ping(t.Context(), a, b.ID()); err != nil {
		t.Fatal(err)
	}
}

func TestHost_ConcurrentOpensShareADial(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	b.Handle("/test/1", echo)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := ping(t.Context(), a, b.ID()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(a.h.Network().Conns()); n != 1 { // lines are not among a's
		t.Fatalf("%d connections, want one", n)
	}
}

func TestHost_RespondsTellsASilentNode(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	b.Handle("/test/1", echo)
	r := peertest.NewRelay(t, b.Addr().String())
	m.set(b.ID(), r.Addr().String())
	if a.Responds(t.Context(), b.ID()) {
		t.Fatal("a sign of life without a connection")
	}
	if err := ping(t.Context(), a, b.ID()); err != nil {
		t.Fatal(err)
	}
	if !a.Responds(t.Context(), b.ID()) {
		t.Fatal("no sign of life")
	}
	r.Freeze()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if a.Responds(short, b.ID()) {
		t.Fatal("a sign of life of a frozen node")
	}
	r.Thaw()
	if !a.Responds(t.Context(), b.ID()) {
		t.Fatal("no sign of life after the thaw")
	}
}

func TestHost_RespondsTakesAHandshakeForASign(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	b.Handle("/test/1", echo)
	r := peertest.NewRelay(t, b.Addr().String())
	m.set(b.ID(), r.Addr().String())
	r.Freeze()
	opened := make(chan error, 1)
	go func() { opened <- ping(t.Context(), a, b.ID()) }()
	eventually(t, "it dials", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.dials[b.ID()] != nil
	})
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if a.Responds(short, b.ID()) {
		t.Fatal("a sign of life from behind a frozen link")
	}
	sign := make(chan bool, 1)
	go func() { sign <- a.Responds(t.Context(), b.ID()) }()
	r.Thaw()
	if !<-sign {
		t.Fatal("the handshake is no sign of life")
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
}
