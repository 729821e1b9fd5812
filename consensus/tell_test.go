package consensus

import (
	"bytes"
	"crypto/sha256"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// teller is a state machine that writes its lines down, and the log that led to
// where it is.
type teller struct {
	t       *testing.T
	fsm     *fsm
	out     bytes.Buffer
	entries []*raft.Log
}

func newTeller(t *testing.T) *teller {
	t.Helper()
	w := &teller{t: t, fsm: testFSM(t)}
	w.fsm.log = slog.New(slog.NewTextHandler(&w.out, nil))
	return w
}

// do applies commands as one batch, and gives what was told of them.
func (w *teller) do(actor string, bodies ...proto.Message) string {
	w.t.Helper()
	var batch []*raft.Log
	for _, body := range bodies {
		env, err := command.New(actor, time.Now(), body)
		if err != nil {
			w.t.Fatal(err)
		}
		batch = append(batch, logOf(w.t, uint64(len(w.entries)+len(batch)+1), env))
	}
	w.out.Reset()
	w.fsm.ApplyBatch(batch)
	if err := w.fsm.haltedBy(); err != nil {
		w.t.Fatal(err)
	}
	w.entries = append(w.entries, batch...)
	return w.out.String()
}

func tellRecord(t *testing.T) (*command.Node, identity.NodeID) {
	t.Helper()
	id := newIdentity(t)
	store := identity.NewStoreID()
	return Record(id, &command.Node{StoreId: store[:], Host: "127.0.0.1", GossipPort: 7946, ControlPort: 7947, DataPort: 7948,
		RegistryUrl: "http://127.0.0.1:5000", Version: "test"}), id.ID
}

// mesh makes a mesh of ams and fra, and gives fra's node.
func (w *teller) mesh() (fra identity.NodeID) {
	w.t.Helper()
	first, _ := tellRecord(w.t)
	second, fra := tellRecord(w.t)
	mesh, project := identity.NewMeshID(), identity.NewProjectID()
	w.do("system", &command.MeshCreate{MeshId: mesh[:], Site: "ams", Node: first, LibraryProjectId: project[:], AdminPasswordHash: "$argon2id$x", RaftGeneration: random(16)})
	hash := sha256.Sum256([]byte("secret"))
	w.do("user:admin", &command.TokenCreate{Site: "fra", SecretHash: hash[:], ExpiresUnixNs: time.Now().Add(time.Hour).UnixNano()})
	var token int64
	for _, t := range w.fsm.state.View().Tokens() {
		token = t.ID
	}
	if said := w.do("node:"+fra.String(), &command.NodeJoin{TokenId: token, SecretHash: hash[:], Site: "fra", Node: second}); said != "" {
		w.t.Errorf("a join is told as a removal would be: %s", said)
	}
	if _, ok := w.fsm.state.View().Node(fra); !ok {
		w.t.Fatal("fra did not join")
	}
	return fra
}

func (w *teller) site(name string) state.Site {
	w.t.Helper()
	s, ok := w.fsm.state.View().Site(name)
	if !ok {
		w.t.Fatalf("no site %s", name)
	}
	return s
}

// tells wants one line that has all of these.
func tells(t *testing.T, line string, want ...string) {
	t.Helper()
	if strings.Count(line, "\n") != 1 {
		t.Errorf("%d lines instead of one: %s", strings.Count(line, "\n"), line)
	}
	for _, w := range want {
		if !strings.Contains(line, w) {
			t.Errorf("%q is not in: %s", w, line)
		}
	}
}

func TestTell_OneLineForEachThing(t *testing.T) {
	w := newTeller(t)
	fra := w.mesh()
	drain := func(on bool) proto.Message { return &command.SiteDrain{Id: w.site("fra").ID, Drain: on} }
	tells(t, w.do("user:ada", drain(true)), "a site was asked to drain", "by=user:ada", "of_site=fra")
	tells(t, w.do("user:bob", drain(false)), "drain was taken back", "by=user:bob", "of_site=fra")
	tells(t, w.do("user:ada", &command.KeysRotate{Gossip: true}), "new keys were asked for", "by=user:ada", "gossip=true", "mesh=false")
	if said := w.do("user:ada", &command.KeysRotate{}); said != "" {
		t.Errorf("a refused command is told: %s", said)
	}
	if said := w.do("user:ada", &command.UserCreate{Name: "eve", PasswordHash: "$argon2id$x"}); said != "" {
		t.Errorf("an edit that changes no member is told: %s", said)
	}
	// The name is that of before: afterwards nobody has it.
	tells(t, w.do("user:ada", &command.NodeRemove{NodeId: fra[:], Lost: true}), "a node was removed from the mesh", "by=user:ada", "of_site=fra", fra.String(), "lost=true")
	if said := w.do("user:ada", &command.NodeRemove{NodeId: fra[:]}); said != "" {
		t.Errorf("a removal of nobody is told: %s", said)
	}
}

// TestTell_ABatch: what comes together is told one by one, what is raft's own
// not at all.
func TestTell_ABatch(t *testing.T) {
	w := newTeller(t)
	w.mesh()
	id := w.site("fra").ID
	lines := w.do("user:ada", &command.SiteDrain{Id: id, Drain: true}, &command.KeysRotate{}, &command.SiteDrain{Id: id}, &command.KeysRotate{Mesh: true})
	if got := strings.Count(lines, "\n"); got != 3 || !strings.Contains(lines, "mesh=true") {
		t.Errorf("%d lines: %s", got, lines)
	}
	w.out.Reset()
	w.fsm.ApplyBatch([]*raft.Log{{Index: uint64(len(w.entries) + 1), Term: 1, Type: raft.LogConfiguration}})
	if w.out.Len() > 0 {
		t.Errorf("a configuration is told: %s", w.out.String())
	}
}

// inStores puts a log where a replay finds it, and marks its end as applied.
func inStores(t *testing.T, f *fsm, entries []*raft.Log) (*raft.InmemStore, raft.SnapshotStore) {
	t.Helper()
	logs := raft.NewInmemStore()
	if err := logs.StoreLogs(entries); err != nil {
		t.Fatal(err)
	}
	f.mark.set(uint64(len(entries)), 1)
	return logs, raft.NewInmemSnapshotStore()
}

// TestTell_ReplayIsSilent: a start tells nothing of what was told before it, be
// it in its own replay or in what raft applies once more after it.
func TestTell_ReplayIsSilent(t *testing.T) {
	w := newTeller(t)
	fra := w.mesh()
	w.do("user:ada", &command.SiteDrain{Id: w.site("fra").ID, Drain: true})
	w.do("user:ada", &command.KeysRotate{Gossip: true, Mesh: true})
	w.do("user:ada", &command.NodeRemove{NodeId: fra[:]})

	again := newTeller(t)
	logs, snaps := inStores(t, again.fsm, w.entries)
	if err := replay(again.fsm, logs, snaps, again.fsm.mark); err != nil {
		t.Fatal(err)
	}
	if got := again.fsm.state.View().Index(); got != uint64(len(w.entries)) {
		t.Fatalf("replayed up to %d of %d", got, len(w.entries))
	}
	again.fsm.ApplyBatch(w.entries)
	if again.out.Len() > 0 {
		t.Errorf("a start tells it anew: %s", again.out.String())
	}
	again.entries = w.entries
	tells(t, again.do("user:ada", &command.KeysRotate{Mesh: true}), "new keys were asked for") // what is new is told
}
