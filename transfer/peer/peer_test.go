package peer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/portolan/portolan/node/identity"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

type testKey ed25519.PrivateKey

func (k testKey) PrivateKey() ed25519.PrivateKey { return ed25519.PrivateKey(k) }

func newKey(t testing.TB) (testKey, identity.NodeID) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.NodeIDFromBytes(pub)
	if err != nil {
		t.Fatal(err)
	}
	return testKey(priv), id
}

// mesh is a member list that tests change.
type mesh struct {
	mu sync.Mutex
	at map[identity.NodeID]string
}

func (m *mesh) lookup(id identity.NodeID) (string, int, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, ok := m.at[id]
	if !ok {
		return "", 0, false
	}
	name, port, _ := net.SplitHostPort(at)
	var n int
	_, _ = fmt.Sscan(port, &n)
	return name, n, true
}

func (m *mesh) set(id identity.NodeID, at string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil {
		m.at = map[identity.NodeID]string{}
	}
	if at == "" {
		delete(m.at, id)
		return
	}
	m.at[id] = at
}

func (m *mesh) start(t testing.TB) *Host {
	t.Helper()
	k, id := newKey(t)
	h, err := New(Config{Identity: k, Listen: "127.0.0.1:0", Members: m.lookup, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	m.set(id, h.Addr().String())
	return h
}

func echo(_ context.Context, _ identity.NodeID, s *Stream) { _, _ = io.Copy(s, s) }

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func ping(ctx context.Context, h *Host, to identity.NodeID) error {
	s, err := h.Open(ctx, to, "/test/1")
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Write([]byte("ahoy")); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	b, err := io.ReadAll(s)
	if err == nil && string(b) != "ahoy" {
		err = fmt.Errorf("got %q", b)
	}
	return err
}

func TestHost_StreamsBetweenMembers(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	var from identity.NodeID
	b.Handle("/test/1", func(ctx context.Context, id identity.NodeID, s *Stream) {
		from = id
		echo(ctx, id, s)
	})
	// A host name is as good as an address.
	_, port, _ := net.SplitHostPort(b.Addr().String())
	m.set(b.ID(), net.JoinHostPort("localhost", port))
	if a.Connected(b.ID()) {
		t.Fatal("connected before the first stream")
	}
	if err := ping(t.Context(), a, b.ID()); err != nil {
		t.Fatal(err)
	}
	if from != a.ID() {
		t.Fatalf("handler was told %s, want %s", from, a.ID())
	}
	if !a.Connected(b.ID()) || !b.Connected(a.ID()) {
		t.Fatal("not connected after a stream")
	}
	if got := testutil.ToFloat64(a.metrics.connections); got != 1 {
		t.Fatalf("connections metric %v, want 1", got)
	}
}

func TestHost_AStrangerIsRefused(t *testing.T) {
	var m, wider mesh
	a := m.start(t)
	a.Handle("/test/1", echo)
	stranger := wider.start(t) // knows a, is not known to a
	wider.set(a.ID(), a.Addr().String())

	if err := ping(t.Context(), stranger, a.ID()); err == nil {
		t.Fatal("a stranger got a stream")
	}
	eventually(t, "the refusal is counted", func() bool { return testutil.ToFloat64(a.metrics.refusals.WithLabelValues(refusedStranger)) > 0 })
	if err := ping(t.Context(), a, stranger.ID()); !errors.Is(err, ErrNotMember) {
		t.Fatalf("dialing a stranger: %v, want ErrNotMember", err)
	}
}

func TestHost_ARemovedMemberIsCutOff(t *testing.T) {
	for _, how := range []string{"by CutOff", "by the sweep"} {
		t.Run(how, func(t *testing.T) {
			var m, wider mesh
			a, b := m.start(t), wider.start(t)
			m.set(b.ID(), b.Addr().String())
			wider.set(a.ID(), a.Addr().String())
			a.Handle("/test/1", echo)
			s, err := b.Open(t.Context(), a.ID(), "/test/1")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			m.set(b.ID(), "")
			if how == "by CutOff" {
				a.CutOff(b.ID())
			} else {
				a.sweep()
			}
			if _, err := s.Read(make([]byte, 1)); err == nil {
				t.Fatal("the stream of a removed member goes on")
			}
			eventually(t, "no new stream", func() bool { return ping(t.Context(), b, a.ID()) != nil })
		})
	}
}

func TestHost_PortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	k, _ := newKey(t)
	_, err = New(Config{Identity: k, Listen: l.Addr().String(), Members: (&mesh{}).lookup})
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "--data-port") {
		t.Fatalf("got %v, want a sentence about --data-port", err)
	}
}

