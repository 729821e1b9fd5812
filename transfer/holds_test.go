package transfer_test

import (
	"strings"
	"testing"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

func holdBack(pid identity.ProjectID, a image, site string, how command.ArtifactHold_Hold) *command.ArtifactHold {
	return &command.ArtifactHold{ProjectId: pid[:], Repository: "app", Digest: a.digest.String(), Site: site, Hold: how}
}

// paused reports whether the site's queue has the artifact and waits for people,
// with the reason.
func (n *site) paused(a image, reason string) bool {
	list, _, _, _ := n.rec.Pending(10)
	for _, p := range list {
		if p.Digest == a.digest {
			return p.State == "paused" && strings.Contains(p.Reason, reason) && p.NextAt.IsZero()
		}
	}
	return false
}

func TestHold_PausedArtifactWaits_AlsoAfterARestart(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	a, other := fra.push(pid, "app", "1.0"), fra.push(pid, "app", "2.0")
	b.propose(holdBack(pid, a, "nyc", command.ArtifactHold_HOLD_PAUSE))
	b.rule(everywhere("prod"))
	why := "it was paused for site nyc at "
	eventually(t, "the image at the site that was not named", func() bool { return sgp.holds(a) })
	eventually(t, "another artifact at the site", func() bool { return nyc.holds(other) })
	eventually(t, "it waits for people, with the reason", func() bool { return nyc.paused(a, why) })
	eventually(t, "how far it is behind", func() bool {
		b := nyc.rec.Behind()
		return len(b) == 1 && b[0].Site == "fra" && b[0].Artifacts == 1 && b[0].Bytes > 0 && b[0].Unmeasured == 0 && !b[0].Oldest.IsZero()
	})
	nyc.restart()
	eventually(t, "it waits after a restart", func() bool { return nyc.paused(a, why) })
	if st := fra.status(pid, "app", "", a.digest, "nyc"); len(st) != 1 || st[0].Complete || !strings.Contains(st[0].Reason, "portolan transfer resume nyc --image prod/app@"+a.digest.String()) {
		t.Errorf("another site hears of it: %+v", st)
	}
	if nyc.class(a.blobs[0]) != 0 {
		t.Error("a paused artifact was brought")
	}
	b.propose(holdBack(pid, a, "nyc", command.ArtifactHold_HOLD_NONE))
	eventually(t, "it goes on", func() bool { return nyc.holds(a) })
	eventually(t, "it is behind no more", func() bool { return len(nyc.rec.Behind()) == 0 })
}

func TestHold_CancelledArtifactIsNotWaitedFor_AlsoAfterARestart(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	a := fra.push(pid, "app", "1.0")
	b.propose(holdBack(pid, a, "", command.ArtifactHold_HOLD_CANCEL))
	b.rule(everywhere("prod"))
	quiet := func(n int) {
		t.Helper()
		// What came after it is here, so it had its turn.
		c := fra.push(pid, "app", string(rune('a'+n)))
		eventually(t, "what was pushed later", func() bool { return nyc.holds(c) })
		eventually(t, "nothing is waited for", func() bool {
			list, ready, running, failed := nyc.rec.Pending(10)
			return len(list)+ready+running+failed == 0
		})
		if nyc.class(a.blobs[0]) != 0 {
			t.Error("a cancelled artifact was brought")
		}
	}
	quiet(0)
	nyc.restart()
	quiet(1)
	if st := fra.status(pid, "app", "", a.digest, "nyc"); len(st) != 1 || st[0].Complete || !strings.Contains(st[0].Reason, "it was cancelled everywhere at ") {
		t.Errorf("another site hears of it: %+v", st)
	}
	b.propose(holdBack(pid, a, "", command.ArtifactHold_HOLD_NONE))
	eventually(t, "it is brought once it is resumed", func() bool { return nyc.holds(a) })
}

func TestHold_PausedRuleBringsNothing_AndOthersGoOn(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid, web := b.project("prod"), b.project("web")
	id := b.rule(everywhere("prod"))
	b.propose(&command.RulePause{RuleId: id, Site: "nyc", Paused: true})
	b.rule(&command.Rule{Name: "web", Projects: []string{"web"}, AllSites: true})
	a, other := fra.push(pid, "app", "1.0"), fra.push(web, "app", "1.0")
	eventually(t, "another rule's, and another site's", func() bool { return nyc.holds(other) && sgp.holds(a) })
	eventually(t, "it waits for people, with the reason", func() bool { return nyc.paused(a, "rule everywhere is paused for site nyc since ") })
	nyc.restart()
	eventually(t, "it waits after a restart", func() bool { return nyc.paused(a, "portolan transfer resume nyc --rule everywhere") })
	b.propose(&command.RulePause{RuleId: id, Site: "nyc"})
	eventually(t, "it goes on", func() bool { return nyc.holds(a) })
}
