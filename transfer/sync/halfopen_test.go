package sync

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

// streamsOfAPeer is how many streams of a protocol a host admits of a peer.
const streamsOfAPeer = 32

// table is who is a member of the data plane, and where.
type table struct {
	mu sync.Mutex
	at map[identity.NodeID]*net.TCPAddr
}

func (m *table) lookup(id identity.NodeID) (string, int, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.at[id]
	if !ok {
		return "", 0, false
	}
	return a.IP.String(), a.Port, true
}

func (m *table) host(t *testing.T) (*peer.Host, *identity.Identity) {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := peer.New(peer.Config{Identity: id, Listen: "127.0.0.1:0", Members: m.lookup})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil {
		m.at = map[identity.NodeID]*net.TCPAddr{}
	}
	m.at[id.ID] = h.Addr().(*net.TCPAddr)
	return h, id
}

// answering is a node that answers, and knows of no other one: it refuses all that
// it is asked.
func (m *table) answering(t *testing.T, idle time.Duration) *peer.Host {
	t.Helper()
	h, id := m.host(t)
	dir := t.TempDir()
	st, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(dir, "store"), Identity: id, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = h.Close(), st.Close() })
	s, err := New(Config{Self: id.ID, Site: "fra", Dir: dir, Store: st, State: state.New(), Host: plane.Of(h), keepStream: idle})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	return h
}

// questions are one of each protocol, and what answers it.
var questions = map[string]func() (question, answer proto.Message){
	catalogueProtocol: func() (_, _ proto.Message) {
		return &CatalogueRequest{Question: &CatalogueRequest_Heads{Heads: &HeadsRequest{}}}, &CatalogueResponse{}
	},
	feedProtocol: func() (_, _ proto.Message) { return &FeedRequest{}, &FeedResponse{} },
	askProtocol:  func() (_, _ proto.Message) { return &AskRequest{}, &AskResponse{} },
}

// put asks a question of a protocol.
func put(t *testing.T, h *peer.Host, to identity.NodeID, protocol string) error {
	t.Helper()
	st, err := h.Open(t.Context(), to, protocol)
	if err != nil {
		return err
	}
	defer func() { _ = st.Reset() }()
	q, a := questions[protocol]()
	if err := peer.WriteMsg(st, q, maxQuestion); err != nil {
		return err
	}
	return peer.ReadMsg(st, a, maxAnswer)
}

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

// eventually waits for what other goroutines do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// All the streams that a peer may have, each with half a question, hold up neither
// others, nor what that peer asks by other protocols; and they end when nothing
// comes for as long as a stream may be idle: then their peer is answered as ever.
func TestHalfOpenStreams(t *testing.T) {
	for protocol := range questions {
		t.Run(protocol, func(t *testing.T) {
			var m table
			kept, quick := m.answering(t, time.Hour), m.answering(t, 200*time.Millisecond)
			evil, _ := m.host(t)
			honest, _ := m.host(t)
			halfOpen(t, evil, kept.ID(), protocol)
			if put(t, evil, kept.ID(), protocol) == nil {
				t.Errorf("more than %d streams: the test says nothing", streamsOfAPeer)
			}
			for other := range questions {
				if err := put(t, honest, kept.ID(), other); err != nil {
					t.Errorf("another peer, %s: %v", other, err)
				}
				if other == protocol {
					continue
				}
				if err := put(t, evil, kept.ID(), other); err != nil {
					t.Errorf("the same peer, %s: %v", other, err)
				}
			}
			for i, st := range halfOpen(t, evil, quick.ID(), protocol) {
				if err := st.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
					t.Fatal(err)
				}
				var late interface{ Timeout() bool }
				if _, err := st.Read(make([]byte, 1)); err == nil || errors.As(err, &late) && late.Timeout() {
					t.Fatalf("half-open stream %d goes on: %v", i, err)
				}
				_ = st.Reset()
			}
			eventually(t, "an answer", func() bool { return put(t, evil, quick.ID(), protocol) == nil })
		})
	}
}
