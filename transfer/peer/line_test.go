package peer

import (
	"context"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/portolan/portolan/node/identity"
)

// pair is two hosts with an echo and, at a, a line to b.
func pair(t *testing.T) (m *mesh, a, b *Host) {
	t.Helper()
	m = &mesh{}
	a, b = m.start(t), m.start(t)
	for _, h := range []*Host{a, b} {
		h.Handle("/test/1", echo)
	}
	if err := ahoy(t, a, b.ID()); err != nil { // over the common connection
		t.Fatal(err)
	}
	eventually(t, "a line", func() bool { return a.lines.count() == 1 })
	return m, a, b
}

// ahoy sends something over a stream for bulk and wants it back.
func ahoy(t *testing.T, h *Host, to identity.NodeID) error {
	t.Helper()
	s, err := h.OpenBulk(t.Context(), to, "/test/1")
	if err != nil {
		return err
	}
	defer s.Close()
	if _, err := s.Write([]byte("ahoy")); err != nil {
		return err
	}
	_, err = io.ReadFull(s, make([]byte, 4))
	return err
}

func TestLine_CarriesStreamsForBulkAlone(t *testing.T) {
	_, a, b := pair(t)
	if n := b.congestion.Len(); n != 2 {
		t.Errorf("b looks at %d connections that a dialed: the common one and the line are 2", n)
	}
	var open []*Stream
	for range 5 {
		s, err := a.OpenBulk(t.Context(), b.ID(), "/test/1")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		open = append(open, s)
	}
	l := a.lines.to[b.ID()].up[0]
	a.lines.mu.Lock()
	if l.streams != len(open) {
		t.Errorf("the line has %d streams and not %d", l.streams, len(open))
	}
	a.lines.mu.Unlock()
	// More streams are on the line than on the common connection: what the other
	// side opens must not go there.
	for range 3 {
		if err := ping(t.Context(), b, a.ID()); err != nil {
			t.Errorf("b can't open a stream to a beside its line: %v", err)
		}
	}
	for _, s := range open {
		_ = s.Close()
		_ = s.Reset() // counts once
	}
	a.lines.mu.Lock()
	defer a.lines.mu.Unlock()
	if l.streams != 0 {
		t.Errorf("%d streams are counted that ended", l.streams)
	}
}

func TestLine_TakesNoStreams(t *testing.T) {
	_, a, b := pair(t)
	id, err := peerID(a.ID())
	if err != nil {
		t.Fatal(err)
	}
	// a has its line as soon as it is dialled; b hears of it a moment later.
	var lines []network.Conn
	eventually(t, "the one connection of a beside the common one", func() bool {
		lines = nil
		for _, c := range b.h.Network().ConnsToPeer(id) {
			if c != b.common(id) {
				lines = append(lines, c)
			}
		}
		return len(lines) == 1
	})
	s, err := lines[0].NewStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a took a stream on its line")
	}
}

func TestLine_AsManyAsWanted(t *testing.T) {
	_, a, b := pair(t)
	a.Filled(b.ID(), a.window/2)
	if n := a.lines.count(); n != 1 {
		t.Errorf("%d lines for what one holds", n)
	}
	a.Filled(b.ID(), 100*a.window)
	eventually(t, "all lines", func() bool { return a.lines.count() == MaxLines })
	var open []*Stream
	for range 2 * MaxLines {
		s, err := a.OpenBulk(t.Context(), b.ID(), "/test/1")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		open = append(open, s)
	}
	a.lines.mu.Lock()
	for i, l := range a.lines.to[b.ID()].up {
		if l.streams != 2 {
			t.Errorf("line %d has %d of %d streams", i, l.streams, len(open))
		}
	}
	a.lines.mu.Unlock()
	if n := a.lines.count(); n != MaxLines {
		t.Errorf("%d lines and not %d", n, MaxLines)
	}
	a.Filled(b.ID(), 0)
	if n := a.lines.count(); n != MaxLines {
		t.Errorf("%d lines, although streams are on all %d", n, MaxLines)
	}
	for _, s := range open {
		_ = s.Close()
	}
	eventually(t, "one line is left", func() bool { return a.lines.count() == 1 })
	if err := ahoy(t, a, b.ID()); err != nil {
		t.Fatal(err)
	}
	if err := ping(t.Context(), b, a.ID()); err != nil {
		t.Errorf("b can't open a stream to a beside its lines: %v", err)
	}
}

func TestLine_EndsWithTheMembership(t *testing.T) {
	m, a, b := pair(t)
	s, err := a.OpenBulk(t.Context(), b.ID(), "/test/1")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m.set(b.ID(), "")
	if err := ahoy(t, a, b.ID()); err == nil {
		t.Error("a stream was opened on a line to a removed member")
	}
	a.CutOff(b.ID())
	if n := a.lines.count(); n != 0 {
		eventually(t, "no line to a removed member", func() bool { return a.lines.count() == 0 })
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err == nil {
		t.Error("the stream of a line that was cut off lives")
	}
}

func TestLine_EndsWithTheConnection(t *testing.T) {
	_, a, b := pair(t)
	id, err := peerID(b.ID())
	if err != nil {
		t.Fatal(err)
	}
	if err := a.common(id).Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the line is closed", func() bool { return a.lines.count() == 0 })
	// Both come back.
	if err := ahoy(t, a, b.ID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new line", func() bool { return a.lines.count() == 1 })
}

func TestLine_BrokenOneIsReplaced(t *testing.T) {
	_, a, b := pair(t)
	a.lines.mu.Lock()
	bundle := a.lines.to[b.ID()]
	l := bundle.up[0]
	a.lines.mu.Unlock()
	_ = l.conn.Close()
	if err := ahoy(t, a, b.ID()); err != nil { // on the common connection, at the latest
		t.Fatal(err)
	}
	eventually(t, "the line is gone", func() bool { return a.lines.count() == 0 })
	a.lines.mu.Lock()
	if bundle.retry.IsZero() {
		t.Error("a line that broke is dialed again at once")
	}
	bundle.retry = bundle.retry.Add(-2 * lineRetry)
	a.lines.mu.Unlock()
	if err := ahoy(t, a, b.ID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another line", func() bool { return a.lines.count() == 1 })
}

func TestLine_ContextResetsItsStream(t *testing.T) {
	_, a, b := pair(t)
	ctx, cancel := context.WithCancel(t.Context())
	s, err := a.OpenBulk(ctx, b.ID(), "/test/1")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a stream outlives its context")
	}
}
