package catalog

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// Stamps of a wrong clock are corrected for what nobody has seen, and for nothing
// else; both stores agree on every row afterwards.
func TestRestamp(t *testing.T) {
	right, wrong := newClock(), newClock()
	a, b := openAt(t, t.TempDir(), Options{Now: right.now}), openAt(t, t.TempDir(), Options{Now: wrong.now})
	pid := identity.NewProjectID()
	mustPut(t, b, put(pid, "app", "seen", "seen"))
	mustPull(t, a, b, pid)
	seen, err := a.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	const off = time.Hour
	wrong.at = wrong.at.Add(off)
	n := 2*restampChunk + 7 // more than one request takes
	for i := range n {
		mustPut(t, b, put(pid, "app", "early", "latest", tagName(i)))
	}
	if err := b.restart(t.Context()); err != nil { // another incarnation
		t.Fatal(err)
	}
	mustPut(t, b, put(pid, "app", "other", "deleted", "overwritten"))
	mustPut(t, b, put(pid, "app", "early", "overwritten"))
	if err := b.DeleteTag(t.Context(), pid, "app", "deleted", "ann", 1); err != nil {
		t.Fatal(err)
	}
	right.at = right.at.Add(time.Minute)
	mustPut(t, a, put(pid, "app", "later", "latest"))

	did, err := b.Restamp(t.Context(), pid, seen, -off)
	if err != nil || did != n+2 {
		t.Fatalf("%d tags stamped anew, %v; want %d", did, err, n+2)
	}
	if again, err := b.Restamp(t.Context(), pid, seen, 0); err != nil || again != did {
		t.Errorf("a second time, with the right clock: %d, %v", again, err)
	}
	for range 2 {
		mustPull(t, a, b, pid)
		mustPull(t, b, a, pid)
	}
	audited(t, pid, a, b)
	for _, c := range []*Catalog{a, b} {
		info, err := c.Tag(pid, "app", "latest")
		if err != nil || info.Digest != digest.FromBytes(body("later")) || len(info.Conflicts) != 1 {
			t.Errorf("latest: %+v, %v", info, err)
		}
		for i := range n {
			info, err := c.Tag(pid, "app", tagName(i))
			if err != nil || info.Digest != digest.FromBytes(body("early")) || info.At.After(right.at) {
				t.Fatalf("%s: %+v, %v", tagName(i), info, err)
			}
		}
		if _, err := c.Tag(pid, "app", "deleted"); err == nil {
			t.Error("a deleted tag is there again")
		}
	}
}

// What a dropped project referred to is noted, also what was only leased.
func TestDropProject_NotesWhatItReferredTo(t *testing.T) {
	c := openAt(t, t.TempDir(), Options{})
	ctx, pid, other := t.Context(), identity.NewProjectID(), identity.NewProjectID()
	leased := digest.FromString("leased")
	if err := c.PutBlob(ctx, BlobRow{Digest: leased, Size: 6, State: Present, Class: Home}, nil, &Lease{PID: pid, Repo: "app", Until: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		mustPut(t, c, put(pid, "app", fmt.Sprint(i), "t"))
	}
	mustPut(t, c, put(other, "app", "kept", "t"))
	if err := c.DropProject(ctx, pid); err != nil {
		t.Fatal(err)
	}
	want := map[digest.Digest]bool{leased: true, digest.FromString("base layer"): true}
	for i := range 5 {
		want[digest.FromBytes(body(fmt.Sprint(i)))] = true
		want[digest.FromString(fmt.Sprint("config of ", i))] = true
	}
	var got []digest.Digest
	for after := digest.Digest(""); ; {
		page, err := c.LetGos(after, 4)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		for _, l := range page {
			after = l.Digest
			got = append(got, l.Digest)
			if !want[l.Digest] {
				t.Errorf("%s was noted", l.Digest)
			}
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d digests were noted, not %d", len(got), len(want))
	}
	if named, err := c.Named(digest.FromString("base layer")); err != nil || !named {
		t.Errorf("another project names the base layer: %v, %v", named, err)
	}
	if named, err := c.Named(digest.FromString("config of 1")); err != nil || named {
		t.Errorf("nobody names a config of the dropped project: %v, %v", named, err)
	}
	if err := c.EndLetGo(ctx, got); err != nil {
		t.Fatal(err)
	}
	if page, err := c.LetGos("", 4); err != nil || len(page) != 0 {
		t.Errorf("%v %v", page, err)
	}
}
