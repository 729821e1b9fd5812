package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

func TestCommands_Refusals(t *testing.T) {
	pub := true
	no := false
	m := built(t)
	v := m.View()
	prod, _ := v.Project("prod")
	admin, _ := v.User("admin")
	ann, _ := v.User("ann")
	rule, _ := v.Rule("everywhere")
	used, fresh := v.Tokens()[0], v.Tokens()[1]
	exp := t0.Add(time.Hour).UnixNano()
	bad := func(f func(*command.Node)) *command.Node { n := node(3); f(n); return n }
	join := func(n *command.Node) *command.NodeJoin {
		return &command.NodeJoin{TokenId: fresh.ID, SecretHash: hash("u"), Site: "sgp", Node: n}
	}
	for _, c := range []struct {
		name string
		body proto.Message
		code command.Code
		want string
	}{
		{"level down", &command.SetLevel{Level: 1}, command.CodeConflict, "never goes down"},
		{"no profile of that name", &command.ProfileSet{Profile: "near"}, command.CodeInvalid, "use lan, wan or far"},
		{"profile changed meanwhile", &command.ProfileSet{Profile: "wan", IfVersion: 7}, command.CodeConflict, "version 1, not 7"},
		{"used token to revoke", &command.TokenRevoke{Id: used.ID}, command.CodeUsed, "used already"},
		{"no such token to revoke", &command.TokenRevoke{Id: 999}, command.CodeNotFound, "no token 999"},
		{"token to revoke changed meanwhile", &command.TokenRevoke{Id: fresh.ID, IfVersion: 7}, command.CodeConflict, "version 1, not 7"},
		{"token changed meanwhile", &command.TokenDelete{Id: used.ID, IfVersion: 1}, command.CodeConflict, "version 2, not 1"},
		{"role changed meanwhile", &command.MemberSet{ProjectId: prod.ID, UserId: ann.ID, Role: int32(Guest), IfVersion: 7}, command.CodeConflict, "version 1, not 7"},
		{"role taken away meanwhile", &command.MemberSet{ProjectId: prod.ID, UserId: 999_999, Role: int32(Guest), IfVersion: 1}, command.CodeNotFound, "no user"},
		{"role given meanwhile", &command.MemberSet{ProjectId: prod.ID, UserId: ann.ID, Role: int32(Guest), Create: true}, command.CodeExists, "member of the project already"},
		{"member changed meanwhile", &command.MemberDelete{ProjectId: prod.ID, MemberId: v.Members(prod.ID)[0].ID, IfVersion: 7}, command.CodeConflict, "changed meanwhile"},
		{"level above a node's", &command.SetLevel{Level: 2}, command.CodeConflict, "upgrade it first"},
		{"token with a bad site name", &command.TokenCreate{Site: "Fra!", SecretHash: hash("x"), ExpiresUnixNs: exp}, command.CodeInvalid, "not a site name"},
		{"token for site all", &command.TokenCreate{Site: "all", SecretHash: hash("x"), ExpiresUnixNs: exp}, command.CodeInvalid, "every site"},
		{"token for a taken site", &command.TokenCreate{Site: "fra", SecretHash: hash("x"), ExpiresUnixNs: exp}, command.CodeExists, "taken"},
		{"token with a short hash", &command.TokenCreate{Site: "nyc", SecretHash: []byte("x"), ExpiresUnixNs: exp}, command.CodeInvalid, "32 bytes"},
		{"token of the past", &command.TokenCreate{Site: "nyc", SecretHash: hash("x"), ExpiresUnixNs: t0.UnixNano()}, command.CodeInvalid, "longer than now"},
		{"token for ever", &command.TokenCreate{Site: "nyc", SecretHash: hash("x"), ExpiresUnixNs: t0.Add(2 * MaxTokenFor).UnixNano()}, command.CodeInvalid, "90 days"},
		{"no such token to delete", &command.TokenDelete{Id: 999}, command.CodeNotFound, "no token 999"},
		{"join with an unknown token", &command.NodeJoin{TokenId: 999, SecretHash: hash("u"), Site: "sgp", Node: node(3)}, command.CodeDenied, "not known here"},
		{"join with a wrong secret", &command.NodeJoin{TokenId: fresh.ID, SecretHash: hash("x"), Site: "sgp", Node: node(3)}, command.CodeDenied, "not known here"},
		{"join as another site", &command.NodeJoin{TokenId: fresh.ID, SecretHash: hash("u"), Site: "nyc", Node: node(3)}, command.CodeInvalid, `for site "sgp"`},
		{"join with a used token", &command.NodeJoin{TokenId: used.ID, SecretHash: hash("s"), Site: "fra", Node: node(3)}, command.CodeUsed, "used already"},
		{"join of a member", join(node(1)), command.CodeExists, "member already"},
		{"join with another's store", join(bad(func(n *command.Node) { n.StoreId = id16(1) })), command.CodeExists, "belongs to site ams"},
		{"join without a store", join(bad(func(n *command.Node) { n.StoreId = nil })), command.CodeInvalid, "store id"},
		{"join without a key", join(bad(func(n *command.Node) { n.Id = nil })), command.CodeInvalid, "node ID of 0 bytes"},
		{"join without a box key", join(bad(func(n *command.Node) { n.BoxKey = nil })), command.CodeInvalid, "box key of 32"},
		{"join with a stranger's box key", join(bad(func(n *command.Node) { n.BoxSignature = node(1).BoxSignature })), command.CodeInvalid, "not signed"},
		{"join without a host", join(bad(func(n *command.Node) { n.Host = "" })), command.CodeInvalid, "--advertise"},
		{"join with a port of 70000", join(bad(func(n *command.Node) { n.DataPort = 70000 })), command.CodeInvalid, "not a port"},
		{"join without a level", join(bad(func(n *command.Node) { n.Level = 0 })), command.CodeInvalid, "level"},
		{"update of no member", &command.NodeUpdate{Node: node(3)}, command.CodeNotFound, "not a member"},
		{"update to another's store", &command.NodeUpdate{Node: func() *command.Node { n := node(1); n.StoreId = id16(2); return n }()}, command.CodeExists, "belongs to site fra"},
		{"project with a bad name", &command.ProjectCreate{ProjectId: id16(5), Name: "Prod"}, command.CodeInvalid, "not a project name"},
		{"project with a long name", &command.ProjectCreate{ProjectId: id16(5), Name: strings.Repeat("a", 256)}, command.CodeInvalid, "not a project name"},
		{"project with a slash", &command.ProjectCreate{ProjectId: id16(5), Name: "a/b"}, command.CodeInvalid, "not a project name"},
		{"project without an id", &command.ProjectCreate{Name: "x"}, command.CodeInvalid, "16 random bytes"},
		{"project twice", &command.ProjectCreate{ProjectId: id16(5), Name: "prod"}, command.CodeExists, `project "prod" already`},
		{"project with a deleted one's name", &command.ProjectCreate{ProjectId: id16(5), Name: "gone"}, command.CodeExists, "taken until then"},
		{"project with a taken id", &command.ProjectCreate{ProjectId: id16(1), Name: "x"}, command.CodeExists, "taken"},
		{"project of nobody's", &command.ProjectCreate{ProjectId: id16(5), Name: "x", OwnerId: 999}, command.CodeInvalid, "no user 999"},
		{"project at no site", &command.ProjectCreate{ProjectId: id16(5), Name: "x", Sites: []string{"nyc"}}, command.CodeInvalid, `no site "nyc"`},
		{"no such project to update", &command.ProjectUpdate{Id: 999, Public: &pub}, command.CodeNotFound, "no project 999"},
		{"project changed meanwhile", &command.ProjectUpdate{Id: prod.ID, Public: &pub, IfVersion: 7}, command.CodeConflict, "version 1, not 7"},
		{"no such project to delete", &command.ProjectDelete{Id: 999}, command.CodeNotFound, "no project 999"},
		{"project to delete changed meanwhile", &command.ProjectDelete{Id: prod.ID, IfVersion: 7}, command.CodeConflict, "changed meanwhile"},
		{"user with a bad name", &command.UserCreate{Name: "a b", PasswordHash: "x"}, command.CodeInvalid, "not a user name"},
		{"user with a colon", &command.UserCreate{Name: "a:b", PasswordHash: "x"}, command.CodeInvalid, "not a user name"},
		{"user twice, other case", &command.UserCreate{Name: "ANN", PasswordHash: "x"}, command.CodeExists, `user "ann" already`},
		{"user without a password", &command.UserCreate{Name: "bob"}, command.CodeInvalid, "needs a password"},
		{"user with a novel", &command.UserCreate{Name: "bob", PasswordHash: "x", Comment: strings.Repeat("a", 2000)}, command.CodeInvalid, "comment"},
		{"no such user to update", &command.UserUpdate{Id: 999}, command.CodeNotFound, "no user 999"},
		{"user changed meanwhile", &command.UserUpdate{Id: ann.ID, IfVersion: 7}, command.CodeConflict, "changed meanwhile"},
		{"last administrator down", &command.UserUpdate{Id: admin.ID, Admin: &no}, command.CodeInvalid, "last administrator"},
		{"last administrator away", &command.UserDelete{Id: admin.ID}, command.CodeInvalid, "last administrator"},
		{"no such user to delete", &command.UserDelete{Id: 999}, command.CodeNotFound, "no user 999"},
		{"member of no project", &command.MemberSet{ProjectId: 999, UserId: ann.ID, Role: 1}, command.CodeNotFound, "no project 999"},
		{"member who is nobody", &command.MemberSet{ProjectId: prod.ID, UserId: 999, Role: 1}, command.CodeNotFound, "no user 999"},
		{"member with no role", &command.MemberSet{ProjectId: prod.ID, UserId: ann.ID, Role: 9}, command.CodeInvalid, "not a role"},
		{"no such member", &command.MemberDelete{ProjectId: prod.ID, MemberId: 999}, command.CodeNotFound, "no member 999"},
		{"rule twice", &command.RuleCreate{Rule: &command.Rule{Name: "everywhere", Projects: []string{"*"}, AllSites: true}}, command.CodeExists, "already"},
		{"rule with a bad name", &command.RuleCreate{Rule: &command.Rule{Name: "a b", Projects: []string{"*"}, AllSites: true}}, command.CodeInvalid, "not a rule name"},
		{"rule called 12", &command.RuleCreate{Rule: &command.Rule{Name: "12", Projects: []string{"*"}, AllSites: true}}, command.CodeInvalid, "digits alone"},
		{"rule for nothing", &command.RuleCreate{Rule: &command.Rule{Name: "r", AllSites: true}}, command.CodeInvalid, "names no project"},
		{"rule to nowhere", &command.RuleCreate{Rule: &command.Rule{Name: "r", Projects: []string{"*"}}}, command.CodeInvalid, "must name sites"},
		{"rule to all and some", &command.RuleCreate{Rule: &command.Rule{Name: "r", Projects: []string{"*"}, AllSites: true, Sites: []string{"fra"}}}, command.CodeInvalid, "not both"},
		{"rule to no site", &command.RuleCreate{Rule: &command.Rule{Name: "r", Projects: []string{"*"}, Sites: []string{"nyc"}}}, command.CodeInvalid, `no site "nyc"`},
		{"rule with an empty pattern", &command.RuleCreate{Rule: &command.Rule{Name: "r", Projects: []string{"*"}, Tags: []string{""}, AllSites: true}}, command.CodeInvalid, "pattern for tags"},
		{"rule with too many patterns", &command.RuleCreate{Rule: &command.Rule{Name: "r", Projects: slices.Repeat([]string{"a"}, 101), AllSites: true}}, command.CodeInvalid, "too many"},
		{"no such rule to update", &command.RuleUpdate{Id: 999}, command.CodeNotFound, "no rule 999"},
		{"rule changed meanwhile", &command.RuleUpdate{Id: rule.ID, IfVersion: 7}, command.CodeConflict, "changed meanwhile"},
		{"no such rule to delete", &command.RuleDelete{Id: 999}, command.CodeNotFound, "no rule 999"},
		{"rule to delete changed meanwhile", &command.RuleDelete{Id: rule.ID, IfVersion: 7}, command.CodeConflict, "changed meanwhile"},
		{"mesh twice", meshCreate(), command.CodeExists, "made already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := rows(t, m.View())
			_, err := m.do("user:admin", c.body)
			var refusal *command.Error
			if !errors.As(err, &refusal) || refusal.Code != c.code || !strings.Contains(refusal.Message, c.want) {
				t.Fatalf("%v, want code %s and %q", err, c.code, c.want)
			}
			if rows(t, m.View()) != before {
				t.Fatal("a refused command changed something")
			}
		})
	}
}

