package transfer_test

import (
	"testing"
	"time"

	"github.com/portolan/portolan/transfer"
)

// TestRemoved_WhatNeverLeft: a site told of pushes that it could not send any more.
func TestRemoved_WhatNeverLeft(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	lost := func(at *site) *transfer.NeverLeft {
		t.Helper()
		got, err := at.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "sgp", Lost: true, For: time.Minute})
		must(t, err)
		return got.NeverLeft
	}
	if got := lost(fra); got != nil {
		t.Errorf("of a site that wrote nothing: %+v", got)
	}
	for _, tag := range []string{"1", "2", "3"} {
		sgp.push(pid, "app", tag)
	}
	eventually(t, "all have them", func() bool { return equal(pid, fra, nyc, sgp) })
	eventually(t, "and know that", func() bool { got := lost(fra); return got != nil && *got == transfer.NeverLeft{} })

	// Hints still go; no entry does.
	for _, n := range []*site{fra, nyc} {
		b.silence(n, sgp)
	}
	sgp.push(pid, "app", "4")
	must(t, sgp.store.Catalog().DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1))
	for _, n := range []*site{fra, nyc} {
		eventually(t, n.name+" has heard of both", func() bool { got := lost(n); return got != nil && *got == transfer.NeverLeft{Requests: 2, Projects: 1} })
	}
	sgp.stop()
	b.mu.Lock()
	b.nodes = b.nodes[:2]
	b.mu.Unlock()
	if got := lost(nyc); got == nil || got.Requests != 2 {
		t.Errorf("the site is gone: %+v", got)
	}
}

// silence closes the streams between two sites and lets hints through, as when a site
// is lost at that moment.
func (b *bed) silence(x, y *site) {
	b.mu.Lock()
	if b.mute == nil {
		b.mute = map[[2]string]bool{}
	}
	b.mute[[2]string{min(x.name, y.name), max(x.name, y.name)}] = true
	b.mu.Unlock()
	x.host.CutOff(y.id.ID)
	y.host.CutOff(x.id.ID)
}
