package transfer_test

import (
	"slices"
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
	is := func(got *transfer.NeverLeft, requests uint64, projects int, heard, silent []string) bool {
		return got != nil && got.Requests == requests && got.Projects == projects && slices.Equal(got.Heard, heard) && slices.Equal(got.Silent, silent)
	}
	both := []string{"fra", "nyc"}
	if got := lost(fra); !is(got, 0, 0, nil, nil) {
		t.Errorf("of a site that wrote nothing: %+v", got)
	}
	for _, tag := range []string{"1", "2", "3"} {
		sgp.push(pid, "app", tag)
	}
	eventually(t, "all have them", func() bool { return equal(pid, fra, nyc, sgp) })
	eventually(t, "and know that", func() bool { return is(lost(fra), 0, 0, both, nil) })
	own := b.project("own", "nyc", "sgp")
	sgp.push(own, "app", "1")
	eventually(t, "nyc has it", func() bool { return equal(own, nyc, sgp) })

	// Hints still go; no entry does.
	for _, n := range []*site{fra, nyc} {
		b.silence(n, sgp)
	}
	sgp.push(pid, "app", "4")
	must(t, sgp.store.Catalog().DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1))
	for _, n := range []*site{fra, nyc} {
		eventually(t, n.name+" has heard of both", func() bool { return is(lost(n), 2, 1, both, nil) })
	}
	// Of this project only nyc hears, and whoever is asked says so.
	sgp.push(own, "app", "2")
	for _, n := range []*site{fra, nyc} {
		eventually(t, n.name+" counts it", func() bool { return is(lost(n), 3, 2, both, nil) })
	}
	sgp.stop()
	b.mu.Lock()
	b.nodes = b.nodes[:2]
	b.mu.Unlock()
	if got := lost(nyc); !is(got, 3, 2, both, nil) {
		t.Errorf("the site is gone: %+v", got)
	}
	// Who was started since has heard nothing, and asks who has.
	fra.restart()
	eventually(t, "fra is back", func() bool { return is(lost(fra), 3, 2, []string{"nyc"}, nil) })
	if got := lost(nyc); !is(got, 3, 2, []string{"nyc"}, nil) {
		t.Errorf("asked where it was heard: %+v", got)
	}
	b.part(fra, nyc)
	if got := lost(fra); !is(got, 0, 0, nil, []string{"nyc"}) {
		t.Errorf("the only one who heard does not answer: %+v", got)
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
