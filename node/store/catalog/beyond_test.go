package catalog

import (
	"testing"

	"github.com/portolan/portolan/node/identity"
)

// threeThatSaw gives three stores that have seen the same of a project.
func threeThatSaw(t *testing.T) (pid identity.ProjectID, a, b, c *Catalog) {
	a, b, c = openMemory(t, Options{}), openMemory(t, Options{}), openMemory(t, Options{})
	pid = identity.NewProjectID()
	mustPut(t, a, put(pid, "app", "seen", "seen"))
	mustPull(t, b, a, pid)
	mustPull(t, c, a, pid)
	return pid, a, b, c
}

// asks has the test fail if a store has seen all that another one has.
func asks(t *testing.T, pid identity.ProjectID, to, from *Catalog) {
	t.Helper()
	here, err := to.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	there, err := from.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	if here.Dominates(there) {
		t.Fatalf("a store that has seen %v does not ask one that has seen %v", here, there)
	}
}

// TestDropVector_WhatNobodySawIsAskedFor: peers that have seen what a store sees again
// after its loss come for what it alone has, and then their own peers do.
func TestDropVector_WhatNobodySawIsAskedFor(t *testing.T) {
	pid, a, b, c := threeThatSaw(t)
	mustPut(t, b, put(pid, "app", "unseen", "unseen"))
	told := b.Written(pid)
	if err := b.DropVector(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	if now := b.Written(pid); now != told {
		t.Errorf("a dropped vector counts as a write: %+v, and before %+v", now, told)
	}
	mustPull(t, b, a, pid)
	asks(t, pid, a, b)
	mustPull(t, a, b, pid)
	asks(t, pid, c, a)
	mustPull(t, c, a, pid)
	for _, x := range []*Catalog{a, c} {
		if _, err := x.Tag(pid, "app", "unseen"); err != nil {
			t.Errorf("what one store had alone is not pulled: %v", err)
		}
	}
	same(t, pid, a, b, c)
}

// TestAnnounce: what came with an exchange that broke off, and whose sender lost it, is
// asked for by those that have seen the same; once for the same entries.
func TestAnnounce(t *testing.T) {
	pid, a, b, c := threeThatSaw(t)
	announce := func(want bool) {
		t.Helper()
		if given, err := b.Announce(t.Context(), pid); err != nil || given != want {
			t.Errorf("announced: %t, %v; want %t", given, err, want)
		}
	}
	announce(false)
	page := func(name string) {
		t.Helper()
		gone := openMemory(t, Options{})
		mustPut(t, gone, put(pid, "app", name, name))
		if _, err := gone.Delta(t.Context(), pid, nil, 1<<20, func(p Page) error {
			_, err := b.ApplyPage(t.Context(), pid, p)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	page("one")
	announce(true)
	announce(false)
	asks(t, pid, c, b)
	mustPull(t, c, b, pid)
	asks(t, pid, a, c)
	mustPull(t, a, c, pid)
	announce(false)
	page("two")
	announce(true)
	mustPull(t, a, b, pid)
	mustPull(t, c, b, pid)
	for _, x := range []*Catalog{a, c} {
		for _, tag := range []string{"one", "two"} {
			if _, err := x.Tag(pid, "app", tag); err != nil {
				t.Errorf("tag %s: %v", tag, err)
			}
		}
	}
	same(t, pid, a, b, c)

	// What somebody's vector says needs no word of this store.
	other := identity.NewProjectID()
	mustPut(t, b, put(other, "app", "own", "own"))
	if given, err := b.Announce(t.Context(), other); err != nil || given {
		t.Errorf("announced what a vector says: %t, %v", given, err)
	}
}
