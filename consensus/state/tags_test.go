package state

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

func sha(n int) string { return fmt.Sprintf("sha256:%064x", n) }

func (m *machine) strong() (pid identity.ProjectID, id int64) {
	m.t.Helper()
	id = m.must(&command.ProjectCreate{ProjectId: id16(0x51), Name: "strong", Tags: command.TagMode_TAG_MODE_STRONG})
	return identity.ProjectID(id16(0x51)), id
}

// nearly puts the counter of strong tags near its bound: so many rows take seconds.
func (m *machine) nearly(n int) {
	v := *m.View()
	v.liveTags += n - v.liveTags
	m.view.Store(&v)
}

func TestTags_Limits(t *testing.T) {
	m := built(t)
	pid, id := m.strong()
	set := func(digest string, tags ...*command.TagSaid) *command.TagsSet {
		return &command.TagsSet{ProjectId: pid[:], Repository: "app", Digest: digest, Tags: tags, Since: m.index}
	}
	m.must(set(sha(1), &command.TagSaid{Name: "1"}))
	m.nearly(MaxStrongTags - 1)
	m.must(set(sha(1), &command.TagSaid{Name: "last"}))
	if _, err := m.do("user:ann", set(sha(1), &command.TagSaid{Name: "more"})); !errors.Is(err, &command.Error{Code: command.CodeDenied}) || !strings.Contains(err.Error(), "100000 are possible") {
		t.Errorf("one more: %v", err)
	}
	m.must(set(sha(2), &command.TagSaid{Name: "1", Digest: sha(1)})) // what is there may change
	m.must(&command.TagsDelete{ProjectId: pid[:], Repository: "app", Tag: "1"})
	m.must(set(sha(2), &command.TagSaid{Name: "more"}))

	// An import counts, too.
	plain := m.must(&command.ProjectCreate{ProjectId: id16(0x52), Name: "plain"})
	m.must(&command.TagsMode{Id: plain, Step: command.TagsMode_STEP_BEGIN, To: command.TagMode_TAG_MODE_STRONG})
	if _, err := m.do("node:x", &command.TagsMode{Id: plain, Step: command.TagsMode_STEP_IMPORT, Index: m.index, NodeId: node(1).Id, First: true,
		Tags: []*command.ImportedTag{{Repository: "app", Name: "1", Digest: sha(1)}}}); !errors.Is(err, &command.Error{Code: command.CodeDenied}) {
		t.Errorf("an import beyond the bound: %v", err)
	}

	// Deletions and marks are remembered up to a bound, and what was let go is said.
	m.nearly(2)
	for i := range maxTagMarks + 1 {
		v := *m.View()
		v.index++
		v.mark(pid, "app", sha(i))
		m.view.Store(&v)
	}
	m.index = m.View().Index()
	if v := m.View(); v.marks.Len() != maxTagMarks || v.markAge.Len() != maxTagMarks || v.marksFrom == 0 || !v.LetGo(pid, "other", sha(1), v.marksFrom-1) {
		t.Errorf("%d marks, from %d", v.marks.Len(), v.marksFrom)
	}
	if testing.Short() {
		return
	}
	v := *m.View()
	for i := range maxGoneTags {
		v.putTag(StrongTag{PID: pid, Repository: "app", Name: fmt.Sprint("gone", i), Seq: 1, Stamp: uint64(t0.UnixMilli()) << stampShift})
	}
	v.forgetGone()
	if p, _ := v.ProjectByID(id); v.gone.Len() != maxGoneTags || p.Tags.Base == 0 {
		t.Errorf("%d deletions are remembered, base %d", v.gone.Len(), p.Tags.Base)
	}
}

