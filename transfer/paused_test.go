package transfer_test

import (
	"strings"
	"testing"

	"github.com/portolan/portolan/consensus/command"
)

func TestPause_HoldsWhatRulesBring_AlsoAfterARestart(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	b.propose(&command.SitePause{Site: "nyc", Paused: true})
	b.rule(everywhere("prod"))
	a := fra.push(pid, "app", "1.0")
	held := func() bool {
		list, _, _, _ := nyc.rec.Pending(10)
		return len(list) == 1 && list[0].Digest == a.digest && list[0].Repository == "prod/app" && list[0].State == "failed" &&
			strings.Contains(list[0].Reason, "site nyc is paused since ") && !list[0].NextAt.IsZero()
	}
	eventually(t, "the image at the site that goes on", func() bool { return sgp.holds(a) })
	eventually(t, "the image is held, with the reason", held)
	nyc.restart()
	eventually(t, "it is held after a restart", held)
	if nyc.class(a.blobs[0]) != 0 {
		t.Error("a paused site was brought something")
	}
	// What a site accepts itself needs no leave.
	c := nyc.push(pid, "web", "1.0")
	eventually(t, "what the paused site accepted is elsewhere", func() bool { return fra.holds(c) && sgp.holds(c) })
	b.propose(&command.SitePause{Site: "nyc"})
	eventually(t, "it goes on", func() bool { return nyc.holds(a) })
	eventually(t, "nothing is left", func() bool {
		list, ready, running, failed := nyc.rec.Pending(10)
		return len(list)+ready+running+failed == 0
	})
}