func TestHost_ADeadNodeAnswersAtOnceTheSecondTime(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	first := ping(t.Context(), a, b.ID())
	if first == nil {
		t.Fatal("a stream to a dead node")
	}
	at := time.Now()
	second := ping(t.Context(), a, b.ID())
	if second == nil || time.Since(at) > redialAfter/2 {
		t.Fatalf("second attempt: %v after %v", second, time.Since(at))
	}
	if got := testutil.ToFloat64(a.metrics.dialFailures); got != 1 {
		t.Fatalf("%v dials failed, want one", got)
	}
}

func TestHost_ARestartedNodeIsFoundAgain(t *testing.T) {
	var m mesh
	a := m.start(t)
	k, id := newKey(t)
	for range 3 {
		b, err := New(Config{Identity: k, Listen: "127.0.0.1:0", Members: m.lookup})
		if err != nil {
			t.Fatal(err)
		}
		b.Handle("/test/1", echo)
		m.set(id, b.Addr().String())
		eventually(t, "found at its new address", func() bool { return ping(t.Context(), a, id) == nil })
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStream_EndsWithItsContext(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	b.Handle("/test/1", echo)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := a.Open(ctx, b.ID(), "/test/1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.SetIdle(0)
	read := make(chan error, 1)
	go func() { _, err := s.Read(make([]byte, 1)); read <- err }()
	cancel()
	if err := <-read; err == nil {
		t.Fatal("read went on after the context's end")
	}
}

func TestStream_AStalledPeerEndsReadsAndWrites(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	b.Handle("/test/1", func(ctx context.Context, _ identity.NodeID, _ *Stream) { <-ctx.Done() })
	s, err := a.Open(t.Context(), b.ID(), "/test/1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	s.SetIdle(50 * time.Millisecond)
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Fatal("read from a stalled peer went on")
	}
	if _, err := s.Write(make([]byte, 2*maxStreamWindow)); err == nil {
		t.Fatal("write to a stalled peer went on")
	}
}

func TestHost_StreamsPerPeerAreBounded(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	b.Handle("/test/1", echo)
	refused := 0
	for range maxStreamsPerPeer + 8 {
		s, err := a.Open(t.Context(), b.ID(), "/test/1")
		if err != nil {
			refused++
			continue
		}
		defer s.Close()
	}
	if refused != 8 {
		t.Fatalf("%d streams refused, want 8", refused)
	}
}

func TestHost_CloseJoinsHandlers(t *testing.T) {
	var m mesh
	a, b := m.start(t), m.start(t)
	in, out := make(chan struct{}), make(chan struct{})
	b.Handle("/test/1", func(ctx context.Context, _ identity.NodeID, s *Stream) {
		close(in)
		_, _ = io.Copy(io.Discard, s)
		close(out)
	})
	s, err := a.Open(t.Context(), b.ID(), "/test/1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-in
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Run(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-out:
	default:
		t.Fatal("Close came back before the handler")
	}
	if _, err := b.Open(t.Context(), a.ID(), "/test/1"); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

func TestMsg_RoundTripAndBounds(t *testing.T) {
	var buf bytes.Buffer
	in := wrapperspb.Bytes(bytes.Repeat([]byte("sea"), 100_000))
	if err := WriteMsg(&buf, in, 1<<20); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(buf.Bytes())
	out := &wrapperspb.BytesValue{}
	if err := ReadMsg(&buf, out, 1<<20); err != nil || !bytes.Equal(in.Value, out.Value) {
		t.Fatalf("read back: %v", err)
	}
	if err := ReadMsg(&buf, out, 1<<20); !errors.Is(err, io.EOF) {
		t.Fatalf("at the end: %v, want io.EOF", err)
	}
	var large *TooLargeError
	if err := WriteMsg(io.Discard, in, 1000); !errors.As(err, &large) {
		t.Fatalf("write beyond the bound: %v", err)
	}
	if err := ReadMsg(bytes.NewReader(whole), out, 1000); !errors.As(err, &large) {
		t.Fatalf("read beyond the bound: %v", err)
	}
	for _, cut := range []int{1, 3, 4, 100, len(whole) - 1} {
		if err := ReadMsg(bytes.NewReader(whole[:cut]), out, 1<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut after %d bytes: %v, want io.ErrUnexpectedEOF", cut, err)
		}
	}
}

func FuzzReadMsg(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 0, 0, 3, 10, 1, 'x'})
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &wrapperspb.BytesValue{}
		if ReadMsg(bytes.NewReader(b), m, 1<<16) != nil {
			return
		}
		var buf bytes.Buffer
		if err := WriteMsg(&buf, m, 1<<16); err != nil {
			t.Fatal(err)
		}
	})
}
