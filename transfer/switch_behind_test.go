package transfer_test

import (
	"bytes"
	"testing"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/transfer/tags"
)

// TestSwitch_EntriesAheadOfTheState: a site is not waited for that hears of entries, and
// not of the state. It does not write over words that it cannot know: with them the tag
// would be gone everywhere.
func TestSwitch_EntriesAheadOfTheState(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	_, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	eventually(t, "they are everywhere", func() bool { return equal(pid, b.nodes...) })
	sgp.behind(true)
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, true)
	eventually(t, "the switch is done without it", switched(pid, state.StrongTags, fra, nyc))
	two, err := nyc.tagged(t.Context(), pid, "app", "two", "1")
	must(t, err)
	eventually(t, "sgp has the entry", func() bool { return sgp.tag(pid, "app", "1") == two })
	if _, err := sgp.tagged(t.Context(), pid, "app", "three", "1"); !later(err) {
		t.Errorf("a push over a word that is not heard of: %v", err)
	}
	if err := sgp.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1); !later(err) {
		t.Errorf("a deletion of one: %v", err)
	}
	sgp.behind(false)
	eventually(t, "all say what the state says", func() bool {
		for _, n := range b.nodes {
			if n.tag(pid, "app", "1") != two {
				return false
			}
		}
		return equal(pid, b.nodes...)
	})
}

// TestSwitch_PowerCutAfterReady: a site has said that it takes no eventual tags any more,
// and comes up with a state that knows nothing of that.
func TestSwitch_PowerCutAfterReady(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	_, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	var before bytes.Buffer
	must(t, fra.state.View().Snapshot(&before))
	nyc.behind(true) // so that the switch goes on
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, false)
	eventually(t, "fra is ready", func() bool {
		_, index, err := fra.store.Catalog().Frozen(pid)
		return err == nil && index == fra.mode(pid).Index
	})
	old := state.New()
	must(t, old.Restore(&before))
	door, err := tags.New(tags.Config{Self: fra.id.ID, Site: fra.name, State: old, Catalog: fra.store.Catalog(), Control: control{fra}, Sync: deafSync{fra}, Now: fra.now})
	must(t, err)
	two, err := fra.manifest(t.Context(), pid, "app", "two")
	must(t, err)
	two.Tags = []string{"1"}
	if err := door.Put(t.Context(), two, tags.Condition{}); !later(err) {
		t.Errorf("a push under a state of before what it agreed to: %v", err)
	}
	nyc.behind(false)
	eventually(t, "the switch is done", switched(pid, state.StrongTags, fra, nyc))
	_, err = fra.tagged(t.Context(), pid, "app", "two", "1")
	must(t, err)
}
