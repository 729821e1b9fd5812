package transfer_test

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/transfer/swarm"
)

// ofSite is a metric's sample for a site; false: there is none.
func ofSite(t *testing.T, reg *prometheus.Registry, name, site string) (float64, bool) {
	t.Helper()
	families, err := reg.Gather()
	must(t, err)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "site" && l.GetValue() == site {
					return m.GetGauge().GetValue(), true
				}
			}
		}
	}
	return 0, false
}

// How far a site is behind each other one is always told: 0 is a number, and a site
// that was never reached is no site without a lag.
func TestLag_IsToldOfEachSite(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	b.part(nyc, sgp)
	pid := b.project("prod")
	b.rule(&command.Rule{Name: "all", Projects: []string{"prod"}, AllSites: true})
	is := func(n *site, of string, bytes func(float64) bool, seconds func(float64) bool) bool {
		got, ok := ofSite(t, n.counts, "portolan_transfer_behind_bytes", of)
		age, told := ofSite(t, n.counts, "portolan_transfer_behind_seconds", of)
		return ok && told && bytes(got) && seconds(age)
	}
	zero, some := func(v float64) bool { return v == 0 }, func(v float64) bool { return v > 0 }
	for _, of := range []string{"fra", "sgp"} {
		if !is(nyc, of, zero, zero) {
			t.Errorf("nyc says nothing, or more than nothing, of %s, of which it awaits nothing", of)
		}
	}
	if _, ok := ofSite(t, nyc.counts, "portolan_transfer_behind_bytes", "nyc"); ok {
		t.Error("nyc is behind itself")
	}
	end := nyc.sticks(func(w swarm.Want) bool { return w.Size > 1<<20 })
	defer end()
	img := fra.push(pid, "app", "1")
	eventually(t, "nyc is behind fra by a layer", func() bool {
		return is(nyc, "fra", func(v float64) bool { return v >= 2<<20 }, some) && is(nyc, "sgp", zero, zero)
	})
	end()
	eventually(t, "nyc is behind no more", func() bool { return nyc.holds(img) && is(nyc, "fra", zero, zero) })

	// The catalogue of a site that is cut off grows old; it does not vanish.
	eventually(t, "nyc knows fra's catalogue", func() bool {
		v, ok := ofSite(t, nyc.wire, "portolan_transfer_lag_seconds", "fra")
		return ok && v < 30
	})
	for _, n := range b.nodes {
		n.ahead.Store(int64(time.Hour))
	}
	if v, ok := ofSite(t, nyc.wire, "portolan_transfer_lag_seconds", "sgp"); !ok || v < 3500 {
		t.Errorf("an hour after it was cut off from sgp, nyc says its lag is %v (told: %v)", v, ok)
	}
	sgp.stop()
	nyc.restart()
	eventually(t, "of a site that was not reached since the start the lag is the time since then", func() bool {
		v, ok := ofSite(t, nyc.wire, "portolan_transfer_lag_seconds", "sgp") // from when nyc looks for it
		return ok && v < 1800
	})
}
