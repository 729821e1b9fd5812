package transfer_test

import (
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store/units"
)

func TestRule_BandwidthHoldsWhatComesForIt(t *testing.T) {
	b := newBed(t, []string{"fra", "sgp"})
	fra, sgp := b.site("fra"), b.site("sgp")
	pid := b.project("prod")
	rule := func(bits uint64) *command.Rule {
		return &command.Rule{Name: "slow", Projects: []string{"prod"}, AllSites: true, Bandwidth: bits}
	}
	id := b.rule(rule(8_000_000))
	begun := time.Now()
	img := fra.push(pid, "app", "v1") // a layer of more than two units
	eventually(t, "the image at sgp", func() bool { return sgp.holds(img) })
	if took, least := time.Since(begun), time.Duration(units.Unit)*time.Microsecond; took < least {
		t.Errorf("2 MiB came at 1 MB/s in %s, want %s at least", took, least)
	}
	// What is on its way follows the rule.
	b.propose(&command.RuleUpdate{Id: id, Rule: rule(100_000)})
	next := fra.push(pid, "app", "v2")
	eventually(t, "a blob on its way", func() bool { return len(sgp.swarm.Progress()) > 0 })
	if sgp.holds(next) {
		t.Fatal("2 MiB are here at once at 100 kbit/s")
	}
	b.propose(&command.RuleUpdate{Id: id, Rule: rule(0)})
	eventually(t, "the next image at sgp", func() bool { return sgp.holds(next) })
}
