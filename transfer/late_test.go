package transfer_test

import (
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// hasLost notes a tag.conflict of this site.
func (n *site) hasLost(c catalog.Conflict) {
	n.lostMu.Lock()
	defer n.lostMu.Unlock()
	n.lost = append(n.lost, c)
}

// losses are the tags of which a write of this site was reported as lost.
func (n *site) losses() (out []string) {
	n.lostMu.Lock()
	defer n.lostMu.Unlock()
	for _, c := range n.lost {
		out = append(out, c.Tag+" "+c.Loser.String())
	}
	slices.Sort(out)
	return out
}

// TestSwitch_WhoWasAwayLosesOnlyWhatWasNotOrdered: a site is away while a project
// is forced to strong tags. What it had written before, and others had overwritten,
// did not lose; what nobody had seen did, and is reported once. It hears of the
// switch, and of what came after it, before it hears of any entry.
func TestSwitch_WhoWasAwayLosesOnlyWhatWasNotOrdered(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	for _, tag := range []string{"overwritten", "moved", "deleted", "same"} {
		_, err := sgp.tagged(t.Context(), pid, "app", "old "+tag, tag)
		must(t, err)
	}
	eventually(t, "they are everywhere", func() bool { return equal(pid, b.nodes...) })
	sgp.behind(true)
	b.part(fra, sgp)
	b.part(nyc, sgp)
	_, err := fra.tagged(t.Context(), pid, "app", "new", "overwritten")
	must(t, err)
	late, err := sgp.tagged(t.Context(), pid, "app", "late", "late")
	must(t, err)
	lateToo, err := sgp.tagged(t.Context(), pid, "app", "late too", "moved")
	must(t, err)
	must(t, sgp.door.DeleteTag(t.Context(), pid, "app", "same", "user:admin", sgp.state.View().Index()))
	same, err := sgp.tagged(t.Context(), pid, "app", "old same", "same")
	must(t, err)

	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, true)
	eventually(t, "the switch is done without it", switched(pid, state.StrongTags, fra, nyc))
	three, err := nyc.tagged(t.Context(), pid, "app", "newer", "overwritten")
	must(t, err)
	must(t, nyc.door.DeleteTag(t.Context(), pid, "app", "deleted", "user:admin", nyc.state.View().Index()))
	sgp.behind(false)
	eventually(t, "it has written down what the state says", func() bool {
		return sgp.tag(pid, "app", "overwritten") == three && sgp.tag(pid, "app", "deleted") == ""
	})
	b.join(fra, sgp)
	b.join(nyc, sgp)
	eventually(t, "all agree", func() bool {
		for _, n := range b.nodes {
			if n.tag(pid, "app", "overwritten") != three || n.tag(pid, "app", "late") != "" || n.tag(pid, "app", "same") != same {
				return false
			}
		}
		return equal(pid, b.nodes...)
	})
	want := []string{"late " + late.String(), "moved " + lateToo.String()}
	eventually(t, "what lost is reported", func() bool { return len(sgp.losses()) >= len(want) })
	sgp.restart() // and once
	// Its door has gone over all tags again before it writes the next word down.
	next, err := sgp.tagged(t.Context(), pid, "app", "next", "next")
	must(t, err)
	eventually(t, "all agree", func() bool {
		for _, n := range b.nodes {
			if n.tag(pid, "app", "next") != next {
				return false
			}
		}
		return equal(pid, b.nodes...)
	})
	if got := sgp.losses(); !slices.Equal(got, want) {
		t.Errorf("reported as lost %q, want %q", got, want)
	}
	for _, n := range []*site{fra, nyc} {
		if got := n.losses(); len(got) > 0 {
			t.Errorf("%s lost nothing, and reports %q", n.name, got)
		}
	}
}

// TestSwitch_BackBeforeWhoWasAwayReturns: its writes lose to the words of a mode that
// is over by the time that anybody sees them.
func TestSwitch_BackBeforeWhoWasAwayReturns(t *testing.T) {
	for name, back := range map[string]func(*bed, int64){
		"switch": func(b *bed, id int64) { b.switchTo(id, command.TagMode_TAG_MODE_EVENTUAL, true) },
		"deletion": func(b *bed, id int64) {
			b.propose(&command.ProjectDelete{Id: id})
			b.propose(&command.ProjectRestore{Id: id})
		},
	} {
		t.Run(name, func(t *testing.T) { backBeforeWhoWasAwayReturns(t, back) })
	}
}

func backBeforeWhoWasAwayReturns(t *testing.T, back func(*bed, int64)) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	for _, tag := range []string{"1", "2"} {
		_, err := sgp.tagged(t.Context(), pid, "app", "old "+tag, tag)
		must(t, err)
	}
	eventually(t, "they are everywhere", func() bool { return equal(pid, b.nodes...) })
	sgp.behind(true)
	b.part(fra, sgp)
	b.part(nyc, sgp)
	late, err := sgp.tagged(t.Context(), pid, "app", "late", "2")
	must(t, err)
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, true)
	eventually(t, "strong without it", switched(pid, state.StrongTags, fra, nyc))
	for _, tag := range []string{"1", "2"} {
		_, err := nyc.tagged(t.Context(), pid, "app", "new "+tag, tag)
		must(t, err)
	}
	back(b, p.ID)
	eventually(t, "eventual without it", switched(pid, state.EventualTags, fra, nyc))
	b.join(fra, sgp)
	b.join(nyc, sgp)
	sgp.behind(false)
	eventually(t, "all agree", func() bool { return equal(pid, b.nodes...) })
	eventually(t, "what lost is reported", func() bool { return len(sgp.losses()) > 0 })
	// Once, however often it is looked at again: what is to be reported has a row.
	for _, n := range b.nodes {
		conflicts := func() (all []digest.Digest) {
			for _, tag := range []string{"1", "2"} {
				info, err := n.store.Catalog().Tag(pid, "app", tag)
				must(t, err)
				all = append(all, info.Conflicts...)
			}
			return all
		}
		before := conflicts()
		for range 2 {
			n.lookAgain(pid)
		}
		if after := conflicts(); !slices.Equal(after, before) {
			t.Errorf("%s: looked at again it has the conflicts %q, before %q", n.name, after, before)
		}
		n.restart() // which reports what has not been
	}
	next, err := sgp.tagged(t.Context(), pid, "app", "next", "next")
	must(t, err)
	eventually(t, "all agree", func() bool {
		return fra.tag(pid, "app", "next") == next && nyc.tag(pid, "app", "next") == next && equal(pid, b.nodes...)
	})
	if got, want := sgp.losses(), []string{"2 " + late.String()}; !slices.Equal(got, want) {
		t.Errorf("reported as lost %q, want %q", got, want)
	}
	for _, n := range []*site{fra, nyc} {
		if got := n.losses(); len(got) > 0 {
			t.Errorf("%s lost nothing, and reports %q", n.name, got)
		}
	}
}

// lookAgain does what a site's door does now and then: it looks for writes that lost to
// a word of strong tags that are eventual now.
func (n *site) lookAgain(pid identity.ProjectID) {
	n.t.Helper()
	p, _ := n.state.View().ProjectByPID(pid)
	sw := catalog.Ordered{Before: p.Tags.LateBefore}
	must(n.t, sw.Seen.UnmarshalBinary(p.Tags.Seen))
	must(n.t, n.store.Catalog().NoteOverruled(n.t.Context(), pid, sw))
}