func TestTags_Refusals(t *testing.T) {
	m := built(t)
	pid, id := m.strong()
	plain := id16(1)
	many := make([]*command.TagSaid, maxTagsPerSet+1)
	for i := range many {
		many[i] = &command.TagSaid{Name: fmt.Sprint(i)}
	}
	one := []*command.TagSaid{{Name: "1"}}
	for name, body := range map[string]*command.TagsSet{
		"no project":        {Repository: "app", Digest: sha(1), Tags: one},
		"another project":   {ProjectId: id16(0x77), Repository: "app", Digest: sha(1), Tags: one},
		"eventual tags":     {ProjectId: plain, Repository: "app", Digest: sha(1), Tags: one},
		"a deleted project": {ProjectId: id16(2), Repository: "app", Digest: sha(1), Tags: one},
		"no repository":     {ProjectId: pid[:], Digest: sha(1), Tags: one},
		"a NUL in it":       {ProjectId: pid[:], Repository: "a\x00b", Digest: sha(1), Tags: one},
		"no digest":         {ProjectId: pid[:], Repository: "app", Tags: one},
		"another digest":    {ProjectId: pid[:], Repository: "app", Digest: "md5:00", Tags: one},
		"no tags":           {ProjectId: pid[:], Repository: "app", Digest: sha(1)},
		"too many tags":     {ProjectId: pid[:], Repository: "app", Digest: sha(1), Tags: many},
		"an empty tag":      {ProjectId: pid[:], Repository: "app", Digest: sha(1), Tags: []*command.TagSaid{{}}},
		"a tag with /":      {ProjectId: pid[:], Repository: "app", Digest: sha(1), Tags: []*command.TagSaid{{Name: "a/b"}}},
	} {
		body.Since = m.index
		if _, err := m.do("user:ann", body); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	bad := uint32(7)
	for name, body := range map[string]*command.TagsMode{
		"no step":       {Id: id},
		"no project":    {Id: 999, Step: command.TagsMode_STEP_BEGIN},
		"no mode":       {Id: id, Step: command.TagsMode_STEP_BEGIN, To: 7},
		"no switch":     {Id: id, Step: command.TagsMode_STEP_END},
		"an old one":    {Id: id, Step: command.TagsMode_STEP_BEGIN, IfVersion: 99},
		"a late import": {Id: id, Step: command.TagsMode_STEP_IMPORT, Index: 3, NodeId: node(1).Id},
	} {
		if _, err := m.do("user:ann", body); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := m.do("user:ann", &command.ProjectUpdate{Id: id, Durability: &bad}); err == nil {
		t.Error("durability 7 is taken")
	}
}

// TestTags_DeleteComparesWithWhatWasSeen: what was set meanwhile stays, and the same
// deletion again finds nothing.
func TestTags_DeleteComparesWithWhatWasSeen(t *testing.T) {
	m := built(t)
	pid, _ := m.strong()
	m.must(&command.TagsSet{ProjectId: pid[:], Repository: "app", Digest: sha(1), Tags: []*command.TagSaid{{Name: "1"}}, Since: m.index})
	m.must(&command.TagsSet{ProjectId: pid[:], Repository: "app", Digest: sha(2), Tags: []*command.TagSaid{{Name: "1", Digest: sha(1)}}, Since: m.index})
	remove := func(seen string) error {
		_, err := m.do("user:ann", &command.TagsDelete{ProjectId: pid[:], Repository: "app", Tag: "1", Digest: seen})
		return err
	}
	if err := remove(sha(1)); !errors.Is(err, &command.Error{Code: command.CodeConflict}) || !strings.Contains(err.Error(), "was set meanwhile, to "+sha(2)) {
		t.Errorf("a deletion of what was overwritten: %v", err)
	}
	if now, ok := m.View().StrongTag(pid, "app", "1"); !ok || now.Digest != sha(2) {
		t.Errorf("the tag says %q after it", now.Digest)
	}
	if err := remove(sha(2)); err != nil {
		t.Error(err)
	}
	for _, seen := range []string{sha(2), sha(1)} {
		if err := remove(seen); !errors.Is(err, &command.Error{Code: command.CodeNotFound}) {
			t.Errorf("deleted again, having seen %s: %v", seen, err)
		}
	}
}

func TestTags_SnapshotAndRenewal(t *testing.T) {
	m := built(t)
	pid, id := m.strong()
	m.must(&command.TagsSet{ProjectId: pid[:], Repository: "app", Digest: sha(1), Tags: []*command.TagSaid{{Name: "1"}, {Name: "2"}}, Since: m.index})
	m.must(&command.TagsDelete{ProjectId: pid[:], Repository: "app", Tag: "2"})
	m.must(&command.TagsDelete{ProjectId: pid[:], Repository: "app", Digest: sha(2)})
	other, switched := identity.ProjectID(id16(0x53)), m.must(&command.ProjectCreate{ProjectId: id16(0x53), Name: "switched"})
	m.must(&command.TagsMode{Id: switched, Step: command.TagsMode_STEP_BEGIN, To: command.TagMode_TAG_MODE_STRONG})
	begun, stray := m.index, pairs{7: 9, 8: 1}.row()
	m.must(&command.TagsMode{Id: switched, Step: command.TagsMode_STEP_IMPORT, Index: begun, NodeId: node(1).Id, First: true,
		Tags: []*command.ImportedTag{{Repository: "app", Name: "1", Digest: sha(1), Taken: []byte(stray)}}})
	m.must(&command.TagsMode{Id: switched, Step: command.TagsMode_STEP_END, Index: begun, NodeId: node(1).Id, Count: 1, Seen: make([]byte, seenPair)})
	m.must(&command.TagsMode{Id: id, Step: command.TagsMode_STEP_BEGIN, To: command.TagMode_TAG_MODE_EVENTUAL})
	n := uint32(2)
	m.must(&command.ProjectUpdate{Id: id, Durability: &n})
	var b bytes.Buffer
	if err := m.View().Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	again := New()
	if err := again.Restore(bytes.NewReader(b.Bytes())); err != nil {
		t.Fatal(err)
	}
	if rows(t, again.View()) != rows(t, m.View()) {
		t.Error("a snapshot read back differs")
	}
	v := again.View()
	if v.StrongTags() != 2 || v.strongSeq.Len() != 3 || v.strongOf.Len() != 2 || v.gone.Len() != 1 || v.markAge.Len() != 1 || v.strongPID.Len() != 2 {
		t.Errorf("what follows from rows: %d, %d, %d, %d, %d, %d", v.StrongTags(), v.strongSeq.Len(), v.strongOf.Len(), v.gone.Len(), v.markAge.Len(), v.strongPID.Len())
	}
	if !v.LetGo(pid, "app", sha(2), 3) || v.LetGo(pid, "app", sha(2), m.index) || v.LetGo(pid, "app", sha(1), 3) {
		t.Error("marks differ")
	}

	before, _ := v.ProjectByPID(pid)
	renewed, err := Renew(v.Lasting, Renewal{Mesh: identity.NewMeshID(), Generation: [16]byte{1}, Index: v.Index(), Now: t0.Add(time.Hour), Site: "ams", Node: node(1),
		Keys: []*command.NodeKey{{Kind: command.KeyKind_KEY_KIND_MESH, Version: 1, Box: id16(1)}}})
	if err != nil {
		t.Fatal(err)
	}
	after, _ := renewed.View().ProjectByPID(pid)
	row, ok := renewed.View().StrongTag(pid, "app", "1")
	switch {
	case !ok || row.Digest != sha(1) || row.Seq != after.Tags.Seq:
		t.Errorf("the tag in a restored mesh: %+v, %v", row, ok)
	case after.Tags.Switching() || after.Tags.Mode != StrongTags || after.Tags.Note == "":
		t.Errorf("a switch of before: %+v", after.Tags)
	case after.Tags.Base <= before.Tags.Seq || after.Tags.Base>>epochShift != 1:
		t.Errorf("base %d after %d", after.Tags.Base, before.Tags.Seq)
	case after.Durability != 2 || renewed.View().StrongTags() != 2 || renewed.View().gone.Len() != 0:
		t.Errorf("%+v, %d tags", after, renewed.View().StrongTags())
	}
	// What the switch of the other project ordered did not lose, wherever it turns up now.
	was, _ := v.ProjectByPID(other)
	is, _ := renewed.View().ProjectByPID(other)
	if len(was.Tags.Seen) == 0 || !bytes.Equal(is.Tags.Seen, was.Tags.Seen) || is.Tags.LateBefore != was.Tags.LateBefore {
		t.Errorf("ordered: %+v, in the restored mesh %+v", was.Tags, is.Tags)
	}
	if got := renewed.View().Taken(other, "app", "1"); string(got) != stray || string(v.Taken(other, "app", "1")) != stray {
		t.Errorf("ordered of a tag: %x, want %x", got, stray)
	}
}

// TestLasting_EveryKindIsDecided: a new kind of row is not dropped from backups because
// nobody thought of it.
func TestLasting_EveryKindIsDecided(t *testing.T) {
	kinds := (&Record{}).ProtoReflect().Descriptor().Oneofs().ByName("row").Fields()
	if kinds.Len() < 20 {
		t.Fatalf("%d kinds of rows", kinds.Len())
	}
	for i := range kinds.Len() {
		rec := &Record{}
		r := rec.ProtoReflect()
		r.Set(kinds.Get(i), r.NewField(kinds.Get(i)))
		if _, decided := outlives(rec); !decided {
			t.Errorf("nobody has decided whether rows %T outlive a mesh", rec.GetRow())
		}
	}
}

func TestTags_DeletedProjectKeepsNoRows(t *testing.T) {
	m := built(t)
	pid, id := m.strong()
	m.must(&command.TagsSet{ProjectId: pid[:], Repository: "app", Digest: sha(1), Tags: []*command.TagSaid{{Name: "1"}}, Since: m.index})
	m.must(&command.ProjectDelete{Id: id})
	if v := m.View(); v.StrongTags() != 0 || v.strong.Len() != 0 || v.strongPID.Len() != 0 {
		t.Errorf("%d tags, %d rows, %d projects", v.StrongTags(), v.strong.Len(), v.strongPID.Len())
	}
}

// TestTags_RestoredProjectKnowsWhatWasOrdered: what sites wrote before its switch to
// strong tags did not lose, wherever it turns up. Once it is purged nobody asks.
func TestTags_RestoredProjectKnowsWhatWasOrdered(t *testing.T) {
	m := built(t)
	id := m.must(&command.ProjectCreate{ProjectId: id16(0x52), Name: "plain"})
	m.must(&command.TagsMode{Id: id, Step: command.TagsMode_STEP_BEGIN, To: command.TagMode_TAG_MODE_STRONG})
	begun := m.index
	stray := []*command.ImportedTag{{Repository: "app", Name: "1", Digest: sha(1), Taken: bytes.Repeat([]byte{1}, seenPair)}}
	m.must(&command.TagsMode{Id: id, Step: command.TagsMode_STEP_IMPORT, Index: begun, NodeId: node(1).Id, First: true, Tags: stray})
	m.must(&command.TagsMode{Id: id, Step: command.TagsMode_STEP_END, Index: begun, NodeId: node(1).Id, Count: 1, Seen: make([]byte, seenPair)})
	was, _ := m.View().ProjectByID(id)
	taken := func() []byte { return m.View().Taken(was.PID, "app", "1") }
	if !bytes.Equal(taken(), stray[0].GetTaken()) || len(m.View().Taken(was.PID, "app", "2")) != 0 {
		t.Errorf("taken: %x", taken())
	}
	if was.Tags.Mode != StrongTags || len(was.Tags.Seen) == 0 || was.Tags.LateBefore == 0 || was.Tags.Base == 0 {
		t.Fatalf("%+v", was.Tags)
	}
	m.must(&command.ProjectDelete{Id: id})
	m.must(&command.ProjectRestore{Id: id})
	p, _ := m.View().ProjectByID(id)
	if got := p.Tags; got.Mode != EventualTags || !bytes.Equal(got.Seen, was.Tags.Seen) || got.LateBefore != was.Tags.LateBefore || got.Base != was.Tags.Base || got.Seq != was.Tags.Seq || len(taken()) == 0 {
		t.Errorf("restored: %+v, before its deletion: %+v", got, was.Tags)
	}
	m.must(&command.ProjectDelete{Id: id})
	m.now = m.now.Add(DeletedKeptFor + time.Hour)
	m.must(&command.ProjectPurge{Id: id})
	for p := range all(m.View().projects, nil) {
		if p.ID == id && (len(p.Tags.Seen) != 0 || p.Tags.Seq != was.Tags.Seq || len(taken()) != 0) {
			t.Errorf("purged: %+v", p.Tags)
		}
	}
}

// TestTaken_Bounds: what a switch ordered of single tags is bounded, for a tag and in
// all, and what is known of a tag stays when there is no room for another.
func TestTaken_Bounds(t *testing.T) {
	m := built(t)
	pid, _ := m.strong()
	more := pairs{}
	for i := range uint64(MaxTakenPairs + 5) {
		more[i+1] = i + 1
	}
	if got, err := readPairs([]byte(more.row()), MaxTakenPairs); err != nil || len(got) != MaxTakenPairs {
		t.Errorf("%d pairs, %v", len(got), err)
	}
	v := *m.View()
	one := pairs{7: 7}.row()
	staged := make([]StrongTag, maxTaken+3)
	for i := range staged {
		staged[i] = StrongTag{PID: pid, Repository: "app", Name: fmt.Sprintf("%06d", i), Taken: one}
	}
	for range 2 {
		if err := v.take(pid, nil, staged); err != nil {
			t.Fatal(err)
		}
		if v.taken.Len() != maxTaken || string(v.Taken(pid, "app", "000000")) != one || len(v.Taken(pid, "app", fmt.Sprintf("%06d", maxTaken))) != 0 {
			t.Fatalf("%d rows", v.taken.Len())
		}
	}
	// The next switch's importer has seen all of it by now; but of one tag.
	if err := v.take(pid, []byte(one), []StrongTag{{PID: pid, Repository: "app", Name: "000001", Taken: pairs{7: 9}.row()}}); err != nil {
		t.Fatal(err)
	}
	if got, _ := readPairs(v.Taken(pid, "app", "000001"), MaxTakenPairs); v.taken.Len() != 1 || got[7] != 9 {
		t.Errorf("%d rows, %v", v.taken.Len(), got)
	}
}

// TestTaken_StagedBounds: so are the tags that switches under way have imported, whose
// rows are in the state, too. A snapshot read back counts the same.
func TestTaken_StagedBounds(t *testing.T) {
	m := built(t)
	id := m.must(&command.ProjectCreate{ProjectId: id16(0x52), Name: "plain"})
	m.must(&command.TagsMode{Id: id, Step: command.TagsMode_STEP_BEGIN, To: command.TagMode_TAG_MODE_STRONG})
	p, _ := m.View().ProjectByID(id)
	v := *m.View()
	one := pairs{7: 7}.row()
	tag := func(i int) StrongTag {
		return StrongTag{PID: p.PID, Repository: "app", Name: fmt.Sprintf("%06d", i), Digest: sha(1), Taken: one}
	}
	with := func(v *View) (n int) {
		for t := range all(v.staged, nil) {
			if t.Taken != "" {
				n++
			}
		}
		return n
	}
	for i := range maxTaken + 3 {
		v.stage(tag(i))
	}
	if again := v.stage(tag(0)); !again {
		t.Error("staged twice, and it is another one")
	}
	if v.stagedTaken != maxTaken || with(&v) != maxTaken || v.staged.Len() != maxTaken+3 {
		t.Fatalf("%d tags are staged, %d with pairs, counted as %d", v.staged.Len(), with(&v), v.stagedTaken)
	}
	var b bytes.Buffer
	if err := v.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	again := New()
	if err := again.Restore(&b); err != nil {
		t.Fatal(err)
	}
	if got := again.View().stagedTaken; got != maxTaken || with(again.View()) != maxTaken {
		t.Errorf("read back, %d have pairs, counted as %d", with(again.View()), got)
	}
	v.dropStaged(&p)
	if v.stagedTaken != 0 || v.staged.Len() != 0 {
		t.Errorf("%d tags are staged, counted as %d", v.staged.Len(), v.stagedTaken)
	}
}

func TestPushCopies(t *testing.T) {
	m := built(t) // sites ams and fra
	pid, id := m.strong()
	alone := m.must(&command.ProjectCreate{ProjectId: id16(0x61), Name: "alone", Sites: []string{"ams"}, Tags: command.TagMode_TAG_MODE_STRONG})
	v := m.View()
	p, _ := v.ProjectByPID(pid)
	a, _ := v.ProjectByID(alone)
	plain, _ := v.Project("prod")
	if v.PushCopies(p, true) != 2 || v.PushCopies(p, false) != 1 || v.PushCopies(a, true) != 1 || v.PushCopies(plain, true) != 1 {
		t.Errorf("%d, %d, %d, %d", v.PushCopies(p, true), v.PushCopies(p, false), v.PushCopies(a, true), v.PushCopies(plain, true))
	}
	two := uint32(2)
	m.must(&command.ProjectUpdate{Id: id, Durability: &two})
	p, _ = m.View().ProjectByPID(pid)
	if m.View().PushCopies(p, false) != 2 {
		t.Error("durability 2 is not kept for a push by digest")
	}
	if _, err := m.do("user:ann", &command.ProjectUpdate{Id: alone, Durability: &two}); !errors.Is(err, &command.Error{Code: command.CodeInvalid}) {
		t.Errorf("two copies at one site: %v", err)
	}
}
