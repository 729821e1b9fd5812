package backup

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// member makes a node's key and record.
func member(t testing.TB) (*identity.Identity, *command.Node) {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	box, sig := id.BoxKey()
	store := identity.NewStoreID()
	return id, &command.Node{Id: id.ID[:], BoxKey: box[:], BoxSignature: sig, StoreId: store[:], Host: "h", GossipPort: 1, ControlPort: 2, DataPort: 3, Level: command.Level, Version: "v"}
}

// source is a state with something of what lasts, its mesh key, and a recovery key.
func source(t testing.TB) (s Source, private, public string) {
	t.Helper()
	st := state.New()
	index := uint64(0)
	must := func(body proto.Message) {
		t.Helper()
		env, err := command.New("user:admin", now, body)
		if err != nil {
			t.Fatal(err)
		}
		index++
		if _, err := st.Apply(index, env); err != nil {
			t.Fatalf("%T: %v", body, err)
		}
	}
	_, rec := member(t)
	mesh, pid := identity.NewMeshID(), identity.NewProjectID()
	must(&command.MeshCreate{MeshId: mesh[:], Site: "ams", Node: rec, LibraryProjectId: pid[:], AdminPasswordHash: "$argon2id$x", RaftGeneration: make([]byte, 16),
		Keys: []*command.NodeKey{{Kind: command.KeyKind_KEY_KIND_MESH, Version: 1, Box: []byte{1}}}})
	key := secrets.NewKey()
	place := secrets.Place{Object: "ldap", Field: "bind_password"}
	sealed, err := secrets.Seal(key, 1, place, []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	must(&command.SecretSet{Object: place.Object, Field: place.Field, Sealed: sealed})
	for _, name := range []string{"ann", "bob"} {
		must(&command.UserCreate{Name: name, PasswordHash: "$argon2id$" + name, Comment: strings.Repeat("x", 500)})
	}
	must(&command.RuleCreate{Rule: &command.Rule{Name: "all", Projects: []string{"*"}, AllSites: true}})
	if private, public, err = NewKey(); err != nil {
		t.Fatal(err)
	}
	must(&command.RecoverySet{Recipient: public})
	return Source{View: st.View(), MeshKeys: map[uint32]secrets.Key{1: key}, Site: "ams", Version: "test", Now: now}, private, public
}

func written(t testing.TB, s Source, public string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, public, s); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBackup_ComesBack(t *testing.T) {
	s, private, public := source(t)
	file := written(t, s, public)
	mesh := s.View.Mesh().ID
	for _, clear := range []string{"ann", "hunter2", "argon2id", string(mesh[:])} {
		if bytes.Contains(file, []byte(clear)) {
			t.Errorf("%q is there in the clear", clear)
		}
	}
	b, err := Read(bytes.NewReader(file), private)
	if err != nil {
		t.Fatal(err)
	}
	if b.Mesh != s.View.Mesh().ID || b.Index != s.View.Index() || b.Site != "ams" || b.Version != "test" || !b.Made.Equal(now) || b.Level != 1 {
		t.Errorf("%+v", b)
	}
	if c := b.Counts(); c != (Counts{Sites: 1, Users: 3, Projects: 1, Members: 1, Rules: 1, Secrets: 1}) {
		t.Errorf("%+v", c)
	}
	id, rec := member(t)
	mesh = identity.NewMeshID()
	st, err := b.Renew(state.Renewal{Mesh: mesh, Now: now, Site: "osl", Node: rec})
	if err != nil {
		t.Fatal(err)
	}
	k, ok := st.View().Key(command.KeyKind_KEY_KIND_MESH, 1)
	if !ok {
		t.Fatal("the mesh key did not come along")
	}
	box, _ := k.Box(id.ID)
	key, err := secrets.OpenBox(id, secrets.Label{Mesh: mesh, Kind: uint32(command.KeyKind_KEY_KIND_MESH), Version: 1}, box)
	if err != nil || key != s.MeshKeys[1] {
		t.Errorf("the mesh key's box: %v", err)
	}
	if u, ok := st.View().User("ann"); !ok || u.PasswordHash != "$argon2id$ann" {
		t.Errorf("ann: %+v", u)
	}
}

// TestRead_RefusesAllButTheWholeFile: cut anywhere, changed anywhere, prolonged.
func TestRead_RefusesAllButTheWholeFile(t *testing.T) {
	s, private, public := source(t)
	file := written(t, s, public)
	for n := range len(file) {
		if _, err := Read(bytes.NewReader(file[:n]), private); err == nil {
			t.Fatalf("cut to %d of %d bytes it is taken", n, len(file))
		}
		bad := bytes.Clone(file)
		bad[n] ^= 0x20
		if b, err := Read(bytes.NewReader(bad), private); err == nil {
			t.Fatalf("with byte %d changed it is taken: %+v", n, b)
		}
	}
	if _, err := Read(bytes.NewReader(append(bytes.Clone(file), 0)), private); !errors.Is(err, ErrDamaged) {
		t.Errorf("prolonged: %v", err)
	}
	if _, err := Read(bytes.NewReader(append(bytes.Clone(file), file...)), private); !errors.Is(err, ErrDamaged) {
		t.Errorf("twice: %v", err)
	}
}

func TestRead_SaysWhatIsWrong(t *testing.T) {
	s, private, public := source(t)
	file := written(t, s, public)
	other, _, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	newer := func(h *Header, items ...*Item) []byte {
		return sealed(t, public, append([]proto.Message{h}, messages(items)...)...)
	}
	head := func(format, level uint32) *Header {
		id := identity.NewMeshID()
		return &Header{Format: format, Level: level, MeshId: id[:], Version: "9.0"}
	}
	for _, c := range []struct {
		name string
		file []byte
		key  string
		want error
		says string
	}{
		{"another key", file, other, ErrWrongKey, "another recovery key"},
		{"a text", []byte("hello"), private, ErrNotBackup, "not a backup"},
		{"nothing", nil, private, ErrNotBackup, "not a backup"},
		{"cut", file[:len(file)-1], private, ErrDamaged, "damaged"},
		{"a cut head", file[:30], private, ErrDamaged, "damaged"},
		{"a newer format", newer(head(2, 1)), private, ErrNewer, "9.0, format 2"},
		{"a newer level", newer(head(1, command.Level+1)), private, ErrNewer, "newer version"},
		{"an item of a newer kind", newer(head(1, 1), &Item{}), private, ErrNewer, "newer version"},
		{"no format", newer(&Header{}), private, ErrNotBackup, "no format"},
		{"no end", newer(head(1, 1)), private, ErrDamaged, "unexpected EOF"},
		{"fewer items than it says", newer(head(1, 1), &Item{Item: &Item_End{&End{Items: 3}}}), private, ErrDamaged, "0 items, not 3"},
		{"more after its end", newer(head(1, 1), &Item{Item: &Item_End{&End{}}}, &Item{Item: &Item_End{&End{}}}), private, ErrDamaged, "more after its end"},
		{"a short mesh key", newer(head(1, 1), &Item{Item: &Item_MeshKey{&MeshKey{Version: 1, Key: []byte{1}}}}), private, ErrDamaged, "mesh key of 1 bytes"},
	} {
		_, err := Read(bytes.NewReader(c.file), c.key)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && strings.Contains(err.Error(), "AGE-SECRET") {
			t.Errorf("%s shows the key: %v", c.name, err)
		}
	}
}

func messages(items []*Item) (out []proto.Message) {
	for _, it := range items {
		out = append(out, it)
	}
	return out
}

// sealed makes a file of any messages.
func sealed(t testing.TB, public string, msgs ...proto.Message) []byte {
	t.Helper()
	to, err := age.ParseX25519Recipient(public)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range msgs {
		if _, err := protodelim.MarshalTo(w, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWrite_FailsWithItsWriter(t *testing.T) {
	s, _, public := source(t)
	whole := len(written(t, s, public))
	for n := 0; n < whole; n += 97 {
		if err := Write(&full{left: n}, public, s); !errors.Is(err, errFull) {
			t.Fatalf("a writer that takes %d of %d bytes: %v", n, whole, err)
		}
	}
	if err := Write(io.Discard, "age1nonsense", s); err == nil {
		t.Error("a recipient that is none")
	}
}

var errFull = errors.New("full")

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if len(p) > f.left {
		return 0, errFull
	}
	f.left -= len(p)
	return len(p), nil
}

func TestReadKey(t *testing.T) {
	private, public, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckRecipient(public); err != nil {
		t.Error(err)
	}
	if err := CheckRecipient(private); err == nil {
		t.Error("a private half is taken for a public one")
	}
	for _, text := range []string{private, "# of mesh x\n\n" + private + "\n", "  " + private + "  \r\n"} {
		if got, err := ReadKey(strings.NewReader(text)); err != nil || got != private {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"", "#", public, private + "\n" + private, private[:40], strings.Repeat("#", maxKeyFile) + "\n" + private} {
		if _, err := ReadKey(strings.NewReader(text)); err == nil {
			t.Errorf("%d bytes are taken", len(text))
		} else if strings.Contains(err.Error(), private[20:40]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

// FuzzRead: no file makes Read do anything but refuse or give a whole backup.
func FuzzRead(f *testing.F) {
	s, private, public := source(f)
	file := written(f, s, public)
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add([]byte(ageMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Read(bytes.NewReader(b), private); err == nil && !bytes.Equal(b, file) {
			t.Fatal("a file that nobody wrote is taken")
		}
	})
}

// FuzzPayload: nor does anything that somebody with the public half seals.
func FuzzPayload(f *testing.F) {
	s, private, public := source(f)
	id, err := age.ParseX25519Identity(private)
	if err != nil {
		f.Fatal(err)
	}
	r, err := age.Decrypt(bytes.NewReader(written(f, s, public)), id)
	if err != nil {
		f.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	f.Add(plain[:len(plain)-2])
	f.Add([]byte{0})
	_, rec := member(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := read(newBounded(bytes.NewReader(b)))
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) && !errors.Is(err, ErrNotBackup) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		got.Counts()
		st, err := got.Renew(state.Renewal{Mesh: identity.NewMeshID(), Now: now, Site: "osl", Node: rec})
		if err != nil {
			return
		}
		// What was taken can be written, and read back.
		var snap bytes.Buffer
		if err := st.View().Snapshot(&snap); err != nil {
			t.Fatal(err)
		}
		if err := state.New().Restore(&snap); err != nil {
			t.Fatal(err)
		}
	})
}
