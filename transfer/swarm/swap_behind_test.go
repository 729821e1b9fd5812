package swarm

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"github.com/portolan/portolan/node/identity"
)

// gives makes a node give small blobs as a test wants it.
func (n *node) gives(small func(identity.NodeID, digest.Digest, identity.ProjectID) ([]byte, bool), soon func(digest.Digest, identity.ProjectID) ([]byte, bringing)) {
	cfg := n.config(slog.New(slog.DiscardHandler))
	cfg.Small = small
	srv := newServer(cfg, supply{n.swarm}, n.swarm.metrics)
	srv.circles, srv.landings, srv.soon, srv.lively = n.swarm.server.circles, &n.swarm.landings, soon, n.swarm.lively
	n.host.Handle(Protocol, srv.serve)
}

// A wait in vain says whether to ask again: if the blob is being brought, or others of
// the project are.
func TestSwap_AWaitInVainSaysWhetherToAskAgain(t *testing.T) {
	l, _, to, ws, _ := swapLab(t, 2, 2)
	a := to[0]
	ask := l.asks(to[1], a)
	wait := func(w Want) (coming bool) {
		t.Helper()
		ask.send(&Request{Digest: w.Digest.String(), WaitMs: 1, AnyOrder: true})
		got, _ := ask.next()
		if got.Status != Status_STATUS_NOT_YET || got.Taken {
			t.Errorf("what is not here, and comes from nobody else: %v", got)
		}
		return got.Coming
	}
	if wait(ws[0]) {
		t.Error("nothing is brought here")
	}
	f := &flight{s: a.swarm, digest: ws[1].Digest, pid: project}
	a.swarm.mu.Lock()
	a.swarm.flights[f.digest] = f
	a.swarm.mu.Unlock()
	if !wait(ws[1]) {
		t.Error("it is brought here, and it is not said")
	}
	f.setAside(true)
	ask.send(&Request{Digest: ws[1].Digest.String(), WaitMs: 60_000, AnyOrder: true})
	if got, _ := ask.next(); got.Status != Status_STATUS_NOT_YET || !got.Taken || got.Coming {
		t.Errorf("what comes from another receiver: %v", got)
	}
	// Who says so is left blobs as before: the two had different word of the circle.
	who := swapBetween{to[1].id.ID, a.id.ID}
	for _, elsewhere := range []bool{true, false} {
		n := to[1].swarm
		n.letDown(who, &refusedError{status: Status_STATUS_NOT_YET, elsewhere: elsewhere})
		if n.swaps.fit(who, time.Now()) != elsewhere {
			t.Errorf("elsewhere %v: left blobs %v", elsewhere, !elsewhere)
		}
	}
	// Others of the project come.
	a.swarm.swaps.mu.Lock()
	a.swarm.swaps.heard[circleAt{to[1].id.ID, project}] = time.Now().Add(time.Minute)
	a.swarm.swaps.mu.Unlock()
	if !wait(ws[0]) {
		t.Error("others of the project come, and it is not said")
	}
	a.swarm.mu.Lock()
	delete(a.swarm.flights, f.digest)
	a.swarm.mu.Unlock()
}

