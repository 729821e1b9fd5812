package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/portolan/portolan/node/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waitFor bounds every wait; nothing here takes a tenth of it.
const waitFor = 20 * time.Second

type members struct {
	mu  sync.Mutex
	set map[identity.NodeID]bool
}

func (m *members) IsMember(id identity.NodeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.set[id]
}

func (m *members) put(id identity.NodeID, v bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set[id] = v
}

func newIdentity(t testing.TB) *identity.Identity {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// setUp starts a listener of node a; a and b are members, c is a stranger.
func setUp(t testing.TB) (l *Listener, m *members, a, b, c *identity.Identity) {
	t.Helper()
	a, b, c = newIdentity(t), newIdentity(t), newIdentity(t)
	m = &members{set: map[identity.NodeID]bool{a.ID: true, b.ID: true}}
	l, err := Listen("127.0.0.1:0", a, m, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(waitFor):
			t.Error("Run does not end")
		}
	})
	return l, m, a, b, c
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitFor)
	t.Cleanup(cancel)
	return ctx
}

// echo serves a raft side by sending back what comes.
func echo(t testing.TB, l *Listener) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Raft().Accept()
			if err != nil {
				return
			}
			wg.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
}

func roundTrip(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(waitFor))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "ping" {
		return errors.New("not the echo")
	}
	return nil
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(waitFor); !ok(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("%s: not within %v", what, waitFor)
		}
	}
}

func refused(l *Listener, reason string) float64 {
	return testutil.ToFloat64(l.refusals.WithLabelValues(reason))
}

func TestRaft_MembersTalk(t *testing.T) {
	l, m, a, b, _ := setUp(t)
	echo(t, l)
	c, err := DialRaft(testContext(t), l.Addr().String(), a.ID, b, m)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := roundTrip(c); err != nil {
		t.Fatal(err)
	}
}

func TestRaft_StrangerIsRefused(t *testing.T) {
	l, _, a, _, stranger := setUp(t)
	echo(t, l)
	// The stranger believes what it likes: the listener's list decides.
	all := &members{set: map[identity.NodeID]bool{a.ID: true}}
	c, err := DialRaft(testContext(t), l.Addr().String(), a.ID, stranger, all)
	if err == nil { // TLS 1.3: the client learns of the refusal when it reads
		defer c.Close()
		err = roundTrip(c)
	}
	if err == nil {
		t.Fatal("a stranger talked raft")
	}
	eventually(t, "refusal counted", func() bool { return refused(l, refusedHandshake) == 1 })
}

func TestDialRaft_NeverDialsStrangers(t *testing.T) {
	l, m, _, b, stranger := setUp(t)
	if _, err := DialRaft(testContext(t), l.Addr().String(), stranger.ID, b, m); !errors.Is(err, ErrNotMember) {
		t.Fatalf("err %v, want ErrNotMember", err)
	}
}

func TestDialRaft_WrongNode(t *testing.T) {
	l, m, a, b, _ := setUp(t)
	other := newIdentity(t)
	m.put(other.ID, true)
	_, err := DialRaft(testContext(t), l.Addr().String(), other.ID, b, m)
	var wrong *WrongNodeError
	if !errors.As(err, &wrong) || wrong.Got != a.ID || wrong.Want != other.ID {
		t.Fatalf("err %v, want a WrongNodeError that names both", err)
	}
}

func TestListener_BadHandshakes(t *testing.T) {
	l, m, a, b, c := setUp(t)
	echo(t, l)
	addr := l.Addr().String()
	dial := func(cfg *tls.Config) error {
		cfg.InsecureSkipVerify = true
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(testContext(t), "tcp", addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(waitFor))
		_, err = conn.Read(make([]byte, 1))
		return err
	}
	cert := c.TLSCertificate(time.Now)
	for name, cfg := range map[string]*tls.Config{
		"no certificate":   {NextProtos: []string{ALPNGRPC}},
		"unknown ALPN":     {Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}},
		"no ALPN":          {Certificates: []tls.Certificate{cert}},
		"TLS 1.2":          {Certificates: []tls.Certificate{cert}, NextProtos: []string{ALPNGRPC}, MaxVersion: tls.VersionTLS12},
		"stranger on raft": {Certificates: []tls.Certificate{cert}, NextProtos: []string{ALPNRaft}},
		"both, raft wins":  {Certificates: []tls.Certificate{cert}, NextProtos: []string{ALPNRaft, ALPNGRPC}},
	} {
		t.Run(name, func(t *testing.T) {
			before := refused(l, refusedHandshake)
			if err := dial(cfg); err == nil {
				t.Fatal("was accepted")
			}
			eventually(t, "refusal counted", func() bool { return refused(l, refusedHandshake) == before+1 })
		})
	}
	t.Run("garbage", func(t *testing.T) {
		before := refused(l, refusedHandshake)
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
		_ = conn.SetDeadline(time.Now().Add(waitFor))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		eventually(t, "refusal counted", func() bool { return refused(l, refusedHandshake) == before+1 })
	})
	conn, err := DialRaft(testContext(t), addr, a.ID, b, m)
	if err != nil {
		t.Fatalf("a member after all that: %v", err)
	}
	defer conn.Close()
	if err := roundTrip(conn); err != nil {
		t.Fatalf("a member after all that: %v", err)
	}
}

