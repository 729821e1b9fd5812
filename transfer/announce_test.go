package transfer_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/transfer"
)

// announce says in the control state that a site is about to be removed, and gives
// the announcement's index.
func (b *bed) announce(site string) uint64 {
	b.t.Helper()
	row := b.row(site)
	b.propose(&command.SiteLeave{Id: row.ID})
	return b.row(site).LeavingIndex
}

// row is a site's record, at a site that has all of the state.
func (b *bed) row(site string) (out state.Site) {
	b.t.Helper()
	for _, n := range b.nodes {
		if row, ok := n.state.View().Site(site); ok && !n.lag {
			return row
		}
	}
	b.t.Fatalf("nobody knows site %s", site)
	return out
}

// takesPushes reports whether a push passes the gate of a site.
func (n *site) takesPushes() bool {
	end, _ := n.rec.BeginPush()
	if end != nil {
		end()
	}
	return end != nil
}

// TestHold_OnlyIfAnnounced: a member that asks the questions of a removal that
// nobody announced changes nothing, whomever it asks about.
func TestHold_OnlyIfAnnounced(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	fra.push(pid, "app", "1")
	eventually(t, "entries", func() bool { return equal(pid, fra, nyc, sgp) })
	hold := func(from, of *site, announced uint64) error {
		t.Helper()
		_, _, err := from.sync.Hold(t.Context(), of.id.ID, pid, announced)
		return err
	}
	refused := func(what string, from, of *site, announced uint64) {
		t.Helper()
		if err := hold(from, of, announced); err == nil || !strings.Contains(err.Error(), "removal") {
			t.Errorf("%s: the answer is %v", what, err)
		}
		if !of.takesPushes() {
			t.Errorf("%s: %s takes no pushes", what, of.name)
		}
	}
	for _, announced := range []uint64{0, 1, nyc.state.View().Index()} {
		refused("another one, not announced", sgp, nyc, announced)
		refused("itself, not announced", nyc, nyc, announced)
	}
	if _, err := sgp.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "nyc"}); !errors.Is(err, transfer.ErrNotAnnounced) {
		t.Errorf("what only nyc holds, without an announcement: %v", err)
	}
	index := b.announce("nyc")
	if again := b.announce("nyc"); again != index {
		t.Errorf("announced again it is another one: %d and %d", index, again)
	}
	refused("another site's announcement", sgp, fra, index)
	refused("a wrong announcement", sgp, nyc, index-1)
	must(t, hold(sgp, nyc, index))
	if nyc.takesPushes() || !fra.takesPushes() {
		t.Fatal("not nyc alone takes no pushes")
	}

	// Called off, it takes pushes at once, and the old index is worth nothing.
	b.propose(&command.SiteLeave{Id: b.row("nyc").ID, Withdraw: true})
	if !nyc.takesPushes() {
		t.Fatal("nyc takes no pushes although its removal was called off")
	}
	refused("called off", sgp, nyc, index)
	second := b.announce("nyc")
	if second == index {
		t.Fatal("a second announcement is the first one")
	}
	refused("the first announcement", sgp, nyc, index)
	must(t, hold(sgp, nyc, second))

	// Whoever announced it gave up, and took nothing back.
	nyc.ahead.Add(int64(state.LeavingFor))
	refused("an announcement that has expired", sgp, nyc, second)
}

// TestHold_AwaitsTheAnnouncement: a site whose control state is behind hears of it
// first.
func TestHold_AwaitsTheAnnouncement(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	fra.push(pid, "app", "1")
	eventually(t, "entries", func() bool { return equal(pid, fra, nyc) })
	nyc.behind(true)
	index := b.announce("nyc")
	done := make(chan error, 1)
	go func() { _, _, err := fra.sync.Hold(t.Context(), nyc.id.ID, pid, index); done <- err }()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "has not heard yet") || !nyc.takesPushes() {
		t.Fatalf("not announced where it is asked: %v", err)
	}
	go func() { _, _, err := fra.sync.Hold(t.Context(), nyc.id.ID, pid, index); done <- err }()
	nyc.behind(false)
	if err := <-done; err != nil || nyc.takesPushes() {
		t.Fatalf("announced: %v", err)
	}
	if end, wait := nyc.rec.BeginPush(); end != nil || wait > 2*time.Minute {
		t.Errorf("it takes no pushes for %s", wait)
	}
}
