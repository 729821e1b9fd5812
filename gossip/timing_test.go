package gossip

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// bubble is a Mesh without a network, whose rounds of looking for others are
// told by when it asks for its seeds.
type bubble struct {
	*Mesh
	mu     sync.Mutex
	rounds []time.Time
}

func newBubble(every time.Duration) *bubble {
	b := &bubble{}
	b.Mesh = &Mesh{cfg: Config{Self: identity.NodeID{1}, RejoinEvery: every, Logger: slog.New(slog.DiscardHandler), Seeds: func() []string {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.rounds = append(b.rounds, time.Now())
		return nil
	}}, log: slog.New(slog.DiscardHandler), tr: &transport{abort: func() {}}, members: make(map[identity.NodeID]*member), events: make(chan event, eventQueue)}
	return b
}

// pauses gives the times between the rounds so far, and forgets them.
func (b *bubble) pauses() []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []time.Duration
	for i := 1; i < len(b.rounds); i++ {
		out = append(out, b.rounds[i].Sub(b.rounds[i-1]))
	}
	b.rounds = nil
	return out
}

func (b *bubble) see(id identity.NodeID, alive bool) {
	b.Mesh.mu.Lock()
	defer b.Mesh.mu.Unlock()
	b.members[id] = &member{Member: Member{ID: id, Alive: alive, Since: time.Now()}, pong: time.Now()}
}

func within(d, want time.Duration) bool {
	return d >= want*4/5 && d <= want*6/5
}

// TestRejoin_Timing: while nobody is in sight the tries come after a second, two,
// four and so on up to RejoinEvery, give or take a fifth; with company they come
// every RejoinEvery, and alone again they begin near that.
func TestRejoin_Timing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 15 * time.Second
		b := newBubble(every)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); b.rejoinLoop(ctx) }()
		<-time.After(10 * time.Minute)
		alone := b.pauses()
		for i, want := range []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, every, every, every} {
			if !within(alone[i], want) {
				t.Errorf("pause %d alone: %s, want about %s", i, alone[i], want)
			}
		}
		for i, d := range alone[3:] {
			if !within(d, every) {
				t.Errorf("pause %d alone: %s", i+3, d)
			}
		}
		b.see(identity.NodeID{2}, true)
		<-time.After(10 * time.Minute)
		for i, d := range b.pauses() {
			if !within(d, every) {
				t.Errorf("pause %d in company: %s", i, d)
			}
		}
		cancel()
		<-ended
	})
}

// TestForget_AfterADay: a lost node stays in the list for a day, a live one for
// as long as it lives.
func TestForget_AfterADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(DefaultRejoinEvery)
		lost, live := identity.NodeID{2}, identity.NodeID{3}
		b.see(lost, false)
		b.see(live, true)
		<-time.After(forgetAfter)
		b.forget()
		if len(b.members) != 2 {
			t.Fatalf("%d members after a day", len(b.members))
		}
		<-time.After(time.Second)
		b.forget()
		if _, ok := b.members[live]; len(b.members) != 1 || !ok {
			t.Fatalf("members after more than a day: %v", b.members)
		}
	})
}

// TestDeaf_ToldOnce: a node that answers no packet is told of after half a minute
// and three rounds of probes, once, and again after it was heard.
func TestDeaf_ToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBubble(DefaultRejoinEvery)
		id := identity.NodeID{2}
		b.see(id, true)
		told := func(after time.Duration) int {
			<-time.After(after)
			b.tellDeaf(time.Now())
			n := len(b.events)
			for len(b.events) > 0 {
				<-b.events
			}
			return n
		}
		limit := deafAfter + 3*probeInterval // one member
		if n := told(limit - time.Millisecond); n != 0 {
			t.Fatalf("told %d times too early", n)
		}
		if n := told(time.Millisecond); n != 1 {
			t.Fatalf("told %d times", n)
		}
		if n := told(time.Hour); n != 0 {
			t.Fatalf("told again %d times", n)
		}
		b.see(id, true) // it is heard again
		if n := told(limit); n != 1 {
			t.Fatalf("told %d times after it was heard", n)
		}
	})
}