func TestListener_SlowHandshakesDelayNobody(t *testing.T) {
	l, m, a, b, _ := setUp(t)
	echo(t, l)
	// As many silent connections as one address may have, less one.
	for range maxHandshakesPerPeer - 1 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	shaking := l.shaking.Len
	eventually(t, "all wait", func() bool { return shaking() == maxHandshakesPerPeer-1 })
	c, err := DialRaft(testContext(t), l.Addr().String(), a.ID, b, m)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := roundTrip(c); err != nil {
		t.Fatal(err)
	}
	// One more silent one fits, the next is turned away at once.
	eventually(t, "handshake of the member over", func() bool { return shaking() == maxHandshakesPerPeer-1 })
	for range 2 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "one is turned away", func() bool { return refused(l, refusedBusy) == 1 })
}

func TestListener_CutOff(t *testing.T) {
	l, m, a, b, _ := setUp(t)
	echo(t, l)
	c, err := DialRaft(testContext(t), l.Addr().String(), a.ID, b, m)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := roundTrip(c); err != nil {
		t.Fatal(err)
	}
	m.put(b.ID, false)
	l.CutOff(b.ID)
	if err := roundTrip(c); err == nil {
		t.Fatal("a removed node still talks")
	}
}

func serveGRPC(t testing.TB, l *Listener, seen chan identity.NodeID) {
	t.Helper()
	srv := grpc.NewServer(grpc.Creds(ServerCredentials()), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			id, _ := PeerNodeID(ctx)
			seen <- id
			return h(ctx, req)
		}))
	healthpb.RegisterHealthServer(srv, health.NewServer())
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l.GRPC()) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
}

func call(t testing.TB, addr string, id *identity.Identity, want identity.NodeID) error {
	t.Helper()
	cc, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(Credentials(id, want)))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	_, err = healthpb.NewHealthClient(cc).Check(testContext(t), &healthpb.HealthCheckRequest{})
	return err
}

func TestGRPC_NamesItsPeers(t *testing.T) {
	l, _, a, b, stranger := setUp(t)
	seen := make(chan identity.NodeID, 1)
	serveGRPC(t, l, seen)
	for name, id := range map[string]*identity.Identity{"member": b, "stranger": stranger} {
		t.Run(name, func(t *testing.T) {
			if err := call(t, l.Addr().String(), id, a.ID); err != nil {
				t.Fatal(err)
			}
			if got := <-seen; got != id.ID {
				t.Fatalf("the server saw %v, want %v", got, id.ID)
			}
		})
	}
}

func TestGRPC_PinsTheServer(t *testing.T) {
	l, _, a, b, stranger := setUp(t)
	serveGRPC(t, l, make(chan identity.NodeID, 1))
	for name, want := range map[string]identity.NodeID{"another node": stranger.ID, "no node": {}} {
		t.Run(name, func(t *testing.T) {
			err := call(t, l.Addr().String(), b, want)
			if err == nil || !strings.Contains(err.Error(), a.ID.String()) {
				t.Fatalf("err %v, want one that names the server", err)
			}
		})
	}
}

