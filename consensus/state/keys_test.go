package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/node/identity"
)

const (
	gossipKind = command.KeyKind_KEY_KIND_GOSSIP
	meshKind   = command.KeyKind_KEY_KIND_MESH
)

// sealedWith is what a value that a version has sealed looks like.
func sealedWith(version byte) []byte {
	b := make([]byte, secrets.Overhead)
	b[0] = 1
	binary.BigEndian.PutUint32(b[1:], uint32(version))
	return b
}

// TestDiscloseKeys: a node that is removed can open nothing any more, and new
// keys are due, whatever step a rotation is at.
func TestDiscloseKeys(t *testing.T) {
	m := built(t)
	box := func(ids ...byte) (out []*command.KeyBox) {
		for _, id := range ids {
			out = append(out, &command.KeyBox{NodeId: node(id).Id, Box: id16(id)})
		}
		return out
	}
	for v := uint32(1); v <= 2; v++ {
		m.must(&command.KeyStep{Kind: gossipKind, Version: v, Step: command.KeyStep_STEP_ADD, Boxes: box(1, 2)})
	}
	before := m.View()
	if st := before.KeyState(); st.GossipDue || st.MeshDue {
		t.Fatalf("due before: %+v", st)
	}
	after := *before
	gone := identity.NodeID(node(2).Id)
	after.discloseKeys(gone)
	if st := after.KeyState(); !st.GossipDue || !st.MeshDue || st.GossipRevision != before.KeyState().GossipRevision {
		t.Errorf("after: %+v", st)
	}
	for _, k := range slices.Concat(after.Keys(gossipKind), after.Keys(meshKind)) {
		if _, ok := k.Box(gone); ok {
			t.Errorf("a box of %s %d is left", KeyName(k.Kind), k.Version)
		}
		if _, ok := k.Box(identity.NodeID(node(1).Id)); !ok {
			t.Errorf("another's box of %s %d is gone", KeyName(k.Kind), k.Version)
		}
		// Views that are being read keep theirs.
		if old, _ := before.Key(k.Kind, k.Version); old.Boxes() != 2 {
			t.Errorf("the view before has lost a box of %s %d", KeyName(k.Kind), k.Version)
		}
	}
}