func TestNodeUpdate_OfAnotherNode_IsDenied(t *testing.T) {
	m := built(t)
	id, _ := identity.NodeIDFromBytes(node(2).Id)
	if _, err := m.do("node:"+id.String(), &command.NodeUpdate{Node: node(1)}); !errors.Is(err, &command.Error{Code: command.CodeDenied}) {
		t.Fatal(err)
	}
	n := node(2)
	n.Host, n.StoreId = "elsewhere", id16(77)
	if _, err := m.do("node:"+id.String(), &command.NodeUpdate{Node: n}); err != nil {
		t.Fatal(err)
	}
	v := m.View()
	if row, _ := v.Node(id); row.Host != "elsewhere" || row.Site != "fra" || !row.JoinedAt.Equal(t0) {
		t.Fatalf("%+v", row)
	}
	if _, ok := v.NodeOfStore(identity.StoreID(id16(2))); ok {
		t.Fatal("the old store is still there")
	}
	if row, ok := v.NodeOfStore(identity.StoreID(id16(77))); !ok || row.ID != id {
		t.Fatal("the new store is not there")
	}
}

func TestJoin_RepeatedByTheSameNode_AndExpired(t *testing.T) {
	m := built(t)
	v := m.View()
	used, fresh := v.Tokens()[0], v.Tokens()[1]
	m.now = t0.Add(2 * time.Hour) // both have expired
	again := &command.NodeJoin{TokenId: used.ID, SecretHash: hash("s"), Site: "fra", Node: node(2)}
	fra, _ := v.Site("fra")
	if id := m.must(again); id != fra.ID {
		t.Fatalf("site %d, want %d", id, fra.ID)
	}
	if _, err := m.do("system", &command.NodeJoin{TokenId: fresh.ID, SecretHash: hash("u"), Site: "sgp", Node: node(3)}); !errors.Is(err, &command.Error{Code: command.CodeExpired}) {
		t.Fatal(err)
	}
	// Time does not run back with a leader whose clock does.
	m.now = t0
	if _, err := m.do("system", &command.NodeJoin{TokenId: fresh.ID, SecretHash: hash("u"), Site: "sgp", Node: node(3)}); !errors.Is(err, &command.Error{Code: command.CodeExpired}) {
		t.Fatal(err)
	}
}

