package gossip

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/node/identity"
)

// removedIDs is the part of the replicated state that gossip asks.
type removedIDs struct {
	mu  sync.Mutex
	ids []identity.NodeID
}

func (r *removedIDs) add(id identity.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids = append(r.ids, id)
}

func (r *removedIDs) has(id identity.NodeID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.ids, id)
}

func (n *node) knows(id identity.NodeID) bool {
	return slices.ContainsFunc(n.Members(), func(m Member) bool { return m.ID == id })
}

// TestRemove_GoesOnRunning: a removed node that still has the key is seen by
// nobody, hears nothing and is not heard; once it knows, it leaves them alone.
func TestRemove_GoesOnRunning(t *testing.T) {
	w := newWorld(t)
	removed := &removedIDs{}
	var nodes []*node
	var told atomic.Bool
	for _, site := range []string{"ams", "fra", "sgp"} {
		cfg := w.config(site)
		cfg.Removed = removed.has
		if site == "sgp" {
			cfg.Removed = func(id identity.NodeID) bool { return told.Load() && id != cfg.Self }
		}
		nodes = append(nodes, w.start(cfg))
	}
	a, b, c := nodes[0], nodes[1], nodes[2]
	eventually(t, "all see all", func() bool { return a.others() == 2 && b.others() == 2 && c.others() == 2 })
	removed.add(c.cfg.Self)
	a.Remove(c.cfg.Self)
	b.Remove(c.cfg.Self)
	if a.knows(c.cfg.Self) || b.knows(c.cfg.Self) || a.Alive(c.cfg.Self) {
		t.Fatal("a removed node is still listed")
	}
	c.Announce(7, []byte("from the removed"))
	a.Announce(7, []byte("to members"))
	got := <-b.hints
	if got.payload != "to members" {
		t.Errorf("b heard %q", got.payload)
	}
	told.Store(true)
	c.Remove(a.cfg.Self)
	c.Remove(b.cfg.Self)
	if c.others() != 0 {
		t.Error("it still sees others")
	}
	// Some rounds of gossip and of the rejoin loop later all is the same.
	before := testutil.ToFloat64(b.received)
	eventually(t, "a hundred announcements", func() bool {
		a.Announce(7, []byte("to members"))
		select {
		case <-b.hints:
		default:
		}
		return testutil.ToFloat64(b.received) >= before+100
	})
	if c.others() != 0 {
		t.Error("it sees others again")
	}
	select {
	case h := <-c.hints:
		t.Errorf("the removed node heard %q", h.payload)
	case h := <-a.hints:
		t.Errorf("a heard %q", h.payload)
	default:
	}
	if a.knows(c.cfg.Self) || b.knows(c.cfg.Self) || a.others() != 1 || b.others() != 1 {
		t.Error("it came back by gossip")
	}
}

// TestRemove_HintsByNameAreDropped: whatever address they come from.
func TestRemove_HintsByNameAreDropped(t *testing.T) {
	w := newWorld(t)
	removed := &removedIDs{}
	cfg := w.config("ams")
	cfg.Removed = removed.has
	a := w.start(cfg)
	c := w.start(w.config("sgp"))
	eventually(t, "they see one another", func() bool { return a.others() == 1 && c.others() == 1 })
	removed.add(c.cfg.Self) // and nobody called Remove: its address is not known
	eventually(t, "its announcements are dropped", func() bool {
		c.Announce(7, []byte("x"))
		return testutil.ToFloat64(a.dropped.WithLabelValues("removed")) > 0
	})
	select {
	case h := <-a.hints:
		t.Errorf("heard %q", h.payload)
	default:
	}
}

// TestRemove_AddressIsFree: a new node, with a key of its own, at the address of
// a removed one is let in.
func TestRemove_AddressIsFree(t *testing.T) {
	w := newWorld(t)
	removed := &removedIDs{}
	cfg := w.config("ams")
	cfg.Removed = removed.has
	a := w.start(cfg)
	c := w.start(w.config("sgp"))
	eventually(t, "they see one another", func() bool { return a.others() == 1 && c.others() == 1 })
	removed.add(c.cfg.Self)
	a.Remove(c.cfg.Self)
	port := c.cfg.Port
	c.stop()
	next := w.config("sgp")
	next.Port = port
	d := w.start(next)
	eventually(t, "the new node is seen", func() bool { return a.Alive(d.cfg.Self) && d.Alive(a.cfg.Self) })
	eventually(t, "and heard", func() bool {
		d.Announce(7, []byte("new"))
		select {
		case h := <-a.hints:
			return h.from == d.cfg.Self
		case <-time.After(50 * time.Millisecond):
			return false
		}
	})
}

func TestRefusesStream(t *testing.T) {
	m := &Mesh{members: map[identity.NodeID]*member{}, blocked: map[string]identity.NodeID{"192.0.2.1:7946": {1}}}
	addr := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	if !m.refusesStream(addr("192.0.2.1:40000")) || m.refusesStream(addr("192.0.2.2:40000")) {
		t.Error("a stream is judged by its host")
	}
	m.members[identity.NodeID{2}] = &member{Member: Member{Host: "192.0.2.1:7950", Alive: true}}
	if m.refusesStream(addr("192.0.2.1:40000")) {
		t.Error("a host that a member shares is refused")
	}
}
