package catalog

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

func refs(of string, n int) []Ref {
	out := make([]Ref, n)
	for i := range out {
		out[i] = Ref{Digest: digest.FromString(fmt.Sprint(of, i)), Size: 1 << 30, Kind: RefBlob}
	}
	return out
}

// The check of a manifest's blobs is over when one of them is collected: the
// manifest must not be accepted without it.
func TestPutManifest_RefusesWhatIsBeingCollected(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	p := put(pid, "app", "one", "1.0")
	large := put(pid, "app", "large", "2.0")
	large.Bytes, large.Refs = nil, nil // its bytes are a blob
	for _, tc := range []struct {
		p    Put
		blob digest.Digest
	}{{p, p.Refs[0].Digest}, {large, large.Digest}} {
		putBlob(t, c, tc.blob, Home, nil)
		if err := c.MarkDeleting(t.Context(), tc.blob); err != nil {
			t.Fatal(err)
		}
		if _, err := c.PutManifest(t.Context(), tc.p); !errors.Is(err, ErrDeleting) {
			t.Fatalf("error %v, want ErrDeleting", err)
		}
		if _, err := c.Tag(pid, "app", tc.p.Tags[0]); !errors.Is(err, ErrNotFound) {
			t.Fatalf("something was written: %v", err)
		}
		if err := c.RemoveBlob(t.Context(), tc.blob); err != nil {
			t.Fatal(err)
		}
		putBlob(t, c, tc.blob, Home, nil)
		mustPut(t, c, tc.p)
	}
}