func TestEdits(t *testing.T) {
	m := built(t)
	v := m.View()
	prod, _ := v.Project("prod")
	ann, _ := v.User("ann")
	if !slices.Equal(prod.Sites, []string{"ams", "fra"}) || !v.MayRest(prod, "fra") || v.MayRest(prod, "sgp") {
		t.Errorf("residency: %v", prod.Sites)
	}
	pub := true
	m.must(&command.ProjectUpdate{Id: prod.ID, Public: &pub, IfVersion: 1})
	if p, _ := m.View().Project("prod"); !p.Public || p.Version != 2 {
		t.Errorf("project: %+v", p)
	}
	mem := m.View().Members(prod.ID)
	if len(mem) != 2 {
		t.Fatalf("members: %+v", mem)
	}
	if again := m.must(&command.MemberSet{ProjectId: prod.ID, UserId: 2, Role: int32(Maintainer)}); again != mem[0].ID {
		t.Errorf("a new role made a new member")
	}
	m.must(&command.MemberDelete{ProjectId: prod.ID, MemberId: mem[0].ID})
	if _, ok := m.View().Member(prod.ID, 2); ok {
		t.Error("the member is still there")
	}
	m.must(&command.ProfileSet{Profile: "wan", IfVersion: 1})
	if got := m.View().Mesh(); got.Profile != "wan" || got.Version != 2 {
		t.Errorf("mesh after its profile was set: %+v", got)
	}
	mail, admin := "a@example.org", true
	m.must(&command.UserUpdate{Id: ann.ID, Email: &mail, Admin: &admin})
	first, _ := m.View().User("admin")
	m.must(&command.UserDelete{Id: first.ID})
	if _, ok := m.View().User("admin"); ok {
		t.Error("the deleted user is still there")
	}
	for p := range m.View().Projects() {
		if p.Name == "gone" {
			t.Error("a deleted project is listed")
		}
		for _, mm := range m.View().Members(p.ID) {
			if mm.UserID == first.ID {
				t.Error("a deleted user is still a member")
			}
		}
	}
	if p, ok := m.View().ProjectByPID(identity.ProjectID(id16(2))); !ok || !p.Deleted() {
		t.Error("a deleted project's id must stay")
	}
	rule, _ := m.View().Rule("everywhere")
	m.must(&command.RuleUpdate{Id: rule.ID, IfVersion: rule.Version, Rule: &command.Rule{Name: "two", Projects: []string{"*"}, Sites: []string{"fra"}}})
	if _, ok := m.View().Rule("everywhere"); ok {
		t.Error("the old name still works")
	}
	if r, ok := m.View().Rule(fmt.Sprint(rule.ID)); !ok || r.Name != "two" || r.Version != 2 {
		t.Errorf("rule by id: %+v", r)
	}
	m.must(&command.RuleDelete{Id: rule.ID})
	tok := m.View().Tokens()[1]
	for range 2 { // again is as good as once
		m.must(&command.TokenRevoke{Id: tok.ID})
		if got, _ := m.View().Token(tok.ID); !got.Revoked() || got.RevokedBy != "user:admin" || got.Version != 2 {
			t.Errorf("a revoked token: %+v", got)
		}
	}
	if _, err := m.View().CheckToken(tok.ID, hash("u"), "sgp", identity.NodeID{9}, t0); err == nil || !strings.Contains(err.Error(), "revoked at") {
		t.Errorf("join with a revoked token: %v", err)
	}
	m.must(&command.TokenDelete{Id: tok.ID})
	if _, ok := m.View().Token(tok.ID); ok {
		t.Error("the token is still there")
	}
}

