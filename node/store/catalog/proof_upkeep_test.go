package catalog

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// proofRows counts the rows that say whose content a digest is.
func proofRows(t *testing.T, c *Catalog, d digest.Digest) (n int) {
	t.Helper()
	prefix := []byte{tabProof}
	if d != "" {
		raw, err := rawDigest(d)
		nilOr(t, err)
		prefix = prefixDigest(tabProof, raw)
	}
	nilOr(t, c.view(func(r reader) error {
		return r.scan(prefix, nil, false, func(_, _ []byte) (bool, error) { n++; return true, nil })
	}))
	return n
}

// A proof of a blob that is lost goes when nothing of its project names the blob any
// more, and not before: what comes back is content of all who wait for it.
func TestProof_OldOnesGo(t *testing.T) {
	at := newClock()
	c := openMemory(t, Options{Now: at.now})
	ctx, d := t.Context(), digest.FromString("layer")
	named, leasing, promised, idle := identity.NewProjectID(), identity.NewProjectID(), identity.NewProjectID(), identity.NewProjectID()
	all := []identity.ProjectID{named, leasing, promised, idle}
	until := at.at.Add(time.Hour)
	putBlob(t, c, d, Home, &Lease{PID: leasing, Repo: "app", Until: until})
	for _, pid := range all {
		nilOr(t, c.Prove(ctx, d, pid))
	}
	manifest := put(named, "app", "m", "v1")
	manifest.Refs = append(manifest.Refs, Ref{d, 1 << 20, RefBlob})
	mustPut(t, c, manifest)
	promise := Pin{Digest: d, For: identity.NewStoreID(), PID: promised, Until: until}
	nilOr(t, c.Pin(ctx, promise))
	upkeep := func(want int, what string) {
		t.Helper()
		c.upkeep()
		if n := proofRows(t, c, d); n != want {
			t.Errorf("%s: %d rows, want %d", what, n, want)
		}
	}
	upkeep(3, "it is here") // leasing's stands in the blob's row
	nilOr(t, c.LostBlob(ctx, d))
	upkeep(3, "lost, and idle does not name it")
	nilOr(t, c.PutBlob(ctx, BlobRow{Digest: d, Size: 1 << 20, Class: Cached, For: named}, nil, nil))
	for _, pid := range all {
		wantProven(t, c, pid, d, pid != idle)
	}
	nilOr(t, c.LostBlob(ctx, d))
	at.at = at.at.Add(2 * time.Hour)
	upkeep(2, "lost, and the lease is over")
	nilOr(t, c.EndPins(ctx, []Pin{promise}))
	upkeep(1, "lost, and the promise is over, too")
	nilOr(t, c.DeleteManifest(ctx, named, "app", manifest.Digest, "ann", 7))
	upkeep(0, "lost, and nobody names it")
}

// More than fits into one transaction go in several.
func TestProof_ManyOldOnesGo(t *testing.T) {
	c := openMemory(t, Options{})
	ctx, pid, kept := t.Context(), identity.NewProjectID(), digest.FromString("kept")
	const n = 2*maxProofs + 7
	for i := range n {
		d := digest.FromString(fmt.Sprint("layer", i))
		nilOr(t, c.PutBlob(ctx, BlobRow{Digest: d, Size: 9, Class: Cached, For: pid}, nil, nil))
		nilOr(t, c.LostBlob(ctx, d))
	}
	nilOr(t, c.PutBlob(ctx, BlobRow{Digest: kept, Size: 9, Class: Cached, For: identity.NewProjectID()}, nil, nil))
	nilOr(t, c.Prove(ctx, kept, pid))
	if got := proofRows(t, c, ""); got != n+1 {
		t.Fatalf("%d rows, want %d", got, n+1)
	}
	if dropped, err := c.dropOldProofs(ctx); err != nil || dropped != n {
		t.Errorf("%d dropped (%v), want %d", dropped, err, n)
	}
	wantProven(t, c, pid, kept, true)
	if got := proofRows(t, c, ""); got != 1 {
		t.Errorf("%d rows are left, want that of the blob that is here", got)
	}
}
