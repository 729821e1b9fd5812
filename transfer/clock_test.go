package transfer_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
)

// A site that was cut off with a clock that is ahead must not win against what
// others wrote later.
func TestSync_AWrongClockIsCorrected(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, []string{"fra", "nyc", "sgp"}, noHints)
			fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
			pid := b.project("prod")
			seen := sgp.push(pid, "app", "seen")
			eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
			b.part(sgp, fra)
			b.part(sgp, nyc)
			sgp.ahead.Store(int64(ahead))

			// Cut off, it goes on taking tags.
			early, later := sgp, fra
			if ahead < 0 {
				early, later = fra, sgp
			}
			if _, err := sgp.tagged(t.Context(), pid, "app", "cut off", "own"); err != nil {
				t.Fatalf("a site that is cut off takes no tags: %v", err)
			}
			first := early.push(pid, "app", "latest")
			// Later by more than an offset can be measured wrong on a busy machine.
			for _, n := range b.nodes {
				n.ahead.Add(int64(5 * time.Second))
			}
			second := later.push(pid, "app", "latest")
			if first.digest == second.digest {
				t.Fatal("the same image twice")
			}
			own := sgp.tag(pid, "app", "own")

			b.join(sgp, fra)
			b.join(sgp, nyc)
			eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) && fra.tag(pid, "app", "own") == own })
			for _, n := range b.nodes {
				if n.tag(pid, "app", "latest") != second.digest {
					t.Errorf("at %s the tag says what was pushed first", n.name)
				}
				if n.tag(pid, "app", "seen") != seen.digest {
					t.Errorf("at %s another tag changed", n.name)
				}
			}
			// In reach of the others it takes none, until its clock is set.
			_, err := sgp.tagged(t.Context(), pid, "app", "with a wrong clock", "refused")
			var un *command.Unavailable
			if !errors.As(err, &un) || !strings.Contains(un.Reason, "the clock of site sgp is 1h0m0s "+name) {
				t.Errorf("a tag at a site with a wrong clock: %v", err)
			}
			for _, n := range []*site{fra, nyc} {
				if _, err := n.tagged(t.Context(), pid, "app", "with the right one", "taken-"+n.name); err != nil {
					t.Errorf("a tag at %s: %v", n.name, err)
				}
			}
			sgp.ahead.Store(0)
			eventually(t, "it takes tags again", func() bool {
				_, err := sgp.tagged(t.Context(), pid, "app", "again", "again")
				return err == nil
			})
			eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
		})
	}
}