// TestVersions_GoUpWithEachEdit: one for each edit of an object, and no other.
func TestVersions_GoUpWithEachEdit(t *testing.T) {
	m := built(t)
	prod, _ := m.View().Project("prod")
	ann, _ := m.View().User("ann")
	bob := m.must(&command.UserCreate{Name: "bob", PasswordHash: "x"})
	get := map[string]func() uint64{
		"mesh":    func() uint64 { return m.View().Mesh().Version },
		"project": func() uint64 { p, _ := m.View().ProjectByID(prod.ID); return p.Version },
		"user":    func() uint64 { u, _ := m.View().UserByID(ann.ID); return u.Version },
		"member":  func() uint64 { x, _ := m.View().Member(prod.ID, bob); return x.Version },
		"rule":    func() uint64 { r, _ := m.View().Rule("everywhere"); return r.Version },
		"token":   func() uint64 { return m.View().Tokens()[1].Version },
		"node":    func() uint64 { n, _ := m.View().Node(identity.NodeID(node(2).GetId())); return n.Record },
		"site":    func() uint64 { s, _ := m.View().Site("fra"); return s.Version },
	}
	rule, _ := m.View().Rule("everywhere")
	yes, text := true, "x"
	for _, c := range []struct {
		body proto.Message
		up   []string
	}{
		{&command.ProfileSet{Profile: "wan"}, []string{"mesh"}},
		{&command.ProjectUpdate{Id: prod.ID, Public: &yes}, []string{"project"}},
		{&command.UserUpdate{Id: ann.ID, Comment: &text}, []string{"user"}},
		{&command.MemberSet{ProjectId: prod.ID, UserId: bob, Role: 2}, []string{"member"}},
		{&command.MemberSet{ProjectId: prod.ID, UserId: bob, Role: 3}, []string{"member"}},
		{&command.RuleUpdate{Id: rule.ID, Rule: &command.Rule{Name: "everywhere", Projects: []string{"*"}, AllSites: true}}, []string{"rule"}},
		{&command.NodeUpdate{Node: node(2)}, []string{"node", "site"}},
		{&command.NodeJoin{TokenId: m.View().Tokens()[1].ID, SecretHash: hash("u"), Site: "sgp", Node: node(3)}, []string{"token"}},
	} {
		before := make(map[string]uint64)
		for name, f := range get {
			before[name] = f()
		}
		m.must(c.body)
		for name, f := range get {
			want := before[name]
			if slices.Contains(c.up, name) {
				want++
			}
			if got := f(); got != want {
				t.Errorf("%T: %s at version %d, want %d", c.body, name, got, want)
			}
		}
	}
}

