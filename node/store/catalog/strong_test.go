package catalog

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

func strongTag(name, content string, seq uint64) StrongTag {
	t := StrongTag{Repo: "app", Name: name, Seq: seq, Stamp: 1_000<<stampShift + seq, Actor: "user:ann", ACLIndex: 3}
	if content != "" {
		t.Digest = digest.FromBytes(body(content))
	}
	return t
}

func putStrong(t *testing.T, c *Catalog, pid identity.ProjectID, lateBefore, upTo uint64, tags ...StrongTag) {
	t.Helper()
	putOrdered(t, c, pid, Ordered{Before: lateBefore}, upTo, tags...)
}

func putOrdered(t *testing.T, c *Catalog, pid identity.ProjectID, sw Ordered, upTo uint64, tags ...StrongTag) {
	t.Helper()
	if _, err := c.PutStrong(t.Context(), pid, tags, sw, 0, upTo); err != nil {
		t.Fatal(err)
	}
}

// said checks what a tag says; empty: nothing.
func said(t *testing.T, c *Catalog, pid identity.ProjectID, tag, content string) {
	t.Helper()
	info, err := c.Tag(pid, "app", tag)
	switch {
	case content == "":
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("tag %s: %+v, %v", tag, info, err)
		}
	case err != nil || info.Digest != digest.FromBytes(body(content)) || len(info.Conflicts) != 0:
		t.Errorf("tag %s: %+v, %v; want %s", tag, info, err, content)
	}
}

func audited(t *testing.T, pid identity.ProjectID, cats ...*Catalog) {
	t.Helper()
	same(t, pid, cats...)
	for _, c := range cats {
		if err := auditDerived(c, pid); err != nil {
			t.Error(err)
		}
	}
}

