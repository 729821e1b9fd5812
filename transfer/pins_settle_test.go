package transfer_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/swarm"
)

// allLater moves the clocks of all sites.
func (b *bed) allLater(by time.Duration) {
	for _, n := range b.nodes {
		n.ahead.Add(int64(by))
	}
}

// pinned reports, after nyc has looked at its promises, whether that to fra holds.
func (s *relied) pinned() bool {
	s.t.Helper()
	must(s.t, s.nyc.rec.SettleOnce(s.t.Context()))
	pins, err := s.nyc.store.Catalog().Pins(s.blob)
	must(s.t, err)
	return len(pins) > 0
}

// collected reports whether nyc's collector takes the blob.
func (s *relied) collected() bool {
	s.t.Helper()
	err := s.nyc.store.Catalog().MarkDeleting(s.t.Context(), s.blob)
	if err != nil && !errors.Is(err, catalog.ErrInUse) {
		s.t.Fatal(err)
	}
	return err == nil
}

// TestPins_OutliveALongCut: a push was answered on a promise, and the sites can't hear of
// one another for weeks: neither that it was pushed, nor whether it is still needed.
func TestPins_OutliveALongCut(t *testing.T) {
	s := newRelied(t)
	s.part(s.fra, s.nyc)
	s.part(s.fra, s.sgp)
	m := s.fra.manifestOf(s.open, "app", v1.MediaTypeImageConfig)
	m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: s.blob, Size: s.size})
	s.fra.put(s.open, "app", m, []string{"2"})
	s.allLater(30 * 24 * time.Hour)
	if !s.pinned() || s.collected() {
		t.Fatal("nyc does not keep what it promised to keep")
	}
	s.join(s.fra, s.nyc)
	s.join(s.fra, s.sgp)
	eventually(t, "nyc hears of the push", func() bool { return s.nyc.tag(s.open, "app", "2") != "" })
	if !s.pinned() {
		t.Error("the promise ended, and fra has not got the blob yet")
	}
	s.goOn()
	eventually(t, "fra has the blob for open", func() bool {
		repo, _, linked, err := s.fra.store.Catalog().LinkedIn(s.open, s.blob)
		must(t, err)
		proven, err := s.fra.store.Catalog().BlobIn(s.open, s.blob)
		return linked && repo == "app" && err == nil && proven.Class != catalog.Cached
	})
	eventually(t, "the promise ends", func() bool { return !s.pinned() })
	if s.collected() {
		t.Error("a blob that a manifest names was collected")
	}
}

// TestPins_EndWhenNothingCameOfThem: the client went before its manifest was accepted.
func TestPins_EndWhenNothingCameOfThem(t *testing.T) {
	s := newRelied(t)
	s.allLater(23 * time.Hour)
	own := s.nyc.manifestOf(s.open, "app", v1.MediaTypeImageConfig)
	own.Layers = append(own.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: s.blob, Size: s.size})
	img := s.nyc.put(s.open, "app", own, []string{"own"}) // nyc's push relies on no promise
	if !s.pinned() {
		t.Fatal("the promise ended before the push can be over")
	}
	s.allLater(2 * time.Hour)
	s.allLater(store.LeaseFor) // the upload at nyc itself is forgotten, too
	if s.pinned() {
		t.Error("a promise is kept that nothing relies on")
	}
	must(t, s.nyc.store.Catalog().DeleteManifest(t.Context(), s.open, "app", img.digest, "user:admin", 1))
	if !s.collected() {
		t.Error("a blob that nothing names is kept")
	}
}

// TestPins_EndWithTheSite: nobody can say any more that the blob is needed.
func TestPins_EndWithTheSite(t *testing.T) {
	s := newRelied(t)
	s.part(s.fra, s.nyc)
	s.allLater(30 * 24 * time.Hour)
	if !s.pinned() {
		t.Fatal("the promise ended while fra was away")
	}
	s.propose(&command.NodeRemove{NodeId: s.fra.id.ID[:], Lost: true})
	if s.pinned() {
		t.Error("a promise to a removed site is kept")
	}
}

// TestPins_AskerWithAClockOfItsOwn: by the asker's clock the promise would have ended
// before it was given.
func TestPins_AskerWithAClockOfItsOwn(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("open")
	d, err := nyc.store.PutBytes(t.Context(), []byte("a layer"), store.Link{PID: pid, Repo: "app"})
	must(t, err)
	end := fra.sticks(func(swarm.Want) bool { return true })
	defer end()
	fra.ahead.Store(-int64(48 * time.Hour))
	eventually(t, "a claim that reaches nyc", func() bool {
		c, err := fra.rec.Claim(t.Context(), pid, "app", []transfer.Descriptor{{Digest: d.Digest, Size: d.Size}})
		must(t, err)
		return slices.Contains(c.Claimed, d.Digest)
	})
	must(t, nyc.rec.SettleOnce(t.Context()))
	pins, err := nyc.store.Catalog().Pins(d.Digest)
	must(t, err)
	if len(pins) != 1 || pins[0].Until.Before(nyc.now()) {
		t.Errorf("promises at nyc: %v", pins)
	}
}
