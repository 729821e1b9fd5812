package swarm

import (
	"fmt"
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/peer"
)

// streamsOfAPeer is how many streams of a protocol a host admits of a peer.
const streamsOfAPeer = 32

// halfOpen opens as many streams as it may and says half a frame on each.
func halfOpen(t *testing.T, h *peer.Host, to identity.NodeID, protocol string) []*peer.Stream {
	t.Helper()
	var out []*peer.Stream
	for range streamsOfAPeer {
		st, err := h.Open(t.Context(), to, protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = st.Reset() })
		if _, err := st.Write([]byte{0, 0, 0, 100, 8}); err != nil {
			t.Fatal(err)
		}
		out = append(out, st)
	}
	return out
}

// ended tells of each stream that the other side ends.
func ended(streams []*peer.Stream) <-chan error {
	out := make(chan error, len(streams))
	for _, st := range streams {
		go func() {
			_ = st.SetReadDeadline(time.Now().Add(20 * time.Second)) // fails on one that ended
			_, err := st.Read(make([]byte, 1))
			_ = st.Reset() // this side may open another one then
			out <- err
		}()
	}
	return out
}

// ends waits for the other side's end of streams.
func ends(t *testing.T, streams []*peer.Stream) {
	t.Helper()
	for i, st := range streams {
		if err := st.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Read(make([]byte, 1)); err == nil || timedOut(err) {
			t.Fatalf("half-open stream %d goes on: %v", i, err)
		}
		_ = st.Reset()
	}
}

// askUnit asks for a blob's first unit, as a receiver does.
func askUnit(t *testing.T, h *peer.Host, to identity.NodeID, w Want) error {
	t.Helper()
	st, err := h.Open(t.Context(), to, Protocol)
	if err != nil {
		return err
	}
	defer func() { _ = st.Reset() }()
	if err := peer.WriteMsg(st, &Request{Id: 1, Digest: w.Digest.String(), Project: w.PID[:], Units: 1}, maxMessage); err != nil {
		return err
	}
	var a Answer
	if err := peer.ReadMsg(st, &a, maxMessage); err != nil {
		return err
	}
	if !a.HasUnit {
		return fmt.Errorf("answered %v", &a)
	}
	return nil
}

// askHaves watches a blob that is here.
func askHaves(t *testing.T, h *peer.Host, to identity.NodeID, w Want) error {
	t.Helper()
	st, err := h.Open(t.Context(), to, HaveProtocol)
	if err != nil {
		return err
	}
	defer func() { _ = st.Reset() }()
	if err := peer.WriteMsg(st, &Watch{Id: 1, Digest: w.Digest.String(), Project: w.PID[:]}, maxMessage); err != nil {
		return err
	}
	var m Haves
	if err := peer.ReadMsg(st, &m, maxHaves); err != nil {
		return err
	}
	if len(m.Haves) != 1 || !m.Haves[0].Whole {
		return fmt.Errorf("told %v", &m)
	}
	return nil
}

// All the streams that a peer may have, each with half a request, hold up neither
// others, nor what that peer asks by another protocol.
func TestHalfOpen_HoldsUpNobody(t *testing.T) {
	l := newLab(t)
	a, b, other := l.start(), l.start(), l.bare()
	l.held(a)
	w := a.put(content(odd))
	evil := l.bare()
	halfOpen(t, evil, a.id.ID, Protocol)
	if err := askUnit(t, evil, a.id.ID, w); err == nil {
		t.Errorf("more than %d streams: the test says nothing", streamsOfAPeer)
	}
	if err := askHaves(t, evil, a.id.ID, w); err != nil {
		t.Errorf("the same peer, by another protocol: %v", err)
	}
	if err := askUnit(t, other, a.id.ID, w); err != nil {
		t.Errorf("another peer: %v", err)
	}
	if err := b.swarm.Fetch(t.Context(), w); err != nil {
		t.Errorf("another node: %v", err)
	}
	// Of watches a node has one stream: each further one ends the one before.
	evil = l.bare()
	watches := halfOpen(t, evil, a.id.ID, HaveProtocol)
	end := ended(watches)
	for range len(watches) - 1 { // which one is the last is not said
		if err := <-end; err == nil || timedOut(err) {
			t.Fatalf("a half-open watch goes on beside another: %v", err)
		}
	}
	if err := askHaves(t, other, a.id.ID, w); err != nil {
		t.Errorf("another peer's watch: %v", err)
	}
	if err := askHaves(t, evil, a.id.ID, w); err != nil {
		t.Errorf("the same peer's watch: %v", err)
	}
	if err := <-end; err == nil || timedOut(err) {
		t.Errorf("the last half-open watch goes on beside a whole one: %v", err)
	}
}

// They end when nothing comes for as long as a stream may be idle, and then their
// peer is served as ever.
func TestHalfOpen_Ends(t *testing.T) {
	l := newLab(t)
	l.requestIdle, l.watchFor = 200*time.Millisecond, 200*time.Millisecond
	a := l.start()
	w := a.put(content(odd))
	evil := l.bare()
	ends(t, halfOpen(t, evil, a.id.ID, Protocol))
	eventually(t, "a unit is given", func() bool { return askUnit(t, evil, a.id.ID, w) == nil })
	ends(t, halfOpen(t, evil, a.id.ID, HaveProtocol))
	eventually(t, "a watch is answered", func() bool { return askHaves(t, evil, a.id.ID, w) == nil })
	a.swarm.crowds.mu.Lock()
	defer a.swarm.crowds.mu.Unlock()
	if n := len(a.swarm.crowds.streams); n > 1 {
		t.Errorf("%d streams of watches of one node", n)
	}
}
