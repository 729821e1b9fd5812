package wire

import (
	"crypto/tls"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire/door"
)

// newBubble is a listener without a port, for what it does over time.
func newBubble(m Members) *Listener {
	l := &Listener{members: m, log: slog.New(slog.DiscardHandler), closed: make(chan struct{}), conns: make(map[*Conn]struct{}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "refusals"}, []string{"reason"})}
	l.strangers = door.New(maxStrangers, 0, l.refusals.WithLabelValues(refusedStrangers).Inc)
	return l
}

// connect is a connection of a node that has shown its key; ended is closed when
// the listener has closed it.
func (l *Listener) connect(t *testing.T, node identity.NodeID, protocol string) (c *Conn, ended <-chan struct{}) {
	t.Helper()
	near, far := net.Pipe()
	c = &Conn{Conn: tls.Server(near, &tls.Config{}), l: l, node: node, protocol: protocol} //nolint:gosec // never shaken
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = far.Read(make([]byte, 1)) // ends with the other end
		far.Close()
	}()
	if !l.track(c) {
		t.Fatal("it was not let in")
	}
	return c, gone
}

func isOver(ended <-chan struct{}) bool {
	synctest.Wait()
	select {
	case <-ended:
		return true
	default:
		return false
	}
}

// TestStranger_Timing: who is no member may stay for strangerFor, the time that a
// join may take, and is closed then and counted once. A member stays, and so does a
// stranger that became one meanwhile.
func TestStranger_Timing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &members{set: map[identity.NodeID]bool{}}
		a, b, c := identity.NodeID{1}, identity.NodeID{2}, identity.NodeID{3}
		m.put(a, true)
		l := newBubble(m)
		member, memberEnd := l.connect(t, a, ALPNGRPC)
		_, joinerEnd := l.connect(t, b, ALPNGRPC)
		<-time.After(time.Minute)
		late, lateEnd := l.connect(t, c, ALPNGRPC)
		_, strangerEnd := l.connect(t, c, ALPNGRPC)
		if n := l.strangers.Len(); n != 3 {
			t.Fatalf("%d strangers", n)
		}
		m.put(b, true)
		<-time.After(strangerFor - time.Minute)
		if isOver(joinerEnd) || l.strangers.Len() != 2 {
			t.Fatalf("a stranger that became a member was closed: %v; %d strangers", isOver(joinerEnd), l.strangers.Len())
		}
		late.Close() // it goes by itself
		<-time.After(time.Minute - time.Second)
		if !isOver(lateEnd) || isOver(strangerEnd) {
			t.Fatalf("a second before its time: %v, %v", isOver(lateEnd), isOver(strangerEnd))
		}
		<-time.After(time.Second)
		if !isOver(strangerEnd) || l.strangers.Len() != 0 {
			t.Fatalf("a stranger stays: %v, %d", isOver(strangerEnd), l.strangers.Len())
		}
		<-time.After(time.Hour)
		if isOver(memberEnd) || isOver(joinerEnd) {
			t.Error("a member was closed")
		}
		if n := testutil.ToFloat64(l.refusals.WithLabelValues(refusedExpired)); n != 1 {
			t.Errorf("%v were counted as over their time, want 1", n)
		}
		member.Close()
		for c := range l.conns {
			c.Close()
		}
		if len(l.conns) != 0 || !isOver(memberEnd) || !isOver(joinerEnd) {
			t.Errorf("%d connections are left", len(l.conns))
		}
	})
}

// TestStranger_OnRaft: on raft's protocol nobody is a stranger for a moment.
func TestStranger_OnRaft(t *testing.T) {
	m := &members{set: map[identity.NodeID]bool{}}
	l := newBubble(m)
	near, far := net.Pipe()
	defer far.Close()
	c := &Conn{Conn: tls.Server(near, &tls.Config{}), l: l, node: identity.NodeID{1}, protocol: ALPNRaft} //nolint:gosec // never shaken
	if l.track(c) {
		t.Error("a stranger is let in to raft")
	}
	c.Close()
	if len(l.conns) != 0 || l.strangers.Len() != 0 {
		t.Errorf("%d connections and %d strangers are left", len(l.conns), l.strangers.Len())
	}
}
