package transfer

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	syncer "github.com/portolan/portolan/transfer/sync"
)

func TestPushGate_HoldWaitsForThoseUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pushGate
		first, wait := p.begin(time.Now())
		if first == nil || wait != 0 {
			t.Fatalf("an open gate says wait %s", wait)
		}
		time.AfterFunc(time.Second, first)
		begun := time.Now()
		if left, _ := p.hold(t.Context(), time.Now()); left != 0 || time.Since(begun) != time.Second {
			t.Errorf("%d were under way after %s", left, time.Since(begun))
		}
		first() // twice is as good as once
		if end, wait := p.begin(time.Now()); end != nil || wait != holdPushes-time.Second {
			t.Errorf("a held gate let a push through, or says wait %s", wait)
		}
		// Asked again, the time begins anew; then it opens by itself.
		time.Sleep(holdPushes / 2)
		p.hold(t.Context(), time.Now())
		time.Sleep(holdPushes - time.Nanosecond)
		if _, wait := p.begin(time.Now()); wait != time.Nanosecond {
			t.Errorf("wait %s", wait)
		}
		time.Sleep(time.Nanosecond)
		slow, _ := p.begin(time.Now())
		if slow == nil {
			t.Fatal("it stays shut")
		}
		begun = time.Now()
		if left, _ := p.hold(t.Context(), time.Now()); left != 1 || time.Since(begun) != endPushes {
			t.Errorf("%d were under way after %s", left, time.Since(begun))
		}
		slow()
		if left, _ := p.hold(t.Context(), time.Now()); left != 0 {
			t.Errorf("%d are under way", left)
		}
	})
}

// TestPushGate_HeldAgainWhileItIsAsked: who holds the gate was told that nothing passes,
// so that an older word that it may open is worth nothing.
func TestPushGate_HeldAgainWhileItIsAsked(t *testing.T) {
	var p pushGate
	now := time.Now()
	_, first := p.hold(t.Context(), now)
	var second uint64
	if !p.reopen(now, func() bool {
		_, second = p.hold(t.Context(), now)
		return false // as it was before that
	}) {
		t.Error("the gate says that it is open")
	}
	if end, wait := p.begin(now); end != nil || wait != holdPushes {
		t.Fatalf("a push passes, or waits %s: the hold before it was answered with nothing under way", wait)
	}
	if second != first {
		t.Errorf("the gate was never open, and has epochs %d and %d", first, second)
	}
	if p.reopen(now, func() bool { return false }) {
		t.Error("it stays shut for nothing")
	}
	if _, epoch := p.hold(t.Context(), now); epoch == first {
		t.Error("it was open, and has the epoch of before")
	}
	if !p.reopen(now, func() bool { return true }) {
		t.Error("it opens although what it is held for stands")
	}
}

// member is a site of a mesh whose removal can be announced, with what of a Reconciler
// the gate needs.
type member struct {
	*Reconciler
	state *state.State
	mu    sync.Mutex
	site  int64
}

func newMember(t *testing.T) *member {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s, err := meshOfOne(id, identity.NewStoreID(), identity.NewProjectID())
	if err != nil {
		t.Fatal(err)
	}
	row, _ := s.View().Site("fra")
	return &member{Reconciler: &Reconciler{cfg: Config{State: s, Site: "fra", Now: time.Now}}, state: s, site: row.ID}
}

// apply makes an edit and gives its index.
func (m *member) apply(t *testing.T, body proto.Message) uint64 {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	env, err := command.New("user:admin", time.Now(), body)
	if err != nil {
		t.Fatal(err)
	}
	index := m.state.View().Index() + 1
	if _, err := m.state.Apply(index, env); err != nil {
		t.Fatal(err)
	}
	return index
}

// TestAwaitAnnounced: the announcement comes while the question waits, or in the middle
// of a look; one that is called off by then is none.
func TestAwaitAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMember(t)
		next := m.state.View().Index() + 1
		got := make(chan syncer.Holds, 1)
		go func() { got <- m.awaitAnnounced(t.Context(), next) }()
		synctest.Wait() // it waits
		begun := time.Now()
		m.apply(t, &command.SiteLeave{Id: m.site})
		if h := <-got; h.Refused != syncer.HoldsNone || time.Since(begun) != 0 {
			t.Errorf("announced while it waits: %+v after %s", h, time.Since(begun))
		}

		// The clock is read after the state, and before the state is looked at again.
		next = m.state.View().Index() + 1
		m.cfg.Now = sync.OnceValue(func() time.Time { m.apply(t, &command.SiteLeave{Id: m.site}); return time.Now() })
		if h := m.awaitAnnounced(t.Context(), next); h.Refused != syncer.HoldsNone || time.Since(begun) != 0 {
			t.Errorf("announced in the middle of a look: %+v after %s", h, time.Since(begun))
		}
		m.cfg.Now = time.Now

		begun = time.Now()
		if h := m.awaitAnnounced(t.Context(), m.state.View().Index()+1); h.Refused != syncer.NotHeard || time.Since(begun) != announcedWithin {
			t.Errorf("not announced yet: %+v after %s", h, time.Since(begun))
		}
		m.apply(t, &command.SiteLeave{Id: m.site, Withdraw: true, Announced: next})
		if h := m.awaitAnnounced(t.Context(), next); h.Refused != syncer.NotAnnounced {
			t.Errorf("called off: %+v", h)
		}
		if h := m.awaitAnnounced(t.Context(), 0); h.Refused != syncer.NotAnnounced {
			t.Errorf("no announcement is named: %+v", h)
		}
	})
}

// TestPushGate_AnnouncedAndCalledOff: whoever got the answer that nothing is under way
// and nothing passes can rely on it until that removal is called off, however many
// others are announced and called off beside it.
func TestPushGate_AnnouncedAndCalledOff(t *testing.T) {
	m := newMember(t)
	ctx, cancel := context.WithCancel(t.Context())
	var others sync.WaitGroup
	var pushed sync.Mutex // held by a push under way
	for range 4 {
		others.Go(func() {
			for ctx.Err() == nil {
				if end, _ := m.BeginPush(); end != nil {
					pushed.Lock()
					end()
					pushed.Unlock()
				}
			}
		})
	}
	// Which one is announced is what takes turns: in between there is none.
	for range 2000 {
		index := m.apply(t, &command.SiteLeave{Id: m.site})
		if h := m.awaitAnnounced(t.Context(), index); h.Refused != syncer.HoldsNone {
			t.Fatalf("%+v", h)
		}
		if left, _ := m.pushes.hold(t.Context(), time.Now()); left == 0 {
			for range 10 {
				if end, _ := m.BeginPush(); end != nil {
					end()
					t.Fatal("a push passes that the removal relies on not to be")
				}
			}
			m.pushes.mu.Lock()
			if m.pushes.underWay > 0 {
				t.Error("a push is under way that the removal relies on not to be")
			}
			m.pushes.mu.Unlock()
		}
		m.apply(t, &command.SiteLeave{Id: m.site, Withdraw: true, Announced: index})
	}
	cancel()
	others.Wait()
}