func TestStrong_AllStoresWriteTheSame(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	// a has eventual tags which b gets only by an old page that comes late.
	mustPut(t, a, put(pid, "app", "one", "1", "gone"))
	var old []Page
	if _, err := a.Delta(t.Context(), pid, nil, 1<<20, func(p Page) error { old = append(old, p); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Catalog{a, b} {
		putStrong(t, c, pid, 0, 20, strongTag("1", "one", 20), strongTag("gone", "", 20))
	}
	for _, p := range old {
		if _, err := b.ApplyPage(t.Context(), pid, p); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := b.Tag(pid, "app", "1"); err != nil || info.Dot != (Dot{strongInc, 20}) {
		t.Fatalf("a page of before the switch shows: %+v, %v", info, err)
	}
	// b skips what a saw in between, and writes a deletion of what it never had.
	putStrong(t, a, pid, 0, 21, strongTag("1", "two", 21))
	putStrong(t, a, pid, 0, 23, strongTag("1", "three", 22), strongTag("2", "two", 23))
	putStrong(t, a, pid, 0, 24, strongTag("2", "", 24))
	putStrong(t, b, pid, 0, 24, strongTag("1", "three", 22), strongTag("2", "", 24))
	putStrong(t, b, pid, 0, 21, strongTag("1", "two", 21)) // late, and no news
	mustPull(t, b, a, pid)
	mustPull(t, a, b, pid)
	for _, c := range []*Catalog{a, b} {
		said(t, c, pid, "1", "three")
		said(t, c, pid, "2", "")
		said(t, c, pid, "gone", "")
		if seen, err := c.StrongSeen(pid); err != nil || seen != 24 {
			t.Errorf("seen up to %d, %v", seen, err)
		}
	}
	audited(t, pid, a, b)
}

func TestStrong_PeersPassItOn(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	putStrong(t, a, pid, 0, 20, strongTag("1", "one", 20))
	mustPull(t, b, a, pid)
	said(t, b, pid, "1", "one")
	if seen, err := b.StrongSeen(pid); err != nil || seen != 20 {
		t.Errorf("seen up to %d, %v", seen, err)
	}
	if err := b.DropVector(t.Context(), pid); err != nil { // as after a loss of rows
		t.Fatal(err)
	}
	if seen, err := b.StrongSeen(pid); err != nil || seen != 0 {
		t.Errorf("seen up to %d after the vector was dropped, %v", seen, err)
	}
	putStrong(t, b, pid, 0, 20, strongTag("1", "one", 20))
	audited(t, pid, a, b)
}

func TestStrong_LateWriterIsAKeptLoser(t *testing.T) {
	a, late := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, late, put(pid, "app", "late", "1", "2")) // under rights of index 7
	putStrong(t, a, pid, 19, 20, strongTag("1", "one", 20))
	mustPull(t, a, late, pid)
	if info, err := a.Tag(pid, "app", "1"); err != nil || info.Dot.Inc != strongInc {
		t.Fatalf("a late write shows: %+v, %v", info, err)
	}
	for _, c := range []*Catalog{a, late} {
		putStrong(t, c, pid, 19, 20, strongTag("1", "one", 20), strongTag("2", "", 20))
	}
	mustPull(t, late, a, pid)
	mustPull(t, a, late, pid)
	for _, c := range []*Catalog{a, late} {
		said(t, c, pid, "1", "one")
		said(t, c, pid, "2", "")
		for _, tag := range []string{"1", "2"} {
			if e := mustEntry(t, c, pid, entryKey{kindTag, "app", tag}); len(e.losers) != 1 {
				t.Errorf("tag %s keeps %d losers", tag, len(e.losers))
			}
		}
	}
	audited(t, pid, a, late)
}

// TestStrong_StoresThatJudgeNoMoreAreTold: a store has what a site wrote beside the
// state's words, and knows that the mode is over. It ends as those do that wrote the
// words over it, also where both say the same.
func TestStrong_StoresThatJudgeNoMoreAreTold(t *testing.T) {
	for name, sw := range map[string]func(Vector) Ordered{
		"late":    func(Vector) Ordered { return Ordered{Before: 19} },
		"ordered": func(seen Vector) Ordered { return Ordered{Before: 19, Seen: seen} },
	} {
		for _, wrote := range []string{"same", "other"} {
			t.Run(name+" "+wrote, func(t *testing.T) {
				over, site := openMemory(t, Options{}), openMemory(t, Options{})
				pid := identity.NewProjectID()
				mustPut(t, site, put(pid, "app", wrote, "1"))
				seen, err := site.Vector(pid)
				if err != nil {
					t.Fatal(err)
				}
				words := []StrongTag{strongTag("1", "same", 20)}
				putOrdered(t, over, pid, sw(seen), 20, words...)
				mustPull(t, over, site, pid)
				if n := len(mustEntry(t, over, pid, entryKey{kindTag, "app", "1"}).sibs); n != 2 {
					t.Fatalf("%d siblings: the test proves nothing", n)
				}
				putOrdered(t, site, pid, sw(seen), 20, words...)
				if err := over.NoteOverruled(t.Context(), pid, sw(seen)); err != nil {
					t.Fatal(err)
				}
				mustPull(t, over, site, pid)
				mustPull(t, site, over, pid)
				for _, c := range []*Catalog{over, site} {
					said(t, c, pid, "1", "same")
				}
				audited(t, pid, over, site)
			})
		}
	}
}

func TestStrong_EventualWriteAfterItStays(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	for _, c := range []*Catalog{a, b} {
		putStrong(t, c, pid, 0, 20, strongTag("1", "one", 20), strongTag("2", "one", 20))
	}
	mustPut(t, a, put(pid, "app", "two", "1"))
	if err := a.DeleteTag(t.Context(), pid, "app", "2", "user:ann", 30); err != nil {
		t.Fatal(err)
	}
	mustPull(t, b, a, pid)
	for _, c := range []*Catalog{a, b} {
		// A site that has not heard of the switch back repeats the state's older word.
		putStrong(t, c, pid, 5, 20, strongTag("1", "one", 20), strongTag("2", "one", 20))
		said(t, c, pid, "1", "two")
		said(t, c, pid, "2", "")
	}
	audited(t, pid, a, b)
}

func TestStrong_ConflictOfBeforeIsKept(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, a, put(pid, "app", "one", "1"))
	mustPut(t, b, put(pid, "app", "two", "1"))
	mustPull(t, a, b, pid)
	mustPull(t, b, a, pid)
	won, err := a.Tag(pid, "app", "1")
	if err != nil || len(won.Conflicts) != 1 {
		t.Fatalf("%+v, %v", won, err)
	}
	for _, c := range []*Catalog{a, b} {
		putStrong(t, c, pid, 0, 20, StrongTag{Repo: "app", Name: "1", Digest: won.Digest, Seq: 20, Stamp: won.Stamp})
		e := mustEntry(t, c, pid, entryKey{kindTag, "app", "1"})
		if len(e.losers) != 1 || digestOrEmpty([]byte(e.losers[0].digest)) != won.Conflicts[0] {
			t.Errorf("losers: %+v", e.losers)
		}
	}
	audited(t, pid, a, b)
}

func TestStrong_DeleteSeenLeavesWhatCameLater(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	one, two := put(pid, "app", "one"), put(pid, "app", "two")
	mustPut(t, c, one)
	mustPut(t, c, two)
	seen, err := c.Seen(pid, "app", one.Digest)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, c, one) // after the deletion was decided, before it is carried out
	if err := c.DeleteManifestSeen(t.Context(), pid, "app", one.Digest, seen); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Manifest(pid, "app", one.Digest); err != nil {
		t.Errorf("the manifest that was put later: %v", err)
	}
	for _, m := range []Put{one, two} { // as its repository is deleted
		if err := c.DeleteManifestSeen(t.Context(), pid, "app", m.Digest, seen); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Manifest(pid, "app", two.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("a manifest that was seen: %v", err)
	}
	if _, err := c.Manifest(pid, "app", one.Digest); err != nil {
		t.Errorf("the manifest that was put later, by its repository: %v", err)
	}
	audited(t, pid, c)
}

func TestEachTag(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, c, put(pid, "app", "one", "1", "2"))
	mustPut(t, c, put(pid, "web", "two", "1"))
	got := map[string]digest.Digest{}
	if err := c.EachTag(pid, nil, func(s TagState) error { got[s.Repo+":"+s.Name] = s.Digest; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got["app:2"] != digest.FromBytes(body("one")) || got["web:1"] != digest.FromBytes(body("two")) {
		t.Errorf("%v", got)
	}
}

// TestStrong_OldEntriesThatComeAfterIt: a store that writes down the state's word
// before it has all that was there before the mode is told when that comes, and
// ends as the others do.
func TestStrong_OldEntriesThatComeAfterIt(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid, other := identity.NewProjectID(), identity.NewProjectID()
	told := make(chan identity.ProjectID, 10)
	defer b.OnOverruled(func(p identity.ProjectID, _ bool) { told <- p })()
	mustPut(t, a, put(other, "app", "one", "1")) // never strong
	mustPull(t, b, a, other)
	mustPut(t, a, put(pid, "app", "one", "1"))
	var old []Page
	if _, err := a.Delta(t.Context(), pid, nil, 1<<20, func(p Page) error { old = append(old, p); return nil }); err != nil {
		t.Fatal(err)
	}
	putStrong(t, a, pid, 0, 20, strongTag("1", "one", 20))
	putStrong(t, b, pid, 0, 20, strongTag("1", "one", 20))
	for _, p := range old {
		if _, err := b.ApplyPage(t.Context(), pid, p); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case p := <-told:
		if p != pid {
			t.Fatalf("told of project %s, want %s", p, pid)
		}
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	if n := len(mustEntry(t, b, pid, entryKey{kindTag, "app", "1"}).sibs); n != 2 {
		t.Fatalf("%d siblings: the test proves nothing", n)
	}
	putStrong(t, b, pid, 100, 20, strongTag("1", "one", 20)) // lateBefore: of the switch's end
	mustPull(t, b, a, pid)
	mustPull(t, a, b, pid)
	for _, c := range []*Catalog{a, b} {
		said(t, c, pid, "1", "one")
		if n := len(mustEntry(t, c, pid, entryKey{kindTag, "app", "1"}).sibs); n != 1 {
			t.Errorf("%d siblings", n)
		}
	}
	audited(t, pid, a, b)
}

// conflicts gives the tags of which a write of this store is noted as lost.
func conflicts(t *testing.T, c *Catalog, pid identity.ProjectID) (tags []string) {
	t.Helper()
	err := c.view(func(r reader) error {
		return r.scan(prefixPID(tabConflict, pid), nil, false, func(key, _ []byte) (bool, error) {
			_, _, _, tag, ok := parseConflict(key)
			if !ok {
				return false, damaged(key)
			}
			tags = append(tags, tag)
			return true, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return tags
}

// TestStrong_WhatTheSwitchOrderedDidNotLose: whatever of the switch's words, the
// importer's entries and its own the writer's store hears first.
func TestStrong_WhatTheSwitchOrderedDidNotLose(t *testing.T) {
	for name, first := range map[string]func(t *testing.T, a, importer *Catalog, pid identity.ProjectID){
		"words first":   func(*testing.T, *Catalog, *Catalog, identity.ProjectID) {},
		"entries first": func(t *testing.T, a, importer *Catalog, pid identity.ProjectID) { mustPull(t, a, importer, pid) },
		"words of who has not got the entry": func(t *testing.T, a, _ *Catalog, pid identity.ProjectID) {
			c := openMemory(t, Options{})
			putStrong(t, c, pid, 0, 20, strongTag("seen", "two", 20), strongTag("late", "two", 20))
			mustPull(t, a, c, pid)
			if n := len(mustEntry(t, a, pid, entryKey{kindTag, "app", "seen"}).sibs); n != 2 {
				t.Fatalf("%d siblings: the test proves nothing", n)
			}
			if got := conflicts(t, a, pid); len(got) > 0 {
				t.Errorf("noted before it is known what was ordered: %q", got)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, importer := openMemory(t, Options{}), openMemory(t, Options{})
			pid := identity.NewProjectID()
			mustPut(t, a, put(pid, "app", "one", "seen", "late"))
			mustPull(t, importer, a, pid)
			seen, err := importer.Vector(pid)
			if err != nil {
				t.Fatal(err)
			}
			mustPut(t, a, put(pid, "app", "late", "late")) // nobody saw it
			sw := Ordered{Before: 19, Seen: seen}
			words := []StrongTag{strongTag("seen", "two", 20), strongTag("late", "two", 20)}
			putOrdered(t, importer, pid, sw, 20, words...)
			first(t, a, importer, pid)
			putOrdered(t, a, pid, sw, 20, words...)
			mustPull(t, importer, a, pid)
			putOrdered(t, importer, pid, sw, 20, words...)
			mustPull(t, a, importer, pid)
			for _, c := range []*Catalog{a, importer} {
				said(t, c, pid, "seen", "two")
				said(t, c, pid, "late", "two")
				if n := len(mustEntry(t, c, pid, entryKey{kindTag, "app", "seen"}).losers); n != 0 {
					t.Errorf("%d losers of a tag that was overwritten", n)
				}
				if n := len(mustEntry(t, c, pid, entryKey{kindTag, "app", "late"}).losers); n != 1 {
					t.Errorf("%d losers of a tag that somebody wrote late", n)
				}
			}
			if got := conflicts(t, a, pid); len(got) != 1 || got[0] != "late" {
				t.Errorf("noted as lost: %q", got)
			}
			audited(t, pid, a, importer)
		})
	}
}

// TestStrong_ImportIsOfOneMoment: what comes while tags are imported is late as all
// that comes later, and does not take the place of what was ordered.
func TestStrong_ImportIsOfOneMoment(t *testing.T) {
	a, late := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, a, put(pid, "app", "one", "1", "2"))
	mustPull(t, late, a, pid)
	mustPut(t, a, put(pid, "app", "ours", "1"))
	seen, err := a.Vector(pid)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, late, put(pid, "app", "theirs", "1", "2"))
	mustPull(t, a, late, pid)
	mustPut(t, late, put(pid, "app", "first", "3"))
	mustPut(t, late, put(pid, "app", "new", "3", "1")) // one dot: of one tag it is taken, of the other it is late
	mustPull(t, a, late, pid)
	got, sw := map[string]digest.Digest{}, Ordered{Before: 19, Seen: seen}
	from := map[string]Vector{}
	var words, next []StrongTag
	err = a.EachTag(pid, seen, func(s TagState) error {
		got[s.Name], from[s.Name] = s.Digest, s.From
		words = append(words, StrongTag{Repo: s.Repo, Name: s.Name, Digest: s.Digest, Seq: 20, Stamp: s.Stamp, ACLIndex: s.ACLIndex})
		next = append(next, strongTag(s.Name, "newer", 21))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sw.Taken = func(_, tag string) Vector { return from[tag] }
	// What it overwrote is nowhere any more.
	if got["1"] != digest.FromBytes(body("ours")) || got["2"] != digest.FromBytes(body("theirs")) || got["3"] != digest.FromBytes(body("new")) {
		t.Errorf("imported: %v", got)
	}
	// Who was late hears of the words once somebody wrote over them: of its own writes that
	// were imported it lost none.
	putOrdered(t, a, pid, sw, 20, words...)
	putOrdered(t, a, pid, sw, 21, next...)
	putOrdered(t, late, pid, sw, 21, next...)
	if got := conflicts(t, late, pid); len(got) != 1 || got[0] != "1" {
		t.Errorf("noted as lost: %q", got)
	}
	mustPull(t, a, late, pid)
	putOrdered(t, a, pid, sw, 21, next...)
	mustPull(t, late, a, pid)
	for _, c := range []*Catalog{a, late} {
		for tag, losers := range map[string]int{"1": 1, "2": 0, "3": 0} {
			said(t, c, pid, tag, "newer")
			if e := mustEntry(t, c, pid, entryKey{kindTag, "app", tag}); len(e.losers) != losers {
				t.Errorf("tag %s keeps %d losers, want %d", tag, len(e.losers), losers)
			}
		}
	}
	audited(t, pid, a, late)
}

// TestStrong_AWordOfBeforeTakesNothingOfAfter: a store puts words down that has not
// heard yet that the mode is over. What sites wrote since stays, also where the word says
// that the tag is gone, and did not lose.
func TestStrong_AWordOfBeforeTakesNothingOfAfter(t *testing.T) {
	slow, a := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	sw := Ordered{Before: 5, Seen: Vector{}}
	putOrdered(t, a, pid, sw, 20, strongTag("1", "one", 20))
	for _, tag := range []string{"1", "2"} {
		mustPut(t, a, put(pid, "app", "two", tag)) // under rights of index 7
	}
	mustPull(t, slow, a, pid)
	for range 2 { // the whole project, as after a start: "2" has no row, and is gone at 20
		putOrdered(t, slow, pid, sw, 20, strongTag("1", "one", 20), strongTag("2", "", 20))
	}
	// And a word that it has not heard was written over.
	if err := slow.DropProject(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	mustPull(t, slow, a, pid)
	putOrdered(t, slow, pid, sw, 21, strongTag("1", "three", 21))
	if err := slow.NoteOverruled(t.Context(), pid, sw); err != nil {
		t.Fatal(err)
	}
	mustPull(t, a, slow, pid)
	for _, c := range []*Catalog{slow, a} {
		said(t, c, pid, "2", "two")
		if e := mustEntry(t, c, pid, entryKey{kindTag, "app", "1"}); len(e.losers) != 0 || len(e.sibs) != 2 {
			t.Errorf("%d losers, %d siblings", len(e.losers), len(e.sibs))
		}
		if got := conflicts(t, c, pid); len(got) > 0 {
			t.Errorf("noted as lost: %q", got)
		}
	}
}

// TestEachTag_BesideAWord: an import of a word of the mode before takes nothing that came
// beside it after the importer's vector.
func TestEachTag_BesideAWord(t *testing.T) {
	a, b := openMemory(t, Options{}), openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, a, put(pid, "app", "late", "1"))
	putStrong(t, b, pid, 0, 20, strongTag("1", "one", 20))
	mustPull(t, b, a, pid)
	got := 0
	err := b.EachTag(pid, Vector{7: 1}, func(s TagState) error {
		if got++; s.Dot.Inc != strongInc || len(s.From) != 0 {
			t.Errorf("%+v", s)
		}
		return nil
	})
	if err != nil || got != 1 {
		t.Errorf("%d tags, %v", got, err)
	}
}

// TestOnlyOver: a site's writes go over no word of the control state that the one there
// has not heard of, in whichever way they name the tag.
func TestOnlyOver(t *testing.T) {
	c := openMemory(t, Options{})
	pid := identity.NewProjectID()
	mustPut(t, c, put(pid, "app", "one"))
	putStrong(t, c, pid, 19, 20, strongTag("1", "one", 20))
	heard := uint64(19)
	c.OnlyOver(func(identity.ProjectID) uint64 { return heard }, func(identity.ProjectID) Ordered { return Ordered{} })
	one := put(pid, "app", "one").Digest
	for name, write := range map[string]func() error{
		"push":     func() error { _, err := c.PutManifest(t.Context(), put(pid, "app", "two", "1")); return err },
		"tag":      func() error { return c.DeleteTag(t.Context(), pid, "app", "1", "user:ann", 7) },
		"manifest": func() error { return c.DeleteManifest(t.Context(), pid, "app", one, "user:ann", 7) },
		"all":      func() error { return c.DeleteRepository(t.Context(), pid, "app", "user:ann", 7) },
	} {
		if err := write(); !errors.Is(err, ErrUnheard) {
			t.Errorf("%s: %v", name, err)
		}
	}
	said(t, c, pid, "1", "one")
	mustPut(t, c, put(pid, "app", "two", "2"))
	heard = 20
	mustPut(t, c, put(pid, "app", "two", "1"))
	said(t, c, pid, "1", "two")
}

// TestStrong_WhoWritesOverWordsKnowsWhatTheyCameAfter: a store that had a word before what
// the word came after has both side by side; who writes over them ends no conflict, as
// long as the switch had ordered that.
func TestStrong_WhoWritesOverWordsKnowsWhatTheyCameAfter(t *testing.T) {
	for name, imported := range map[string]bool{"ordered": true, "late": false} {
		t.Run(name, func(t *testing.T) {
			a, b := openMemory(t, Options{}), openMemory(t, Options{})
			pid := identity.NewProjectID()
			mustPut(t, a, put(pid, "app", "one", "1"))
			sw := Ordered{Before: 19}
			if imported {
				var err error
				if sw.Seen, err = a.Vector(pid); err != nil {
					t.Fatal(err)
				}
			}
			putStrong(t, b, pid, 0, 20, strongTag("1", "two", 20))
			mustPull(t, b, a, pid)
			b.OnlyOver(func(identity.ProjectID) uint64 { return 20 }, func(identity.ProjectID) Ordered { return sw })
			if e := mustEntry(t, b, pid, entryKey{kindTag, "app", "1"}); len(e.sibs) != 2 {
				t.Fatalf("%d siblings, not what the word came after beside it", len(e.sibs))
			}
			mustPut(t, b, put(pid, "app", "three", "1"))
			mustPull(t, a, b, pid)
			said(t, a, pid, "1", "three")
			if e := mustEntry(t, a, pid, entryKey{kindTag, "app", "1"}); (len(e.losers) == 0) != imported {
				t.Errorf("losers: %+v", e.losers)
			}
		})
	}
}
