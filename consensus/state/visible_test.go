package state

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/portolan/portolan/consensus/command"
)

// What a user sees follows every edit, in the order of repositories' full names,
// and is the same after a snapshot.
func TestProjectsOf(t *testing.T) {
	m := newMachine(t)
	m.must(meshCreate())
	ann, bob := m.must(&command.UserCreate{Name: "ann", PasswordHash: "h"}), m.must(&command.UserCreate{Name: "bob", PasswordHash: "h"})
	ids := map[string]int64{}
	for i, name := range []string{"a", "a-b", "a.b", "open", "shut", "zoo"} {
		ids[name] = m.must(&command.ProjectCreate{Name: name, ProjectId: id16(byte(20 + i)), Public: name == "open"})
	}
	for _, name := range []string{"a", "a-b", "a.b", "open"} {
		m.must(&command.MemberSet{ProjectId: ids[name], UserId: ann, Role: int32(Guest)})
	}
	names := func(v *View, user int64, from string) string {
		var out []string
		for p := range v.ProjectsOf(user, from) {
			out = append(out, p.Name)
		}
		return strings.Join(out, " ")
	}
	check := func(what string, v *View, user int64, from, want string) {
		t.Helper()
		if got := names(v, user, from); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	v := m.View()
	check("a member", v, ann, "", "a-b a.b a library open")
	check("from the middle", v, ann, "a.b/", "a.b a library open")
	check("from one on", v, ann, "a/", "a library open")
	check("from the names that begin so", v, ann, "a", "a-b a.b a library open")
	check("from one that is not there", v, ann, "b/", "library open")
	check("no member", v, bob, "", "library open")
	check("nobody", v, 0, "", "library open")
	var all []string
	for p := range v.ProjectsFrom("a.b/") {
		all = append(all, p.Name)
	}
	if want := []string{"a.b", "a", "library", "open", "shut", "zoo"}; !slices.Equal(all, want) {
		t.Errorf("all: %q, want %q", all, want)
	}

	public := false
	m.must(&command.ProjectUpdate{Id: ids["open"], Public: &public})
	mem, _ := m.View().Member(ids["a.b"], ann)
	m.must(&command.MemberDelete{ProjectId: ids["a.b"], MemberId: mem.ID})
	m.must(&command.ProjectDelete{Id: ids["a-b"]})
	m.must(&command.MemberSet{ProjectId: ids["shut"], UserId: bob, Role: int32(Developer)})
	check("after edits", m.View(), ann, "", "a library open")
	check("after edits, another", m.View(), bob, "", "library shut")
	m.must(&command.UserDelete{Id: bob})
	check("a user who is gone", m.View(), bob, "", "library")

	var snapshot bytes.Buffer
	if err := m.View().Snapshot(&snapshot); err != nil {
		t.Fatal(err)
	}
	restored := New()
	if err := restored.Restore(&snapshot); err != nil {
		t.Fatal(err)
	}
	check("after a snapshot", restored.View(), ann, "", "a library open")
}
