package transfer_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/transfer"
	syncer "github.com/portolan/portolan/transfer/sync"
)

// announce says in the control state that a site is about to be removed, and gives
// the announcement's index.
func (b *bed) announce(site string) uint64 {
	b.t.Helper()
	before := b.row(site)
	b.propose(&command.SiteLeave{Id: before.ID})
	last := slices.MaxFunc(b.row(site).Removals, func(x, y state.Removal) int { return int(x.Index) - int(y.Index) })
	if _, was := before.Announced(last.Index); was {
		b.t.Fatalf("the removal of %s was not announced", site)
	}
	return last.Index
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
	hold := func(from, of *site, announced uint64) syncer.HoldResponse_Refused {
		t.Helper()
		h, err := from.sync.Hold(t.Context(), of.id.ID, pid, announced)
		must(t, err)
		return h.Refused
	}
	held := func(what string, from, of *site, announced uint64) {
		t.Helper()
		if got := hold(from, of, announced); got != syncer.HoldsNone || of.takesPushes() {
			t.Fatalf("%s: the answer is %s, and %s takes pushes: %t", what, got, of.name, of.takesPushes())
		}
	}
	refused := func(what string, from, of *site, announced uint64, want syncer.HoldResponse_Refused) {
		t.Helper()
		if got := hold(from, of, announced); got != want {
			t.Errorf("%s: the answer is %s, want %s", what, got, want)
		}
		if !of.takesPushes() {
			t.Errorf("%s: %s takes no pushes", what, of.name)
		}
	}
	for _, announced := range []uint64{0, 1, nyc.state.View().Index()} {
		refused("another one, not announced", sgp, nyc, announced, syncer.NotAnnounced)
		refused("itself, not announced", nyc, nyc, announced, syncer.NotAnnounced)
	}
	if _, err := sgp.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "nyc"}); !errors.Is(err, transfer.ErrNotAnnounced) {
		t.Errorf("what only nyc holds, without an announcement: %v", err)
	}
	id, index := b.row("nyc").ID, b.announce("nyc")
	b.propose(&command.SiteLeave{Id: id, Announced: index})
	if row := b.row("nyc"); len(row.Removals) != 1 || row.Removals[0].Index != index {
		t.Errorf("said again it is another one: %+v", row.Removals)
	}
	refused("another site's announcement", sgp, fra, index, syncer.NotAnnounced)
	refused("a wrong announcement", sgp, nyc, index-1, syncer.NotAnnounced)
	held("announced", sgp, nyc, index)
	if !fra.takesPushes() {
		t.Fatal("not nyc alone takes no pushes")
	}

	// Called off, it takes pushes at once, and the old index is worth nothing.
	b.propose(&command.SiteLeave{Id: id, Withdraw: true})
	if !nyc.takesPushes() {
		t.Fatal("nyc takes no pushes although its removal was called off")
	}
	refused("called off", sgp, nyc, index, syncer.NotAnnounced)
	second := b.announce("nyc")
	refused("the first announcement", sgp, nyc, index, syncer.NotAnnounced)
	held("announced anew", sgp, nyc, second)

	// One that is refused calls itself off, and nothing else.
	third := b.announce("nyc")
	held("a removal beside the other one", fra, nyc, third)
	b.propose(&command.SiteLeave{Id: id, Withdraw: true, Announced: third})
	if nyc.takesPushes() {
		t.Fatal("nyc takes pushes although a removal of it is under way")
	}
	if got := hold(fra, nyc, third); got != syncer.NotAnnounced {
		t.Errorf("called off by itself: the answer is %s", got)
	}
	held("the other one", sgp, nyc, second)

	// Whoever announced it gave up, and took nothing back.
	nyc.ahead.Add(int64(state.LeavingFor))
	refused("an announcement that has expired", sgp, nyc, second, syncer.ClockOff)
}

// TestLastCopies_ALiveSiteIsNotCalledSilent: whoever answers is there, and why it goes
// on taking pushes is said.
func TestLastCopies_ALiveSiteIsNotCalledSilent(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	nyc.push(pid, "app", "1")
	eventually(t, "entries", func() bool { return equal(pid, fra, nyc) })
	ask := func(announced uint64) error {
		t.Helper()
		_, err := fra.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "nyc", For: time.Minute, Announced: announced})
		if err != nil && (errors.As(err, new(*transfer.SilentError)) || strings.Contains(err.Error(), "does not answer") || strings.Contains(err.Error(), "lost")) {
			t.Errorf("of a site that is there: %v", err)
		}
		return err
	}
	if err := ask(0); !errors.Is(err, transfer.ErrNotAnnounced) {
		t.Errorf("not announced: %v", err)
	}

	nyc.behind(true)
	index := b.announce("nyc")
	var unheard *transfer.UnheardError
	if err := ask(index); !errors.As(err, &unheard) || unheard.Site != "nyc" {
		t.Errorf("not heard: %v", err)
	}
	nyc.behind(false)

	for off, want := range map[time.Duration]string{time.Hour: "1h0m0s ahead of", -time.Hour: "1h0m0s behind"} {
		nyc.ahead.Add(int64(off))
		var clock *transfer.ClockError
		if err := ask(index); !errors.As(err, &clock) || !strings.Contains(err.Error(), "the clock of site nyc is about "+want) {
			t.Errorf("a clock that is off by %s: %v", off, err)
		}
		nyc.ahead.Add(-int64(off))
	}

	// It does not know of a project that the asking site knows: of the last one, so that
	// it takes no pushes by then and is asked for its entries, and of the first.
	for _, name := range []string{"zoo", "aaa"} {
		nyc.behind(true)
		b.project(name)
		var unwilling *transfer.UnwillingError
		if err := ask(index); !errors.As(err, &unwilling) || unwilling.Site != "nyc" {
			t.Errorf("a project %s that nyc does not know: %v", name, err)
		}
		nyc.behind(false)
		must(t, ask(index))
	}
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
	ask := func() syncer.HoldResponse_Refused {
		h, err := fra.sync.Hold(t.Context(), nyc.id.ID, pid, index)
		if err != nil {
			t.Error(err)
		}
		return h.Refused
	}
	if got := ask(); got != syncer.NotHeard || !nyc.takesPushes() {
		t.Fatalf("not announced where it is asked: %s", got)
	}
	// Whether it comes before the question or after it: TestAwaitAnnounced has both.
	done := make(chan syncer.HoldResponse_Refused, 1)
	go func() { done <- ask() }()
	nyc.behind(false)
	if got := <-done; got != syncer.HoldsNone || nyc.takesPushes() {
		t.Fatalf("announced: %s", got)
	}
	if end, wait := nyc.rec.BeginPush(); end != nil || wait > 2*time.Minute {
		t.Errorf("it takes no pushes for %s", wait)
	}
}