// TestJoin_TooOld: a binary below the mesh's level would stop at the first
// command that it does not know.
func TestJoin_TooOld(t *testing.T) {
	m := built(t)
	raised := *m.View()
	raised.mesh.Level = 7
	m.publish(&raised)
	for name, body := range map[string]proto.Message{
		"join":   &command.NodeJoin{TokenId: m.View().Tokens()[1].ID, SecretHash: hash("u"), Site: "sgp", Node: node(3)},
		"return": &command.NodeUpdate{Node: node(2)},
	} {
		before := m.View()
		if _, err := m.do("system", body); !errors.Is(err, &command.Error{Code: command.CodeConflict}) || !strings.Contains(err.Error(), "too old: the mesh is at command level 7, it understands 1") {
			t.Errorf("%s: %v", name, err)
		}
		if v := m.View(); len(v.Nodes()) != len(before.Nodes()) || len(v.Sites()) != len(before.Sites()) || !v.Tokens()[1].UsedBy.IsZero() {
			t.Errorf("%s: a refused node left something behind", name)
		}
	}
}

func TestUser_LogHasNoHash(t *testing.T) {
	u, _ := built(t).View().User("ann")
	if s := u.LogValue().String(); strings.Contains(s, "argon2id") {
		t.Fatal(s)
	}
}

func TestRole_Names(t *testing.T) {
	for r := ProjectAdmin; r <= LimitedGuest; r++ {
		if got, err := ParseRole(r.String()); err != nil || got != r {
			t.Errorf("%s: %v, %v", r, got, err)
		}
	}
	if _, err := ParseRole("king"); err == nil {
		t.Error("king")
	}
}
