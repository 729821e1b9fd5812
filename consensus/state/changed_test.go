package state

import (
	"bytes"
	"slices"
	"testing"

	"github.com/portolan/portolan/consensus/command"
)

// TestProjectsChangedSince: who has seen the state at an index is told what changed
// after it, and a node that took the state from a snapshot of all.
func TestProjectsChangedSince(t *testing.T) {
	m := built(t)
	since := func(v *View, index uint64) (names []string) {
		for p := range v.ProjectsChangedSince(index) {
			names = append(names, p.Name)
		}
		slices.Sort(names)
		return names
	}
	want := func(what string, index uint64, names ...string) {
		t.Helper()
		slices.Sort(names)
		if got := since(m.View(), index); !slices.Equal(got, names) {
			t.Errorf("%s: %q, want %q", what, got, names)
		}
	}
	every := since(m.View(), 0)
	at := m.View().Index()
	want("nothing since", at)
	a := m.must(&command.ProjectCreate{ProjectId: id16(40), Name: "a"})
	b := m.must(&command.ProjectCreate{ProjectId: id16(41), Name: "b"})
	want("two new ones", at, "a", "b")
	want("all", 0, append(every, "a", "b")...)
	mid, moved := m.View().Index(), m.View().ResidenceChangedAt()
	if moved != mid {
		t.Errorf("where projects rest changed at %d, want %d", moved, mid)
	}
	public := true
	m.must(&command.ProjectUpdate{Id: a, Public: &public})
	want("one edited", mid, "a")
	want("each once", at, "a", "b")
	if m.View().ResidenceChangedAt() != moved {
		t.Error("an edit of something else changed where projects may rest")
	}
	m.must(&command.ProjectDelete{Id: b})
	want("a deleted one", mid, "a", "b")
	if m.View().ResidenceChangedAt() != m.View().Index() {
		t.Error("a deletion did not change what projects there are")
	}
	before := m.View()
	m.must(&command.UserCreate{Name: "zoe", PasswordHash: "x"})
	want("an edit of no project", before.Index())

	var snapshot bytes.Buffer
	if err := m.View().Snapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	other := New()
	if err := other.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	if got := since(other.View(), m.View().Index()-1); !slices.Equal(got, since(m.View(), 0)) {
		t.Errorf("from a snapshot: %q", got)
	}
	if got := since(before, mid); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("an old view changed: %q", got)
	}
}
