package catalog

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// letGos gives all digests that dropped projects let go of.
func letGos(t *testing.T, c *Catalog) map[digest.Digest]bool {
	t.Helper()
	out := map[digest.Digest]bool{}
	for after := digest.Digest(""); ; {
		page, err := c.LetGos(after, 100)
		nilOr(t, err)
		if len(page) == 0 {
			return out
		}
		for _, l := range page {
			out[l.Digest], after = true, l.Digest
		}
	}
}

// What was deleted before a project is dropped is its content no more, either, and is
// let go of; what others have too stays theirs.
func TestDropProject_EndsProofsOfWhatWasDeleted(t *testing.T) {
	c := openMemory(t, Options{})
	ctx, a, b := t.Context(), identity.NewProjectID(), identity.NewProjectID()
	digests := map[string]digest.Digest{}
	for _, name := range []string{"only a's", "first a's, then b's", "first b's, then a's", "lost", "only b's"} {
		d := digest.FromString(name)
		digests[name] = d
		of := []identity.ProjectID{a, b}
		switch name {
		case "only a's", "lost":
			of = of[:1]
		case "only b's":
			of = of[1:]
		case "first b's, then a's":
			of[0], of[1] = b, a
		}
		putBlob(t, c, d, Home, &Lease{PID: of[0], Repo: "app", Until: time.Now().Add(time.Hour)})
		nilOr(t, c.EndLease(ctx, d, of[0], "app"))
		nilOr(t, c.Prove(ctx, d, of[len(of)-1]))
	}
	manifest := put(a, "app", "m", "v1")
	for _, d := range digests {
		manifest.Refs = append(manifest.Refs, Ref{d, 1 << 20, RefBlob})
	}
	mustPut(t, c, manifest)
	nilOr(t, c.DeleteManifest(ctx, a, "app", manifest.Digest, "ann", 1))
	nilOr(t, c.LostBlob(ctx, digests["lost"]))

	for range 2 { // it is repeated after a crash
		nilOr(t, c.DropProject(ctx, a))
	}
	nilOr(t, c.PutBlob(ctx, BlobRow{Digest: digests["lost"], Size: 1 << 20, Class: Cached, For: b}, nil, nil)) // comes back
	gone := letGos(t, c)
	for name, d := range digests {
		wantProven(t, c, a, d, false)
		wantProven(t, c, b, d, name != "only a's")
		if want := name != "lost" && name != "only b's"; gone[d] != want {
			t.Errorf("%s is let go of: %t, want %t", name, gone[d], want)
		}
	}
	if !gone[manifest.Digest] {
		t.Error("the deleted manifest's bytes are kept")
	}
	wantProven(t, c, a, manifest.Digest, false)
}

// More than fits into one transaction goes in several.
func TestDropProject_EndsManyProofs(t *testing.T) {
	c := openMemory(t, Options{})
	ctx, a, b := t.Context(), identity.NewProjectID(), identity.NewProjectID()
	const n = 2*maxProofs + 7
	var all []digest.Digest
	for i := range n {
		d := digest.FromString(fmt.Sprint("layer", i))
		all = append(all, d)
		first, second := a, b
		if i%2 == 0 {
			first, second = b, a
		}
		nilOr(t, c.PutBlob(ctx, BlobRow{Digest: d, Size: 9, Class: Cached, For: first}, nil, nil))
		nilOr(t, c.Prove(ctx, d, second))
	}
	nilOr(t, c.DropProject(ctx, a))
	for _, d := range all {
		wantProven(t, c, a, d, false)
		wantProven(t, c, b, d, true)
	}
	if got := letGos(t, c); len(got) != n {
		t.Errorf("%d are let go of, want %d", len(got), n)
	}
}