// Each HEAD of a blob asks for a lease: that must not sync the disk each time.
func TestLease_IsRenewedNowAndThen(t *testing.T) {
	clk := newClock()
	c := openMemory(t, Options{Now: clk.now})
	pid, d := identity.NewProjectID(), digest.FromString("layer")
	putBlob(t, c, d, Home, nil)
	written := func() bool {
		t.Helper()
		before := c.db.MaxVersion()
		if err := c.Lease(t.Context(), d, Lease{PID: pid, Repo: "app", Until: clk.at.Add(24 * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		return c.db.MaxVersion() != before
	}
	if !written() {
		t.Error("the first lease was not written")
	}
	clk.at = clk.at.Add(leaseSlack)
	if written() {
		t.Error("a lease of 23 hours was renewed")
	}
	clk.at = clk.at.Add(time.Minute)
	if !written() {
		t.Error("a lease below 23 hours was not renewed")
	}
	if err := c.MarkDeleting(t.Context(), d); !errors.Is(err, ErrInUse) {
		t.Errorf("a leased blob: %v", err)
	}
	clk.at = clk.at.Add(25 * time.Hour)
	if err := c.MarkDeleting(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if err := c.Lease(t.Context(), d, Lease{PID: pid, Repo: "app", Until: clk.at}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a lease on a blob that is being deleted: %v", err)
	}
}

// A busy registry makes more leases in an hour than one transaction removes.
func TestExpire_RemovesAllThatIsOver(t *testing.T) {
	clk := newClock()
	c := openMemory(t, Options{Now: clk.now})
	pid := identity.NewProjectID()
	const n = 2*maxExpired + 10
	for i := 0; i < n; i += 1000 {
		err := c.submit(t.Context(), func(b *batch) error {
			for j := i; j < min(i+1000, n); j++ {
				raw, err := rawDigest(digest.FromString(fmt.Sprint(j)))
				if err != nil {
					return err
				}
				if err := b.lease(raw, 1, Lease{PID: pid, Repo: "app", Until: clk.at}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	clk.at = clk.at.Add(time.Second)
	if err := c.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.view(func(r reader) error {
		left, err := r.any([]byte{tabLease})
		if left {
			t.Error("leases are left")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// However much its manifests refer to, a repository can be deleted.
func TestDeleteRepository_WithManyReferences(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	repo := strings.Repeat("a", 255)
	for i := range 100 {
		p := put(pid, repo, fmt.Sprint(i), fmt.Sprint(i))
		p.Refs = refs(fmt.Sprint("layer ", i, " "), 150)
		mustPut(t, c, p)
	}
	if err := c.DeleteRepository(t.Context(), pid, repo, "ann", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Repository(pid, repo); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := auditDerived(c, pid); err != nil {
		t.Error(err)
	}
}

// What a request takes along must not make a page that no carrier takes: the
// exchange would fail for ever.
func TestDelta_PagesStayBelowTheirBound(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	big := func(name string, refs []Ref, tags ...string) Put {
		p := put(pid, "app", name, tags...)
		p.Bytes = append([]byte(name), bytes.Repeat([]byte{' '}, MaxInlineManifest-len(name))...)
		p.Size, p.Digest, p.Refs = int64(len(p.Bytes)), digest.FromBytes(p.Bytes), refs
		return p
	}
	top := big("top", nil, "latest")
	for i := range 2 {
		index := big(fmt.Sprint("index ", i), nil)
		for j := range 300 {
			child := big(fmt.Sprint("child ", i, " ", j), refs(fmt.Sprint(i, j), 5))
			mustPut(t, a, child)
			index.Refs = append(index.Refs, Ref{Digest: child.Digest, Size: child.Size, Kind: RefManifest})
		}
		mustPut(t, a, index)
		top.Refs = append(top.Refs, Ref{Digest: index.Digest, Size: index.Size, Kind: RefManifest})
	}
	mustPut(t, a, top)
	missing := 0
	v, err := a.Delta(t.Context(), pid, nil, 512<<10, func(p Page) error {
		if len(p) > MaxPageBytes {
			t.Errorf("a page of %d bytes", len(p))
		}
		got, err := b.ApplyPage(t.Context(), pid, p)
		missing += len(got.MissingBytes)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Adopt(t.Context(), pid, nil, v); err != nil {
		t.Fatal(err)
	}
	same(t, pid, a, b)
	absent := 0
	if err := b.EachManifest(pid, func(m ManifestInfo) error {
		_, ok, err := b.Content(m.Digest)
		if !ok {
			absent++
		}
		return err
	}); err != nil || absent > missing {
		t.Errorf("the bytes of %d manifests are not here, %d were named: %v", absent, missing, err)
	}
	t.Logf("the bytes of %d of 603 manifests are left to be fetched", absent)
}

// The largest manifest that is accepted, pushed at many sites before any of them
// heard of the others, still gets to a site that has nothing of it.
func TestExchange_LargestManifestFromManySites(t *testing.T) {
	const sites = 3
	pid := identity.NewProjectID()
	p := put(pid, "app", "huge", "1.0")
	p.Bytes, p.Size = nil, 4<<20
	var cats []*Catalog
	for i := range sites {
		c := openMemory(t, Options{})
		cats = append(cats, c)
		p.Home = fmt.Sprint("site ", i)
		if i == 0 {
			// Find the largest that is accepted.
			n := 15_000
			for {
				p.Refs = refs("layer", n)
				_, err := c.PutManifest(t.Context(), p)
				if err == nil {
					break
				}
				if !errors.Is(err, ErrTooLarge) {
					t.Fatal(err)
				}
				n -= 800
			}
			t.Logf("%d references", n)
			if n < 10_000 {
				t.Errorf("a manifest of 10,000 references is not accepted, %d are", n)
			}
			continue
		}
		mustPut(t, c, p)
	}
	for _, c := range cats[1:] {
		mustPull(t, cats[0], c, pid)
	}
	joiner := openMemory(t, Options{})
	largest := 0
	v, err := cats[0].Delta(t.Context(), pid, nil, 512<<10, func(p Page) error {
		largest = max(largest, len(p))
		_, err := joiner.ApplyPage(t.Context(), pid, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := joiner.Adopt(t.Context(), pid, nil, v); err != nil {
		t.Fatal(err)
	}
	same(t, pid, cats[0], joiner)
	if largest > MaxPageBytes/4 {
		t.Errorf("%d equal lists of references took a page of %d bytes", sites, largest)
	}
	if err := auditDerived(joiner, pid); err != nil {
		t.Error(err)
	}
}

// After a sync that failed nothing may be acknowledged any more: the log has a
// hole that a later sync does not mend.
func TestCommit_AFailedSyncIsFinal(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(dir, Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	pid := identity.NewProjectID()
	before := mustPut(t, c, put(pid, "app", "one", "1.0"))
	bad := errors.New("input/output error")
	if err := c.submit(t.Context(), func(*batch) error {
		c.finish = func(txn *badger.Txn) error { txn.Discard(); return bad }
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutManifest(t.Context(), put(pid, "app", "two", "2.0")); !errors.Is(err, bad) {
		t.Fatal(err)
	}
	if err := c.DeleteTag(t.Context(), pid, "app", "1.0", "ann", 1); !errors.Is(err, bad) {
		t.Fatalf("a write after a failed one: %v", err)
	}
	if _, err := c.Tag(pid, "app", "1.0"); err != nil {
		t.Fatalf("a read after a failed write: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = openAt(t, dir, Options{})
	if after := mustPut(t, c, put(pid, "app", "three", "3.0")); after.Inc == before.Inc {
		t.Error("the incarnation goes on")
	}
}
