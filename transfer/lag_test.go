package transfer_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
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
	if v, ok := ofSite(t, nyc.wire, "portolan_transfer_lag_seconds", "sgp"); !ok || v > 1800 {
		t.Errorf("of a site that was not reached since the start the lag is %v (told: %v), want the time since the start", v, ok)
	}
}

// What holders promised to keep for a push outlasts a day, if the blobs do not come
// for so long.
func TestClaim_IsRenewed(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	put := func(n *site, text string) v1.Descriptor {
		d, err := n.store.PutBytes(t.Context(), []byte(text), store.Link{PID: pid, Repo: "app"})
		must(t, err)
		return v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d.Digest, Size: d.Size}
	}
	layer := put(fra, string(make([]byte, 100_000)))
	end := nyc.fails(func(w swarm.Want) bool { return w.Digest == layer.Digest }, errors.New("the link is slow"))
	defer end()
	eventually(t, "a claim that reaches fra", func() bool {
		c, err := nyc.rec.Claim(t.Context(), pid, "app", []transfer.Descriptor{{Digest: layer.Digest, Size: layer.Size}})
		must(t, err)
		return slices.Equal(c.Claimed, []digest.Digest{layer.Digest})
	})
	until := func() time.Time {
		t.Helper()
		pins, err := fra.store.Catalog().Pins(layer.Digest)
		must(t, err)
		if len(pins) != 1 {
			t.Fatalf("pins at fra: %+v", pins)
		}
		return pins[0].Until
	}
	config := put(nyc, "{}")
	config.MediaType = v1.MediaTypeImageConfig
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: config, Layers: []v1.Descriptor{layer}}
	m.SchemaVersion = 2
	img := nyc.put(pid, "app", m, []string{"1"})
	first := until()
	for _, hours := range []time.Duration{7, 14, 30} { // the promise was for 24
		if hours == 14 {
			nyc.restart() // the task is made anew, from the catalogue
			eventually(t, "nyc and fra know one another", func() bool {
				peers := nyc.sync.Peers()
				return len(peers) == 1 && peers[0].Connected && !peers[0].SyncedAt.IsZero()
			})
		}
		for _, n := range b.nodes {
			n.ahead.Store(int64(hours * time.Hour))
		}
		nyc.rec.Pushed(pid, "app", img.digest) // an attempt now
		eventually(t, "the promise is renewed", func() bool { return until().Sub(first) > (hours-1)*time.Hour })
	}
	end()
	nyc.rec.Pushed(pid, "app", img.digest)
	eventually(t, "the blob at nyc, its new home", func() bool { return nyc.class(layer.Digest) == catalog.Home })
}
