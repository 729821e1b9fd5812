package catalog

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

func putBlob(t *testing.T, c *Catalog, d digest.Digest, class Class, lease *Lease) {
	t.Helper()
	if err := c.PutBlob(t.Context(), BlobRow{Digest: d, Size: 1 << 20, Class: class, Record: []byte("signed")}, nil, lease); err != nil {
		t.Fatal(err)
	}
}

func TestBlob_Life(t *testing.T) {
	clk := newClock()
	c := openMemory(t, Options{Now: clk.now})
	ctx, pid, d := t.Context(), identity.NewProjectID(), digest.FromString("layer")
	want := func(err, is error) {
		t.Helper()
		if !errors.Is(err, is) {
			t.Errorf("error %v, want %v", err, is)
		}
	}
	lease := Lease{PID: pid, Repo: "app", Until: clk.at.Add(time.Hour)}
	_, err := c.Blob(d)
	want(err, ErrNotFound)
	want(c.Lease(ctx, d, lease), ErrNotFound)
	want(c.MarkDeleting(ctx, d), ErrNotFound)

	putBlob(t, c, d, Home, &lease)
	putBlob(t, c, d, Cached, nil) // does not make it less responsible
	row, err := c.Blob(d)
	if err != nil || row.Class != Home || row.State != Present || row.Size != 1<<20 || string(row.Record) != "signed" || row.Inline {
		t.Errorf("%+v, %v", row, err)
	}
	if size, ok, err := c.Linked(pid, "app", d); err != nil || !ok || size != 1<<20 {
		t.Errorf("leased blob: %d, %v, %v", size, ok, err)
	}
	if repo, _, ok, err := c.LinkedIn(pid, d); err != nil || !ok || repo != "app" {
		t.Errorf("leased blob in %q: %v, %v", repo, ok, err)
	}
	want(c.MarkDeleting(ctx, d), ErrInUse)
	clk.at = clk.at.Add(2 * time.Hour)
	if _, ok, _ := c.Linked(pid, "app", d); ok {
		t.Error("a lease that is over shows the blob")
	}

	pin := Pin{Digest: d, For: identity.NewStoreID(), PID: pid, Until: clk.at.Add(time.Hour)}
	if err := c.Pin(ctx, pin); err != nil {
		t.Fatal(err)
	}
	if pins, err := c.Pins(d); err != nil || len(pins) != 1 || pins[0].For != pin.For {
		t.Errorf("pins %v, %v", pins, err)
	}
	clk.at = clk.at.Add(48 * time.Hour)
	want(c.MarkDeleting(ctx, d), ErrInUse) // time alone ends no promise
	again := pin
	again.Until = clk.at.Add(time.Hour)
	if err := c.Pin(ctx, again); err != nil {
		t.Fatal(err)
	}
	want(c.EndPins(ctx, []Pin{pin}), nil)
	want(c.MarkDeleting(ctx, d), ErrInUse) // it was given again meanwhile
	want(c.EndPins(ctx, []Pin{again}), nil)
	want(c.EndPins(ctx, []Pin{again}), nil)
	if pins, err := c.Pins(d); err != nil || len(pins) != 0 {
		t.Errorf("pins %v, %v", pins, err)
	}

	p := put(pid, "app", "a", "1.0")
	p.Refs = []Ref{{Digest: d, Size: 1 << 20, Kind: RefBlob}}
	mustPut(t, c, p)
	want(c.MarkDeleting(ctx, d), ErrInUse)
	if err := c.DeleteManifest(ctx, pid, "app", p.Digest, "ann", 1); err != nil {
		t.Fatal(err)
	}
	want(c.RemoveBlob(ctx, d), ErrInUse) // nobody marked it
	if err := c.MarkDeleting(ctx, d); err != nil {
		t.Fatal(err)
	}
	_, err = c.Blob(d)
	want(err, ErrNotFound)
	want(c.Lease(ctx, d, lease), ErrNotFound)
	want(c.Pin(ctx, pin), ErrNotFound)
	want(c.PutBlob(ctx, BlobRow{Digest: d, Class: Home}, nil, nil), ErrDeleting)
	var states []BlobState
	if err := c.EachBlob(func(r BlobRow) error {
		if r.Digest == d {
			states = append(states, r.State)
		}
		return nil
	}); err != nil || !slices.Equal(states, []BlobState{Deleting}) {
		t.Errorf("rows %v, %v", states, err)
	}
	if err := c.RemoveBlob(ctx, d); err != nil {
		t.Fatal(err)
	}
	want(c.RemoveBlob(ctx, d), nil) // again after a crash
	putBlob(t, c, d, Cached, nil)
}

