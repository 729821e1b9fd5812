package planetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/plane"
)

const protocol = "/planetest/1"

// long is a time that no test waits for.
const long = time.Minute

// Run tests a data plane: two gives two nodes that reach each other.
func Run(t *testing.T, two func(t *testing.T) (a, b plane.Host)) {
	echo := func(_ context.Context, _ identity.NodeID, s plane.Stream) { _, _ = io.Copy(s, s) }
	hold := func(ctx context.Context, _ identity.NodeID, _ plane.Stream) { <-ctx.Done() }
	open := func(t *testing.T, ctx context.Context, a, b plane.Host) plane.Stream {
		t.Helper()
		s, err := a.Open(ctx, b.ID(), protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Reset() })
		s.SetIdle(long)
		return s
	}
	t.Run("bytes come in order, to their end, from who is named", func(t *testing.T) {
		a, b := two(t)
		from := make(chan identity.NodeID, 1)
		b.Handle(protocol, func(ctx context.Context, id identity.NodeID, s plane.Stream) {
			from <- id
			echo(ctx, id, s)
		})
		for _, how := range []func(context.Context, identity.NodeID, string) (plane.Stream, error){a.Open, a.OpenBulk} {
			s, err := how(t.Context(), b.ID(), protocol)
			if err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte("a unit of a blob "), 1<<16)
			go func() {
				_, _ = s.Write(want)
				_ = s.CloseWrite()
			}()
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d of %d bytes, %v", len(got), len(want), err)
			}
			_ = s.Close()
			if id := <-from; id != a.ID() {
				t.Errorf("opened by %s, served as from %s", a.ID(), id)
			}
		}
		if !a.Connected(b.ID()) || !a.Responds(t.Context(), b.ID()) {
			t.Error("a node that was reached is not there")
		}
		if err := a.DialAfresh(t.Context(), b.ID()); err != nil {
			t.Error(err)
		}
		if n := a.StreamsEach(); n < 1 {
			t.Errorf("%d streams may be opened", n)
		}
		a.Filled(b.ID(), 1<<20)
	})
	t.Run("nobody waits longer than the idle time", func(t *testing.T) {
		a, b := two(t)
		b.Handle(protocol, hold)
		s := open(t, t.Context(), a, b)
		s.SetIdle(20 * time.Millisecond)
		timedOut := func(what string, err error) {
			t.Helper()
			var over interface{ Timeout() bool }
			if !errors.As(err, &over) || !over.Timeout() {
				t.Errorf("%s: %v", what, err)
			}
		}
		_, err := s.Read(make([]byte, 1))
		timedOut("a read", err)
		_, err = s.Write(make([]byte, 4*window)) // more than anybody takes unread
		timedOut("a write", err)
		s.SetIdle(long)
		if err := s.SetReadDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		_, err = s.Read(make([]byte, 1))
		timedOut("a read behind its deadline", err)
	})
	t.Run("a reset ends both ends", func(t *testing.T) {
		a, b := two(t)
		ended := make(chan error, 1)
		b.Handle(protocol, func(_ context.Context, _ identity.NodeID, s plane.Stream) {
			s.SetIdle(long)
			_, err := io.Copy(s, s)
			ended <- err
		})
		s := open(t, t.Context(), a, b)
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(make([]byte, 1)); err != nil { // it is served
			t.Fatal(err)
		}
		_ = s.Reset()
		if err := <-ended; err == nil {
			t.Error("the other side takes it for the end of what was sent")
		}
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("this side reads on")
		}
	})
	t.Run("a stream ends with its context", func(t *testing.T) {
		a, b := two(t)
		b.Handle(protocol, hold)
		ctx, cancel := context.WithCancel(t.Context())
		s := open(t, ctx, a, b)
		time.AfterFunc(time.Millisecond, cancel)
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("it reads on")
		}
	})
	t.Run("a stream ends when its handler returns", func(t *testing.T) {
		a, b := two(t)
		b.Handle(protocol, func(_ context.Context, _ identity.NodeID, s plane.Stream) { _, _ = s.Write([]byte("bye")) })
		s := open(t, t.Context(), a, b)
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); err != nil || string(got) != "bye" {
			t.Errorf("read %q, %v", got, err)
		}
	})
	t.Run("what nobody serves can't be used", func(t *testing.T) {
		a, b := two(t)
		s, err := a.Open(t.Context(), b.ID(), "/planetest/none")
		if err == nil {
			defer func() { _ = s.Reset() }()
			_, err = s.Read(make([]byte, 1))
		}
		if err == nil {
			t.Error("it answers")
		}
		if s, err := a.Open(t.Context(), identity.NodeID{9}, protocol); err == nil {
			_ = s.Reset()
			t.Error("a stream to nobody")
		}
	})
}
