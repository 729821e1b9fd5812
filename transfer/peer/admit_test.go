package peer

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/node/identity"
)

// Peers that keep all the streams that they can open lock nobody out: who has fewer
// takes the place of the newest of who has the most.
func TestHost_StreamsAreSharedAmongPeers(t *testing.T) {
	const greedy = 5
	var m mesh
	a := m.start(t)
	a.Handle("/test/1", func(ctx context.Context, id identity.NodeID, s *Stream) {
		s.SetIdle(0)
		echo(ctx, id, s)
	})
	refused := 0
	open := func(h *Host) *Stream {
		t.Helper()
		s, err := h.Open(t.Context(), a.ID(), "/test/1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Reset() })
		_, _ = s.Write([]byte("x")) // it may be refused
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			refused++
			var full interface{ Full() bool }
			if !errors.As(err, &full) || !full.Full() {
				t.Errorf("a stream is refused, and nobody is told why: %v", err)
			}
		}
		return s
	}
	for range greedy {
		h := m.start(t)
		for range maxStreamsPerPeer - reservedStreams {
			open(h)
		}
	}
	if shed := testutil.ToFloat64(a.metrics.streamsShed); shed < 5 || shed > 15 {
		t.Errorf("%v streams had to go for a fifth peer, want about 10", shed)
	}
	if refused == 0 {
		t.Error("there is room for all")
	}
	honest := m.start(t)
	for range maxAdmitted / (greedy + 1) {
		s := open(honest)
		if _, err := s.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Fatalf("a peer with fewer streams than others: %v", err)
		}
	}
}

func TestAdmitted(t *testing.T) {
	var a admitted
	id := func(i byte) identity.NodeID { return identity.NodeID{i} }
	var first []*Stream
	for range maxAdmitted {
		s := &Stream{}
		first = append(first, s)
		if out, ok := a.enter(id(1), s); out != nil || !ok {
			t.Fatal("no room, and nobody is there")
		}
	}
	if _, ok := a.enter(id(1), &Stream{}); ok {
		t.Error("more than there may be")
	}
	s := &Stream{}
	out, ok := a.enter(id(2), s)
	if !ok || out != first[maxAdmitted-1] {
		t.Error("not the newest of the one with the most has to go")
	}
	a.leave(id(1), out) // it has no place any more
	if a.n != maxAdmitted {
		t.Errorf("%d streams", a.n)
	}
	a.leave(id(2), s)
	for _, s := range first {
		a.leave(id(1), s)
	}
	if a.n != 0 || len(a.of) != 0 {
		t.Errorf("%d streams of %d nodes are left", a.n, len(a.of))
	}
}