// One receiver has much else to bring first. The other, which is ahead, leaves its part
// to it all the same: if it took that from the holder, the one that is behind would
// have all from the one ahead, and never pass anything on.
func TestSwap_WhoIsAheadLeavesTheOthersTheirPart(t *testing.T) {
	l, from, to, ws, bodies := swapLab(t, 2, 400)
	ahead, behind := to[0], to[1]
	var first []Want
	for i := range 100 {
		w := from.put(content(3000 + i))
		w.Class = ws[0].Class
		first = append(first, w)
	}
	slow := rate.NewLimiter(60, 1) // longer than swapPatience, shorter than swapWaits of it
	old := map[digest.Digest]bool{}
	for _, w := range first {
		old[w.Digest] = true
	}
	from.gives(func(to identity.NodeID, d digest.Digest, pid identity.ProjectID) ([]byte, bool) {
		if old[d] && slow.Wait(t.Context()) != nil {
			return nil, false
		}
		return from.giveSmall(to, d, pid)
	}, from.swarm.soon)

	// Both are in the circle before the one begins that is ahead.
	began, once := make(chan struct{}), sync.Once{}
	done := make(chan error, 1)
	go func() {
		done <- l.all(t.Context(), []*node{behind}, slices.Concat(first, ws), func(*node, int) { once.Do(func() { close(began) }) })
	}()
	<-began
	l.check(ahead.swarm.Fetch(t.Context(), ws[0]))
	l.check(l.all(t.Context(), []*node{ahead}, ws, nil))
	l.check(<-done)
	for _, n := range to {
		for _, b := range bodies {
			n.has(b)
		}
	}
	if least := len(ws) / 3; behind.sent() < least || ahead.sent() < least {
		t.Errorf("of %d blobs the one ahead passed %d on, and the one behind %d, want %d each", len(ws), ahead.sent(), behind.sent(), least)
	}
}

// A receiver passes on bytes that are not the blobs': it is named, by those that it
// sent them to, and nobody else is; the right ones come from the holder.
func TestSwap_AReceiverPassesWrongBytesOn(t *testing.T) {
	l, from, to, ws, bodies := swapLab(t, 3, 600)
	liar := to[2]
	bent := func(b []byte) []byte {
		b = slices.Clone(b)
		b[len(b)/2] ^= 1
		return b
	}
	liar.gives(func(to identity.NodeID, d digest.Digest, pid identity.ProjectID) ([]byte, bool) {
		b, ok := liar.giveSmall(to, d, pid)
		if ok {
			b = bent(b)
		}
		return b, ok
	}, func(d digest.Digest, pid identity.ProjectID) ([]byte, bringing) {
		b, to := liar.swarm.soon(d, pid)
		if b != nil {
			b = bent(b)
		}
		return b, to
	})
	l.check(l.all(t.Context(), to, ws, nil))
	told := 0
	for _, n := range to {
		for _, b := range bodies {
			n.has(b)
		}
		for _, o := range append([]*node{from}, to[:2]...) {
			if n.blamed(o) > 0 {
				t.Error("an honest node is blamed")
			}
		}
		for _, s := range n.swarm.Suspects() {
			if s.Node != liar.id.ID {
				t.Errorf("%s is a suspect", s.Node.Short())
			}
			told++
		}
	}
	if told == 0 || to[0].blamed(liar)+to[1].blamed(liar) == 0 {
		t.Error("the liar is not named")
	}
	for _, n := range to[:2] {
		if who := (swapBetween{from.id.ID, liar.id.ID}); n.blamed(liar) > 0 && n.swarm.swaps.rests[who].times == 0 {
			t.Error("blobs are left to the liar as before")
		}
	}
}

// How long a receiver is waited for follows the way to the holder.
func TestSwap_PatienceFollowsTheRoundTrip(t *testing.T) {
	l := newLab(t)
	n := l.start()
	for delay, want := range map[time.Duration]time.Duration{
		0: swapPatience, 80 * time.Millisecond: swapPatience + 320*time.Millisecond, 500 * time.Millisecond: swapPatience + 2*time.Second, 5 * time.Second: swapPatienceMost,
	} {
		at := named(byte(delay / (10 * time.Millisecond)))
		if delay > 0 {
			n.swarm.pipes.answered(at, delay)
		}
		if got := n.swarm.patience(at); got != want {
			t.Errorf("%s: %s, want %s", delay, got, want)
		}
	}
	if err := error(&refusedError{status: Status_STATUS_NOT_YET}); coming(err) || coming(nil) || coming(errors.New("x")) || coming(context.Canceled) {
		t.Error("not everything is coming")
	}
}
