package peer

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/peer/peertest"
)

// promised is what the windows of all peers together may have.
const promised = 128 << 20

// Whatever peers open, in both directions, their windows have 128 MiB together; and
// when they have opened all that they can, a stream over a long link still grows.
func TestHost_WindowsOfAllPeersTogether(t *testing.T) {
	const peers, delay = 12, 100 * time.Millisecond
	var m mesh
	a := m.start(t)
	hold := func(ctx context.Context, _ identity.NodeID, s *Stream) {
		s.SetIdle(0)
		for { // reads what comes
			if _, err := s.Read(make([]byte, 1<<10)); err != nil {
				break
			}
		}
		<-ctx.Done()
	}
	protocols := []string{"/test/1", "/test/2", "/test/3", "/test/4"}
	for _, p := range protocols {
		a.Handle(p, hold)
	}
	// Far has bytes without end.
	far := m.start(t)
	far.Handle("/test/bytes", func(_ context.Context, _ identity.NodeID, s *Stream) {
		b := make([]byte, MaxFrame)
		for {
			if _, err := s.Write(b); err != nil {
				return
			}
		}
	})
	m.set(far.ID(), peertest.Far(t, far.Addr().String(), delay).String())
	bulk, err := a.OpenBulk(t.Context(), far.ID(), "/test/bytes")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = bulk.Reset() }()

	most := int64(0)
	look := func() int64 {
		n := a.windowBytes()
		if most = max(most, n); n > promised {
			t.Fatalf("windows have %d MiB", n>>20)
		}
		return n
	}
	opened, refused := 0, 0
	open := func(h *Host, to identity.NodeID, p string) {
		s, err := h.Open(t.Context(), to, p)
		if err != nil {
			refused++
			return
		}
		t.Cleanup(func() { _ = s.Reset() })
		opened++
		if _, err := s.Write([]byte("x")); err != nil {
			refused++
		}
		look()
	}
	for range peers {
		h := m.start(t)
		for _, p := range protocols {
			h.Handle(p, hold)
			for range maxStreamsPerPeer {
				open(h, a.ID(), p)
			}
		}
		for _, p := range protocols {
			for range maxStreamsPerPeer {
				open(a, h.ID(), p)
			}
		}
	}
	eventually(t, "all streams that there may be", func() bool {
		in, out := a.streams()
		return in+out >= maxStreamsBoth-16 // libp2p's own come and go
	})
	in, out := a.streams()
	if in > maxStreams || out > maxStreams || in+out > maxStreamsBoth {
		t.Errorf("%d streams in and %d out", in, out)
	}
	t.Logf("%d opened, %d refused at once; %d in, %d out; windows at most %d MiB", opened, refused, in, out, most>>20)

	before := look()
	b := make([]byte, 64<<10)
	for end := time.Now().Add(20 * time.Second); look() < before+8<<20; {
		if time.Now().After(end) {
			t.Fatalf("the window of a stream over a long link grew by %d KiB alone", (look()-before)>>10)
		}
		if _, err := bulk.Read(b); err != nil {
			t.Fatal(err)
		}
	}
}

// streams are those that there are, by direction.
func (h *Host) streams() (in, out int) {
	_ = h.h.Network().ResourceManager().ViewSystem(func(s network.ResourceScope) error {
		in, out = s.Stat().NumStreamsInbound, s.Stat().NumStreamsOutbound
		return nil
	})
	return in, out
}

func TestLimits_AddUp(t *testing.T) {
	if maxWindowMemory != promised || maxFirstWindows+maxGrowth > promised {
		t.Errorf("windows may have %d bytes", maxWindowMemory)
	}
	if maxStreams > maxStreamsBoth || maxProtocolStreams >= maxStreams || maxStreamsPerPeer >= maxStreamsPerPeerTotal || bulkStreams > maxAdmitted || maxAdmitted >= maxProtocolStreams {
		t.Error("a part is larger than the whole")
	}
}

// scopeOf is a peer's scope without a wall.
type scopeOf struct {
	network.NullScope
	id corepeer.ID
}

func (s *scopeOf) Peer() corepeer.ID                             { return s.id }
func (s *scopeOf) BeginSpan() (network.ResourceScopeSpan, error) { return &s.NullScope, nil }

