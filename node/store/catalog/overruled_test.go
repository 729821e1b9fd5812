package catalog

import (
	"testing"

	"github.com/portolan/portolan/node/identity"
)

// TestOnOverruled_Beside: a write over the state's word is not taken for one beside it,
// of which somebody has to hear that it lost.
func TestOnOverruled_Beside(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	over, next := identity.NewProjectID(), identity.NewProjectID()
	told := make(chan bool, 10)
	defer b.OnOverruled(func(p identity.ProjectID, beside bool) {
		if beside != (p == next) {
			t.Errorf("project %s of %s and %s: beside %t", p, over, next, beside)
		}
		told <- beside
	})()
	await := func(want bool) {
		t.Helper()
		for {
			select {
			case got := <-told:
				if got == want {
					return
				}
			case <-t.Context().Done():
				t.Fatal(t.Context().Err())
			}
		}
	}
	for _, c := range []*Catalog{a, b} {
		putStrong(t, c, over, 0, 20, strongTag("1", "one", 20))
	}
	for c, name := range map[*Catalog]string{a: "three", b: "two"} {
		p := put(over, "app", name, "1")
		p.ACLIndex = 21 // the rights are looked up once the mode is over
		mustPut(t, c, p)
	}
	await(false)
	mustPull(t, b, a, over)
	await(false)
	mustPut(t, a, put(next, "app", "one", "1", "2"))
	putStrong(t, b, next, 0, 20, strongTag("1", "one", 20))
	mustPull(t, b, a, next)
	await(true)
}

// TestNoteOverruled: the mode is over, and no later word comes.
func TestNoteOverruled(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, a, put(pid, "app", "one", "seen", "late"))
	seen, err := a.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, a, put(pid, "app", "late", "late"))
	putStrong(t, b, pid, 0, 20, strongTag("seen", "two", 20), strongTag("late", "two", 20))
	mustPull(t, a, b, pid)
	for range 2 {
		if err := a.NoteOverruled(t.Context(), pid, Ordered{Before: 19, Seen: seen}); err != nil {
			t.Fatal(err)
		}
		if got := conflicts(t, a, pid); len(got) != 1 || got[0] != "late" {
			t.Errorf("noted as lost: %q", got)
		}
	}
}

// TestNoteOverruled_DeletedWord: what a switch ordered, and a word of after it that is
// deleted by now, comes to nothing also at a store that heard of it last; what was written
// over the word stays.
func TestNoteOverruled_DeletedWord(t *testing.T) {
	writer, all, last := openMemory(t, Options{}), openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	for _, tag := range []string{"gone", "new", "old"} {
		mustPut(t, writer, put(pid, "app", "one", tag))
	}
	seen, err := writer.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, writer, put(pid, "app", "late", "late"))
	mustPull(t, all, writer, pid)
	sw := Ordered{Before: 20, Seen: seen}
	words := []StrongTag{strongTag("gone", "", 21), strongTag("new", "", 21), strongTag("late", "", 21)}
	putStrong(t, last, pid, 0, 21, append(words, strongTag("old", "", 19))...)
	putOrdered(t, all, pid, Ordered{Before: 20, Seen: seen}, 21, words[:2]...)
	after := put(pid, "app", "two", "new")
	after.ACLIndex = 22
	mustPut(t, last, after)
	mustPull(t, last, writer, pid)
	for range 2 {
		if err := last.NoteOverruled(t.Context(), pid, sw); err != nil {
			t.Fatal(err)
		}
		said(t, last, pid, "gone", "")
		said(t, last, pid, "new", "two")
		said(t, last, pid, "late", "late")
		said(t, last, pid, "old", "one") // the word is of an earlier mode
	}
	mustPull(t, all, last, pid)
	mustPull(t, writer, last, pid)
	for _, c := range []*Catalog{all, writer} {
		said(t, c, pid, "gone", "")
		said(t, c, pid, "new", "two")
	}
	audited(t, pid, writer, last)
}

// TestNoteOverruled_EntryGone: a tag that went after it was found does not keep those
// behind it from being looked at.
func TestNoteOverruled_EntryGone(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, a, put(pid, "app", "late", "2"))
	putStrong(t, b, pid, 0, 20, strongTag("2", "two", 20))
	mustPull(t, a, b, pid)
	keys := []entryKey{{kindTag, "app", "1"}, {kindTag, "app", "2"}}
	err := a.submitAs(t.Context(), jobFreeing, func(b *batch) error { return b.noteOverruled(pid, keys, Ordered{Before: 19}) })
	if err != nil {
		t.Fatal(err)
	}
	if got := conflicts(t, a, pid); len(got) != 1 || got[0] != "2" {
		t.Errorf("noted as lost: %q", got)
	}
}