func TestKeys_MeshVersionsAreBounded(t *testing.T) {
	m := built(t)
	m.must(&command.KeyStep{Kind: gossipKind, Version: 1, Step: command.KeyStep_STEP_ADD, Boxes: []*command.KeyBox{{NodeId: node(1).Id, Box: id16(1)}}})
	add := func(v uint32) error {
		_, err := m.do("node:x", &command.KeyStep{Kind: meshKind, Version: v, Step: command.KeyStep_STEP_ADD, Boxes: []*command.KeyBox{{NodeId: node(1).Id, Box: id16(1)}}})
		return err
	}
	for v := uint32(2); v <= MaxMeshKeys; v++ {
		if err := add(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(MaxMeshKeys + 1); !errors.Is(err, &command.Error{Code: command.CodeConflict}) {
		t.Errorf("one more: %v", err)
	}
}

func renewal(index uint64) Renewal {
	return Renewal{Mesh: identity.MeshID(id16(42)), Generation: [16]byte(id16(43)), Index: index, Now: t0.Add(48 * time.Hour), Site: "osl", Node: node(7),
		Keys: []*command.NodeKey{{Kind: meshKind, Version: 1, Box: id16(44)}}}
}

func TestRenew_KeepsWhatLasts(t *testing.T) {
	m := built(t)
	fra, _ := m.View().Site("fra")
	m.must(&command.SiteDrain{Id: fra.ID, Drain: true})
	m.must(&command.MeshRecovered{Generation: id16(77), NodeId: m.View().Nodes()[0].ID[:]})
	old := m.View()
	s, err := Renew(old.Lasting, renewal(old.Index()))
	if err != nil {
		t.Fatal(err)
	}
	v := s.View()
	// Rows as they were, ids and versions included.
	want, got := lastingRows(old.Lasting), lastingRows(v.Lasting)
	for _, row := range want {
		if !slices.Contains(got, row) {
			t.Errorf("lost: %s", row)
		}
	}
	for _, row := range got {
		if !slices.Contains(want, row) && !strings.Contains(row, `"osl"`) {
			t.Errorf("made up: %s", row)
		}
	}
	if ms := v.Mesh(); ms.ID == old.Mesh().ID || ms.Generation == old.Mesh().Generation || v.Index() != old.Index()+RenewedIndexes {
		t.Errorf("mesh %+v at %d", ms, v.Index())
	}
	nodes := v.Nodes()
	if len(nodes) != 1 || nodes[0].Site != "osl" || len(v.Tokens()) != 0 || len(v.Sites()) != 3 {
		t.Errorf("nodes %v, tokens %v, sites %v", nodes, v.Tokens(), v.Sites())
	}
	if st := v.KeyState(); !st.GossipDue || !st.MeshDue || st.Recovery != "age1x" || len(v.Keys(gossipKind)) != 0 {
		t.Errorf("keys: %+v", st)
	}
	if !v.Clock().Equal(t0.Add(48 * time.Hour)) {
		t.Errorf("clock %s", v.Clock())
	}
	// The view that the backup was made of is as it was.
	if old.Mesh().Generation == [16]byte{} {
		t.Error("the old view has lost its generation")
	}
	// It lives on: a site of the old mesh joins again, under its old id.
	r := &machine{State: s, t: t, index: v.Index(), now: t0.Add(49 * time.Hour)}
	ams, _ := old.Site("ams")
	tok := r.must(&command.TokenCreate{Site: "ams", SecretHash: hash("again"), ExpiresUnixNs: r.now.Add(time.Hour).UnixNano()})
	if id := r.must(&command.NodeJoin{TokenId: tok, SecretHash: hash("again"), Site: "ams", Node: node(8)}); id != ams.ID {
		t.Errorf("site ams has id %d, not %d", id, ams.ID)
	}
	if _, err := r.do("user:admin", &command.ProjectCreate{ProjectId: id16(60), Name: "gone"}); err == nil {
		t.Error("the name of a deleted project is free")
	}
	// What drained, and what was recovered, was of the old mesh; a site that nobody
	// joins as can be removed.
	if s, ok := v.Site("fra"); !ok || s.Draining() || len(v.Mesh().Recoveries) > 0 {
		t.Errorf("site %+v, recoveries %v", s, v.Mesh().Recoveries)
	}
	r.must(&command.SiteRemove{Id: fra.ID})
	if _, ok := r.View().Site("fra"); ok {
		t.Error("a site without nodes stays")
	}
	var b bytes.Buffer
	if err := s.View().Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	if err := New().Restore(&b); err != nil {
		t.Errorf("its snapshot: %v", err)
	}
}

func lastingRows(rows iter.Seq[*Record]) (out []string) {
	for rec := range rows {
		if rec.GetMesh() == nil {
			out = append(out, compact(rec))
		}
	}
	return out
}

func TestRenew_Refusals(t *testing.T) {
	m := built(t)
	rows := slices.Collect(m.View().Lasting)
	try := func(rows []*Record, change func(*Renewal)) error {
		r := renewal(m.View().Index())
		change(&r)
		_, err := Renew(slices.Values(rows), r)
		return err
	}
	same := func(*Renewal) {}
	newer := slices.Collect(m.View().Lasting)
	newer[0].GetMesh().Level = command.Level + 1
	var unsupported *UnsupportedError
	for _, c := range []struct {
		name string
		err  error
		says string
	}{
		{"no mesh", try(rows[1:], same), "no mesh"},
		{"two meshes", try(append(slices.Clone(rows), rows[0]), same), "two meshes"},
		{"a node", try(append(slices.Clone(rows), &Record{Row: &Record_Node{&NodeRow{Node: node(1), SiteId: 1}}}), same), "Node"},
		{"a secret without its key", try(rows, func(r *Renewal) { r.Keys = nil }), "ldap bind_password"},
		{"a site name that is none", try(rows, func(r *Renewal) { r.Site = "O S L" }), "not a site name"},
		{"a node of a lower level", try(rows, func(r *Renewal) { r.Node.Level = 0 }), "level"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, c.err)
		}
	}
	if err := try(newer, same); !errors.As(err, &unsupported) {
		t.Errorf("a newer level: %v", err)
	}
	if err := try(append(slices.Clone(rows), &Record{}), same); !errors.As(err, &unsupported) {
		t.Errorf("a row of another kind: %v", err)
	}
}

func TestSameKeys(t *testing.T) {
	m := built(t)
	seen := m.View()
	m.must(&command.UserCreate{Name: "carl", PasswordHash: "x"})
	if !m.View().SameKeys(seen) {
		t.Error("an edit of something else is taken for one of the keys")
	}
	for _, body := range []proto.Message{&command.KeysRotate{Mesh: true}, &command.NodeUpdate{Node: node(2)},
		&command.SecretSet{Object: "ldap", Field: "bind_password"},
		&command.KeyStep{Kind: meshKind, Version: 2, Step: command.KeyStep_STEP_ADD, Boxes: []*command.KeyBox{{NodeId: node(1).Id, Box: id16(1)}}},
		&command.KeyStep{Kind: meshKind, Version: 2, Step: command.KeyStep_STEP_BOX, Boxes: []*command.KeyBox{{NodeId: node(2).Id, Box: id16(2)}}}} {
		before := m.View()
		m.must(body)
		if m.View().SameKeys(before) {
			t.Errorf("%T is not noticed", body)
		}
	}
}