func TestGRPC_StrangersAreBounded(t *testing.T) {
	l, m, a, b, stranger := setUp(t)
	serveGRPC(t, l, make(chan identity.NodeID, 1))
	open := func(id *identity.Identity) (net.Conn, error) {
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		c, _, err := Credentials(id, a.ID).ClientHandshake(testContext(t), "", raw)
		return c, err
	}
	strangers := l.strangers.Len
	var last net.Conn
	for i := range maxStrangers {
		c, err := open(stranger)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		last = c
		eventually(t, "connection counted", func() bool { return strangers() == i+1 })
	}
	c, err := open(stranger)
	if err == nil {
		defer c.Close()
	}
	eventually(t, "one too many refused", func() bool { return refused(l, refusedStrangers) == 1 })
	if err := call(t, l.Addr().String(), b, a.ID); err != nil {
		t.Fatalf("a member beside many strangers: %v", err)
	}
	_ = last.Close()
	eventually(t, "a place is free again", func() bool { return strangers() == maxStrangers-1 })

	// Time up: who joined meanwhile stays, who did not goes.
	l.mu.Lock()
	var conns []*Conn
	for c := range l.conns {
		if c.stranger != nil {
			conns = append(conns, c)
		}
	}
	l.mu.Unlock()
	conns[0].expire()
	if got := strangers(); got != maxStrangers-2 {
		t.Fatalf("%d strangers after one expired, want %d", got, maxStrangers-2)
	}
	m.put(stranger.ID, true)
	conns[1].expire()
	l.mu.Lock()
	_, kept := l.conns[conns[1]]
	l.mu.Unlock()
	if got := strangers(); got != maxStrangers-3 || !kept {
		t.Fatalf("after joining: %d strangers, kept %v", got, kept)
	}
}

func TestListener_CloseEndsEverything(t *testing.T) {
	l, m, a, b, _ := setUp(t)
	c, err := DialRaft(testContext(t), l.Addr().String(), a.ID, b, m)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := l.Raft().Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := accepted.(*Conn).NodeID(); got != b.ID {
		t.Fatalf("connection of %v, want %v", got, b.ID)
	}
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_ = l.Close()
	_ = l.Close()
	for name, c := range map[string]net.Conn{"raft": c, "silent": silent} {
		_ = c.SetDeadline(time.Now().Add(waitFor))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s connection after Close: %v", name, err)
		}
	}
	for name, side := range map[string]net.Listener{"raft": l.Raft(), "grpc": l.GRPC()} {
		if _, err := side.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: Accept after Close: %v", name, err)
		}
	}
}

func TestListen_PortInUse(t *testing.T) {
	l, m, a, _, _ := setUp(t)
	_, err := Listen(l.Addr().String(), a, m, slog.New(slog.DiscardHandler))
	_, port, _ := net.SplitHostPort(l.Addr().String())
	want := "port " + port + " on 127.0.0.1 is in use: stop what uses it or choose another with --control-port"
	if err == nil || err.Error() != want {
		t.Fatalf("err %q, want %q", err, want)
	}
	var pe *PortError
	if !errors.As(err, &pe) || pe.Port != port || pe.Option != "--control-port" {
		t.Fatalf("%#v", pe)
	}
}

func TestListenError(t *testing.T) {
	listen := func(addr string) error { _, err := net.Listen("tcp", addr); return err }
	for _, c := range []struct{ addr, option, want string }{
		{"192.0.2.1:7947", "--control-port", "cannot listen on 192.0.2.1:7947: no interface of this machine has the address 192.0.2.1; choose another with --bind"},
		{"192.0.2.1:5000", "--http", "cannot listen on 192.0.2.1:5000: no interface of this machine has the address 192.0.2.1; choose another with --http"},
		{"7947", "--control-port", `"7947" is not an address of the form host:port: correct --control-port`},
	} {
		if got := ListenError(c.addr, c.option, listen(c.addr)); got == nil || got.Error() != c.want {
			t.Errorf("%s: %v, want %s", c.addr, got, c.want)
		}
	}
	if err := ListenError("x", "y", nil); err != nil {
		t.Error(err)
	}
}

// Refusals must not fill the log: anybody can cause them.
func TestListener_QuietAboutStrangers(t *testing.T) {
	var buf syncBuffer
	a := newIdentity(t)
	l, err := Listen("127.0.0.1:0", a, &members{}, slog.New(slog.NewTextHandler(&buf, nil)))
	if err != nil {
		t.Fatal(err)
	}
	l.handshakeFor = 100 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("garbage garbage\n"))
	eventually(t, "refusal counted", func() bool { return refused(l, refusedHandshake) == 1 })
	_ = c.Close()
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	_ = silent.SetDeadline(time.Now().Add(waitFor))
	if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("a peer that says nothing: %v, want the connection closed", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := buf.String(); s != "" {
		t.Fatalf("logged: %s", s)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}
func (b *syncBuffer) String() string { b.mu.Lock(); defer b.mu.Unlock(); return b.b.String() }
