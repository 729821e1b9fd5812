package state

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// node makes a record with a key that depends on seed alone.
func node(seed byte) *command.Node {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, 32))
	box := bytes.Repeat([]byte{seed + 100}, 32)
	return &command.Node{Id: key.Public().(ed25519.PublicKey), BoxKey: box, BoxSignature: ed25519.Sign(key, append([]byte("portolan box key v1\x00"), box...)),
		StoreId: bytes.Repeat([]byte{seed}, 16), Host: fmt.Sprintf("h%d", seed), GossipPort: 1, ControlPort: 2, DataPort: 3, Level: 1, Version: "v"}
}

func id16(b byte) []byte { return bytes.Repeat([]byte{b}, 16) }

func hash(s string) []byte { h := sha256.Sum256([]byte(s)); return h[:] }

// machine applies commands with made-up request ids.
type machine struct {
	*State
	t     *testing.T
	index uint64
	now   time.Time
}

func newMachine(t *testing.T) *machine { return &machine{State: New(), t: t, now: t0} }

func (m *machine) do(actor string, body proto.Message) (command.Result, error) {
	m.t.Helper()
	m.index++
	env, err := command.New(actor, m.now, body)
	if err != nil {
		m.t.Fatal(err)
	}
	env.RequestId = binary.BigEndian.AppendUint64(make([]byte, 8), m.index)
	return m.Apply(m.index, env)
}

func (m *machine) must(body proto.Message) int64 {
	m.t.Helper()
	res, err := m.do("user:admin", body)
	if err != nil {
		m.t.Fatalf("%T: %v", body, err)
	}
	return res.ID
}

func meshCreate() *command.MeshCreate {
	return &command.MeshCreate{MeshId: id16(9), Site: "ams", Node: node(1), LibraryProjectId: id16(8), AdminPasswordHash: "$argon2id$admin", RaftGeneration: id16(7)}
}

// built is a machine with something of everything.
func built(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.must(meshCreate())
	tok := m.must(&command.TokenCreate{Site: "fra", SecretHash: hash("s"), ExpiresUnixNs: t0.Add(time.Hour).UnixNano()})
	m.must(&command.NodeJoin{TokenId: tok, SecretHash: hash("s"), Site: "fra", Node: node(2)})
	m.must(&command.TokenCreate{Site: "sgp", SecretHash: hash("u"), ExpiresUnixNs: t0.Add(time.Hour).UnixNano()})
	ann := m.must(&command.UserCreate{Name: "ann", PasswordHash: "$argon2id$ann", Email: "ann@example.org"})
	prod := m.must(&command.ProjectCreate{ProjectId: id16(1), Name: "prod", OwnerId: ann, Sites: []string{"fra", "ams", "fra"}})
	m.must(&command.MemberSet{ProjectId: prod, UserId: 2, Role: int32(Guest)})
	gone := m.must(&command.ProjectCreate{ProjectId: id16(2), Name: "gone"})
	m.must(&command.ProjectDelete{Id: gone})
	m.must(&command.RuleCreate{Rule: &command.Rule{Name: "everywhere", Projects: []string{"prod"}, AllSites: true}})
	m.must(&command.KeyStep{Kind: command.KeyKind_KEY_KIND_MESH, Version: 1, Step: command.KeyStep_STEP_ADD,
		Boxes: []*command.KeyBox{{NodeId: node(1).Id, Box: id16(1)}, {NodeId: node(2).Id, Box: id16(2)}}})
	m.must(&command.SecretSet{Object: "ldap", Field: "bind_password", Sealed: sealedWith(1)})
	m.must(&command.RecoverySet{Recipient: "age1x"})
	if _, err := m.do("user:admin", &command.ProjectCreate{ProjectId: id16(3), Name: "prod"}); err == nil {
		t.Fatal("second prod")
	}
	return m
}