func TestBlob_PinEndsWhenItsPutIsSeen(t *testing.T) {
	clk := newClock()
	a, b := openMemory(t, Options{Now: clk.now}), openMemory(t, Options{Now: clk.now})
	pid, d := identity.NewProjectID(), digest.FromString("layer")
	putBlob(t, b, d, Home, nil)
	dot := mustPut(t, a, put(pid, "app", "x", "1.0"))
	if err := b.Pin(t.Context(), Pin{Digest: d, For: identity.NewStoreID(), PID: pid, Dot: dot, Until: clk.at.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	if pins, err := b.Pins(d); err != nil || len(pins) != 1 {
		t.Errorf("pins %v, %v", pins, err)
	}
	mustPull(t, b, a, pid)
	if pins, err := b.Pins(d); err != nil || len(pins) != 0 {
		t.Errorf("pins %v, %v", pins, err)
	}
	if err := b.expire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.view(func(r reader) error {
		if found, err := r.any([]byte{tabPin}); found || err != nil {
			t.Errorf("the pin's row is there: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// Content is read without its blob's row, so it goes and comes with it.
func TestBlob_ContentGoesWithItsBlob(t *testing.T) {
	c := openMemory(t, Options{})
	small := []byte("small blob")
	d := digest.FromBytes(small)
	row := BlobRow{Digest: d, Size: int64(len(small)), Class: Placed}
	expect := func(inline bool) {
		t.Helper()
		b, ok, err := c.Content(d)
		if err != nil || ok != inline || inline && string(b) != string(small) {
			t.Errorf("content %q, %v, %v", b, ok, err)
		}
		if err := c.view(auditContent); err != nil {
			t.Error(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.PutBlob(t.Context(), row, small, nil))
	expect(true)
	must(c.PutBlob(t.Context(), row, nil, nil)) // its list is made anew
	expect(true)
	must(c.MarkDeleting(t.Context(), d))
	expect(false)
	must(c.PutBlob(t.Context(), row, small, nil))
	expect(true)
	must(c.MarkDeleting(t.Context(), d))
	must(c.PutBlob(t.Context(), row, nil, nil)) // as a file
	expect(false)
	must(c.PutBlob(t.Context(), row, small, nil))
	expect(true)
	must(c.LostBlob(t.Context(), d))
	expect(false)
}

func TestBlob_Inline(t *testing.T) {
	c := openMemory(t, Options{})
	small := []byte("small blob")
	d := digest.FromBytes(small)
	row := BlobRow{Digest: d, Size: int64(len(small)), Class: Placed}
	if err := c.PutBlob(t.Context(), row, small, nil); err != nil {
		t.Fatal(err)
	}
	if b, ok, err := c.Content(d); err != nil || !ok || string(b) != string(small) {
		t.Errorf("%q, %v, %v", b, ok, err)
	}
	if err := c.MarkDeleting(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := c.Content(d); err != nil || ok {
		t.Errorf("a blob that is being deleted has content: %v", err)
	}
	if err := c.PutBlob(t.Context(), row, small, nil); err != nil { // there is no file to unlink
		t.Fatal(err)
	}
	if err := c.LostBlob(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Blob(d); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v", err)
	}
}

func TestFeed_SaysTheLatestOfEachDigest(t *testing.T) {
	dir := t.TempDir()
	a, err := Open(dir, Options{Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	b := openMemory(t, Options{})
	ctx := t.Context()
	x, y, z := digest.FromString("x"), digest.FromString("y"), digest.FromString("z")
	putBlob(t, a, x, Home, nil)
	putBlob(t, a, y, Cached, nil)
	putBlob(t, a, z, Cached, nil)
	putBlob(t, a, z, Cached, nil) // nothing new
	if err := errors.Join(a.SetClass(ctx, y, Placed), a.MarkDeleting(ctx, z)); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	a = openAt(t, dir, Options{})
	w := digest.FromString("w")
	putBlob(t, a, w, Cached, nil)
	feed, err := a.Feed(0, 100)
	var got []FeedEntry
	for i, e := range feed {
		if i > 0 && e.N <= feed[i-1].N {
			t.Errorf("feed out of order: %v", feed)
		}
		got = append(got, FeedEntry{0, e.Digest, e.State})
	}
	if err != nil || !slices.Equal(got, []FeedEntry{{0, x, Home}, {0, y, Placed}, {0, z, Gone}, {0, w, Cached}}) {
		t.Errorf("feed %v, %v", feed, err)
	}

	stores := []identity.StoreID{identity.NewStoreID(), identity.NewStoreID()}
	for _, s := range stores {
		last := feed[len(feed)-1].N
		if err := b.ApplyFeed(ctx, s, feed, FeedCursor{N: last}); err != nil {
			t.Fatal(err)
		}
		if n, err := b.FeedCursor(s); err != nil || n.N != last {
			t.Errorf("cursor %d, %v", n, err)
		}
	}
	if err := b.ApplyFeed(ctx, stores[1], []FeedEntry{{90, x, Cached}, {91, y, Gone}}, FeedCursor{N: 91}); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[digest.Digest][]identity.StoreID{x: stores, y: stores[:1], z: nil} {
		if got, err := b.Holders(d); err != nil || !slices.Equal(got, want) {
			t.Errorf("holders of %s: %v, %v; want %v", d, got, err, want)
		}
	}
	if err := b.DropStore(ctx, stores[0]); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Holders(x); err != nil || !slices.Equal(got, stores[1:]) {
		t.Errorf("holders %v, %v", got, err)
	}
	if n, err := b.FeedCursor(stores[0]); err != nil || n != (FeedCursor{}) {
		t.Errorf("cursor of a dropped store: %d, %v", n, err)
	}
	// Bits of the dropped store's number mean nothing for a store that comes later.
	if err := b.ApplyFeed(ctx, stores[0], []FeedEntry{{1, w, Cached}}, FeedCursor{N: 1}); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Holders(y); err != nil || len(got) != 0 {
		t.Errorf("holders %v, %v", got, err)
	}
}

// A question about a blob prolongs its stay in a repository, and never begins it.
func TestRenewLease(t *testing.T) {
	clk := newClock()
	c := openMemory(t, Options{Now: clk.now})
	ctx, pid, d := t.Context(), identity.NewProjectID(), digest.FromString("layer")
	lease := func(repo string, in time.Duration) Lease {
		return Lease{PID: pid, Repo: repo, Until: clk.at.Add(in)}
	}
	if err := c.RenewLease(ctx, d, lease("app", time.Hour)); !errors.Is(err, ErrNotFound) {
		t.Errorf("no blob: %v", err)
	}
	first := lease("app", 2*time.Hour)
	putBlob(t, c, d, Home, &first)
	if err := c.RenewLease(ctx, d, lease("app", 10*time.Hour)); err != nil {
		t.Error(err)
	}
	clk.at = clk.at.Add(5 * time.Hour)
	if _, ok, err := c.Linked(pid, "app", d); err != nil || !ok {
		t.Errorf("the lease was not renewed: %v, %v", ok, err)
	}
	if err := c.RenewLease(ctx, d, lease("other", time.Hour)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a repository that never had it: %v", err)
	}
	if err := c.EndLease(ctx, d, pid, "app"); err != nil {
		t.Fatal(err)
	}
	if err := c.RenewLease(ctx, d, lease("app", time.Hour)); !errors.Is(err, ErrNotFound) {
		t.Errorf("after its end: %v", err)
	}
	if _, ok, _ := c.Linked(pid, "app", d); ok {
		t.Error("a lease that was ended came back")
	}
}
