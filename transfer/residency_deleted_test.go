package transfer_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
)

// TestResidency_NothingThatWasDeletedStays: what a site has of images that were deleted
// before it left a project may not rest there either, unless others there have it.
func TestResidency_NothingThatWasDeletedStays(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, sgp := b.site("fra"), b.site("sgp")
	pid, other := b.project("prod"), b.project("other")
	shared := []byte("a layer of both")
	gone := sgp.pushLayers(pid, "app", "", []string{"1.0"}, shared, []byte("a layer of prod's alone"))
	kept := sgp.pushLayers(other, "app", "", []string{"1.0"}, shared)
	cat := sgp.store.Catalog()
	must(t, cat.DeleteManifest(t.Context(), pid, "app", gone.digest, "user:admin", 1))
	for _, d := range gone.blobs { // the uploads' leases are over
		must(t, cat.EndLease(t.Context(), d, pid, "app"))
	}
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, sgp) })

	b.sites(pid, false, "fra", "nyc")
	sgp.steady(t, pid, state.Out)
	both := digest.FromBytes(shared)
	for _, d := range append(gone.blobs, gone.digest) {
		if d == both {
			continue
		}
		eventually(t, "sgp has let go of "+d.String(), func() bool { return sgp.class(d) == 0 })
	}
	if ok, err := cat.Proven(pid, both); ok || err != nil {
		t.Errorf("what both had is prod's still: %t, %v", ok, err)
	}
	if !sgp.holds(kept) || sgp.class(both) == catalog.Cached {
		t.Error("sgp let go of another project's image")
	}
}