func TestMeshCreate(t *testing.T) {
	m := newMachine(t)
	if _, err := m.do("system", &command.SetLevel{Level: 2}); !errors.Is(err, errNoMesh) {
		t.Fatal(err)
	}
	m.must(meshCreate())
	v := m.View()
	if v.Mesh().ID != (identity.MeshID)(id16(9)) || v.Mesh().Profile != "lan" || v.Mesh().Level != 1 || !v.Mesh().CreatedAt.Equal(t0) {
		t.Errorf("mesh: %+v", v.Mesh())
	}
	if p, ok := v.Project("library"); !ok || !p.Public {
		t.Errorf("library: %+v, %v", p, ok)
	}
	admin, ok := v.User("ADMIN")
	if !ok || !admin.Admin || admin.Name != "admin" {
		t.Errorf("admin: %+v, %v", admin, ok)
	}
	p, _ := v.Project("library")
	if mem, ok := v.Member(p.ID, admin.ID); !ok || mem.Role != ProjectAdmin || mem.UserName != "admin" {
		t.Errorf("admin's role in library: %+v, %v", mem, ok)
	}
	if _, err := m.do("system", meshCreate()); !errors.Is(err, &command.Error{Code: command.CodeExists}) {
		t.Errorf("second mesh: %v", err)
	}
	if s := v.ContentSites(); len(s) != 1 || s[0].Name != "ams" || len(v.NodesOf("ams")) != 1 {
		t.Errorf("sites: %+v", s)
	}
}

func TestRequest_IsAppliedOnce_AndForgottenAtLast(t *testing.T) {
	m := newMachine(t)
	m.must(meshCreate())
	env, err := command.New("user:admin", t0, &command.UserCreate{Name: "ann", PasswordHash: "x"})
	if err != nil {
		t.Fatal(err)
	}
	refused, err := command.New("user:admin", t0, &command.UserDelete{Id: 999})
	if err != nil {
		t.Fatal(err)
	}
	first, err := m.Apply(100, env)
	if err != nil {
		t.Fatal(err)
	}
	_, no := m.Apply(101, refused)
	again, err := m.Apply(102, env)
	if err != nil || again.ID != first.ID || again.Index != 102 {
		t.Fatalf("%+v, %v", again, err)
	}
	if _, err := m.Apply(103, refused); err == nil || err.Error() != no.Error() {
		t.Fatalf("%v, want %v", err, no)
	}
	m.index = 200
	for i := range maxRequests + 10 {
		_, _ = m.do("user:admin", &command.UserDelete{Id: int64(1000 + i)})
	}
	if n := len(m.View().requests); n != maxRequests || len(m.answers) != n {
		t.Fatalf("%d answers are remembered, want %d", n, maxRequests)
	}
	if _, err := m.Apply(m.index+1, env); !errors.Is(err, &command.Error{Code: command.CodeExists}) {
		t.Fatalf("a forgotten request: %v", err)
	}
}

func TestApply_OldIndex_Stops(t *testing.T) {
	m := built(t)
	env, err := command.New("system", t0, &command.SetLevel{Level: 1})
	if err != nil {
		t.Fatal(err)
	}
	var refusal *command.Error
	if _, err := m.Apply(1, env); err == nil || errors.As(err, &refusal) {
		t.Fatal(err)
	}
}

func TestView_IsImmutable_AndChangedFires(t *testing.T) {
	m := built(t)
	before, changed := m.View(), m.Changed()
	dump := rows(t, before)
	m.must(&command.UserCreate{Name: "bob", PasswordHash: "x"})
	if _, ok := before.User("bob"); ok || rows(t, before) != dump {
		t.Fatal("an old view changed")
	}
	select {
	case <-changed:
	default:
		t.Fatal("Changed did not fire")
	}
}

// TestApply_IsDeterministic: two machines that are given the same commands are
// the same, to the byte.
func TestApply_IsDeterministic(t *testing.T) {
	var dumps [2]bytes.Buffer
	for i := range dumps {
		if err := built(t).View().Snapshot(&dumps[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(dumps[0].Bytes(), dumps[1].Bytes()) {
		t.Fatal("the same commands gave two states")
	}
}

// TestState_ReadsNothingFromOutside: a clock, a random number, a file or an
// address would make each node's state its own.
func TestState_ReadsNothingFromOutside(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			path := strings.Trim(imp.Path.Value, `"`)
			for _, no := range []string{"math/rand", "math/rand/v2", "crypto/rand", "os", "net", "runtime", "github.com/google/uuid"} {
				if path == no {
					t.Errorf("%s imports %s: values from outside must arrive in the commands", name, path)
				}
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "After", "Sleep", "NewTimer", "NewTicker", "Tick", "AfterFunc", "Local"}, sel.Sel.Name) {
					t.Errorf("%s uses time.%s: times must arrive in the commands", name, sel.Sel.Name)
				}
			}
			return true
		})
	}
}
