package catalog

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/node/identity"
)

// putMany pushes n manifests with a tag each, to some repositories.
func putMany(t *testing.T, c *Catalog, pid identity.ProjectID, n int) {
	t.Helper()
	var g errgroup.Group
	g.SetLimit(64)
	for i := range n {
		g.Go(func() error {
			_, err := c.PutManifest(t.Context(), put(pid, fmt.Sprint("app", i%5), fmt.Sprint("image ", i), fmt.Sprint("v", i)))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// What a delta reads ahead is let go of when the project changes: a page says what is
// here when it is handed over, and nothing is left out for it.
func TestDelta_ReadsAheadWhatIsHere(t *testing.T) {
	for _, c := range []struct {
		name    string
		changes bool
		looking int // deltas that look far ahead already
	}{
		{"alone", false, 0},
		{"while the project changes", true, 0},
		{"beside as many as may look far ahead", true, maxAhead},
	} {
		t.Run(c.name, func(t *testing.T) {
			const images = 2000
			a, b := openMemory(t, Options{}), openMemory(t, Options{})
			pid := identity.NewProjectID()
			putMany(t, a, pid, images)
			for range c.looking {
				a.ahead <- struct{}{}
			}
			in, err := b.Receive(pid)
			if err != nil {
				t.Fatal(err)
			}
			defer in.End()
			pages, entries := 0, 0
			end, err := a.Delta(t.Context(), pid, in.Since(), 4<<10, func(p Page) error {
				pages++
				checked, err := in.Check(p)
				if err != nil {
					return err
				}
				for _, e := range checked.page.entries {
					entries++
					if now := mustEntry(t, a, pid, e.key); !now.equal(e.e) {
						t.Errorf("page %d has of %s %q what is not here any more", pages, e.key.repo, e.key.name)
					}
				}
				if c.changes && pages%7 == 0 {
					i := (images + pages*31) % images
					mustPut(t, a, put(pid, fmt.Sprint("app", i%5), fmt.Sprint("other ", pages), fmt.Sprint("v", i)))
				}
				_, err = in.Take(t.Context(), checked)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if entries < 2*images || pages < images/10 {
				t.Errorf("%d pages with %d entries, of %d images", pages, entries, images)
			}
			if err := in.Adopt(t.Context(), end); err != nil {
				t.Fatal(err)
			}
			mustPull(t, b, a, pid) // what came after it began
			same(t, pid, a, b)
		})
	}
}

// What came to an empty store by another way while it takes a project in is not taken
// for absent.
func TestReceiving_FindsBlobsThatCameMeanwhile(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid, other := identity.NewProjectID(), identity.NewProjectID()
	first, second := put(pid, "app", "first", "1.0"), put(pid, "app", "second", "2.0")
	mustPut(t, a, first)
	mustPut(t, a, second)
	in, err := b.Receive(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer in.End()
	end, err := a.Delta(t.Context(), pid, in.Since(), 1, func(p Page) error {
		if _, err := in.Page(t.Context(), p); err != nil {
			return err
		}
		return b.PutBlob(t.Context(), BlobRow{Digest: second.Digest, Size: second.Size, Class: Home, For: other}, second.Bytes, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Adopt(t.Context(), end); err != nil {
		t.Fatal(err)
	}
	for d, want := range map[digest.Digest]Class{first.Digest: Placed, second.Digest: Home} {
		row, err := b.BlobIn(pid, d)
		if err != nil || row.Class != want {
			t.Errorf("blob %s has class %v, want %v, %v", d, row.Class, want, err)
		}
	}
	same(t, pid, a, b)
}