// newSpan begins a stream of a peer's.
func newSpan(t *testing.T, w *windows, id string) *windowSpan {
	t.Helper()
	span, err := windowScope{&scopeOf{id: corepeer.ID(id)}, w}.BeginSpan()
	if err != nil {
		t.Fatal(err)
	}
	if err := span.ReserveMemory(firstWindow, network.ReservationPriorityAlways); err != nil {
		t.Fatal(err)
	}
	return span.(*windowSpan)
}

// double grows a window as yamux does, as often as it may, and gives what it has.
func (s *windowSpan) double() int64 {
	for {
		n := firstWindow + s.grown
		if n >= maxStreamWindow || s.ReserveMemory(int(n), 128) != nil {
			return n
		}
	}
}

func TestWindows_LeaveRoomForOthers(t *testing.T) {
	refused := 0
	w := newWindows(func() { refused++ })
	const mib = 1 << 20
	var spans []*windowSpan
	for i, want := range []int64{32 * mib, 8 * mib, 4 * mib, 2 * mib, mib} { // of one peer: 48 MiB
		s := newSpan(t, w, "one")
		spans = append(spans, s)
		if got := s.double(); got < want {
			t.Errorf("window %d grew to %d KiB, want %d at least", i, got>>10, want>>10)
		}
	}
	if g := w.of["one"].grown; g > maxPeerGrowth || w.grown != g {
		t.Errorf("one peer's windows grew by %d, all by %d", g, w.grown)
	}
	other := newSpan(t, w, "another")
	if got := other.double(); got < 4*mib {
		t.Errorf("another peer's window grew to %d KiB", got>>10)
	}
	if refused == 0 {
		t.Error("no refusal was counted")
	}
	for _, s := range append(spans, other) {
		s.Done()
		s.Done()
		if err := s.ReserveMemory(firstWindow, 128); !errors.Is(err, network.ErrResourceScopeClosed) {
			t.Errorf("a stream that ended has a window that grows: %v", err)
		}
	}
	if w.grown != 0 || len(w.of) != 0 {
		t.Errorf("%d bytes of %d peers are left", w.grown, len(w.of))
	}
}

// A peer that opens streams faster than they can be refused is refused before the
// wall is reached at which others are.
func TestWindows_StreamsOfOnePeer(t *testing.T) {
	w := newWindows(func() {})
	scope := windowScope{&scopeOf{id: "one"}, w}
	var spans []network.ResourceScopeSpan
	for {
		s, err := scope.BeginSpan()
		if err != nil {
			if !errors.Is(err, network.ErrResourceLimitExceeded) {
				t.Error(err)
			}
			break
		}
		spans = append(spans, s)
	}
	if n := len(spans); n*firstWindow > maxFirstWindows*3/4 || n < 2*maxStreamsPerPeerTotal {
		t.Errorf("%d streams", n)
	}
	newSpan(t, w, "another").Done()
	for _, s := range spans {
		s.Done()
	}
	if len(w.of) != 0 {
		t.Errorf("%d peers are left", len(w.of))
	}
}

// Windows are counted from many streams at once.
func TestWindows_AtOnce(t *testing.T) {
	w := newWindows(func() {})
	var wg sync.WaitGroup
	for i := range 8 {
		s := newSpan(t, w, strconv.Itoa(i%3))
		wg.Go(func() { s.double() })
		wg.Go(s.Done)
	}
	wg.Wait()
	if w.grown != 0 || len(w.of) != 0 {
		t.Errorf("%d bytes of %d peers are left", w.grown, len(w.of))
	}
}

// The more nodes, the fewer streams to each: together they are what one admits.
func TestHost_StreamsEach(t *testing.T) {
	var m mesh
	a := m.start(t)
	for peers, want := range map[int32]int{0: 28, 1: 28, 3: 28, 4: 28, 8: 14, 12: 9, 28: 4, 32: 4, 200: 4} {
		a.peers.Store(peers)
		if got := a.StreamsEach(); got != want {
			t.Errorf("%d streams to each of %d nodes, want %d", got, peers, want)
		}
	}
	a.peers.Store(0)
	b := m.start(t)
	b.Handle("/test/1", echo)
	if err := ping(t.Context(), a, b.ID()); err != nil {
		t.Fatal(err)
	}
	if n := a.peers.Load(); n != 1 {
		t.Errorf("%d nodes are connected, of one", n)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody is connected", func() bool { return a.peers.Load() == 0 })
	if n := testutil.ToFloat64(a.metrics.windows); n != 0 {
		t.Errorf("windows of %v bytes without a stream", n)
	}
}
