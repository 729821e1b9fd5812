package apitest

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// AdminPassword is that of the first user, admin.
const AdminPassword = "Harbour-1234"

// Mesh is a control plane of one process.
type Mesh struct {
	State    *state.State
	Access   *access.Access
	Identity *identity.Identity
	// Site is the first site's name.
	Site string

	tb    testing.TB
	mu    sync.Mutex
	index uint64
	down  *command.Unavailable
	// late are edits made elsewhere that are not here yet.
	late []late
}

type late struct {
	index uint64
	env   *command.Envelope
}

// New makes a mesh with the sites given, one node each; Identity is the first
// site's.
func New(tb testing.TB, sites ...string) *Mesh {
	tb.Helper()
	if len(sites) == 0 {
		sites = []string{"fra"}
	}
	m := &Mesh{State: state.New(), Site: sites[0], tb: tb}
	var node *command.Node
	m.Identity, node = NewNode(tb, 7000)
	hash, err := access.HashPassword(AdminPassword)
	if err != nil {
		tb.Fatal(err)
	}
	mesh, library := identity.NewMeshID(), identity.NewProjectID()
	m.Must(&command.MeshCreate{MeshId: mesh[:], Site: sites[0], Node: node, LibraryProjectId: library[:],
		AdminPasswordHash: hash, RaftGeneration: random(16), Keys: boxes()})
	for i, s := range sites[1:] {
		m.AddSite(s, 7010+10*i)
	}
	m.Access, err = access.New(access.Config{View: m.State.View, Identity: m.Identity, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

// boxes are as the state sees a node's keys: it never opens one.
func boxes() []*command.NodeKey {
	return []*command.NodeKey{{Kind: command.KeyKind_KEY_KIND_GOSSIP, Version: 1, Box: random(80)}, {Kind: command.KeyKind_KEY_KIND_MESH, Version: 1, Box: random(80)}}
}

// NewNode makes a key and the record that a node would join with. Its ports are
// control, the one above and the one below.
func NewNode(tb testing.TB, control int) (*identity.Identity, *command.Node) {
	tb.Helper()
	id, _, err := identity.LoadOrCreate(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	box, signature := id.BoxKey()
	store := identity.NewStoreID()
	return id, &command.Node{Id: id.ID[:], BoxKey: box[:], BoxSignature: signature, StoreId: store[:], Host: "127.0.0.1",
		GossipPort: uint32(control - 1), ControlPort: uint32(control), DataPort: uint32(control + 1),
		RegistryUrl: fmt.Sprintf("http://127.0.0.1:%d", control-2), Level: command.Level, Version: "test"}
}

// AddSite joins a site, by a token as a real one would.
func (m *Mesh) AddSite(name string, control int) identity.NodeID {
	m.tb.Helper()
	id, node := NewNode(m.tb, control)
	secret := random(32)
	token := m.Must(&command.TokenCreate{Site: name, SecretHash: secret, ExpiresUnixNs: time.Now().Add(time.Hour).UnixNano()})
	m.Must(&command.NodeJoin{TokenId: token.ID, SecretHash: secret, Site: name, Node: node, Keys: boxes()})
	m.Must(&command.TokenDelete{Id: token.ID})
	return id.ID
}

// AddWitness joins a site that has no content.
func (m *Mesh) AddWitness(name string, control int) identity.NodeID {
	m.tb.Helper()
	id, node := NewNode(m.tb, control)
	node.Witness, node.StoreId, node.DataPort = true, nil, 0
	secret := random(32)
	token := m.Must(&command.TokenCreate{Site: name, SecretHash: secret, ExpiresUnixNs: time.Now().Add(time.Hour).UnixNano()})
	m.Must(&command.NodeJoin{TokenId: token.ID, SecretHash: secret, Site: name, Node: node, Keys: boxes()[:1]})
	m.Must(&command.TokenDelete{Id: token.ID})
	return id.ID
}

// Propose applies a command. It is what a consensus node does for the APIs.
func (m *Mesh) Propose(_ context.Context, actor string, body proto.Message) (command.Result, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		return command.Result{}, m.down
	}
	env, err := command.New(actor, time.Now(), body)
	if err != nil {
		return command.Result{}, err
	}
	if err := m.arrive(); err != nil {
		return command.Result{}, err
	}
	m.index++
	return m.State.Apply(m.index, env)
}

// Elsewhere makes an edit at another node: it is not here before CatchUp, or an
// edit here.
func (m *Mesh) Elsewhere(actor string, body proto.Message) {
	m.tb.Helper()
	env, err := command.New(actor, time.Now(), body)
	if err != nil {
		m.tb.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	m.late = append(m.late, late{m.index, env})
}

func (m *Mesh) arrive() error {
	for _, l := range m.late {
		if _, err := m.State.Apply(l.index, l.env); err != nil {
			return err
		}
	}
	m.late = nil
	return nil
}

// CatchUp implements rest.Replica.
func (m *Mesh) CatchUp(context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down != nil {
		u := *m.down
		u.Read = true
		return 0, &u
	}
	if err := m.arrive(); err != nil {
		return 0, err
	}
	return m.State.View().Index(), nil
}

// Staleness implements rest.Replica: the leader was heard a quarter of a second ago.
func (m *Mesh) Staleness() (uint64, time.Duration) {
	return m.State.View().Index(), 250 * time.Millisecond
}

// Lose makes every edit fail as if these sites could not be reached; nil brings
// the majority back.
func (m *Mesh) Lose(sites []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = nil
	if sites != nil {
		m.down = &command.Unavailable{Reason: "no majority of the voters can be reached", Sites: sites, RetryAfter: 1500 * time.Millisecond}
	}
}

// Must applies a command of the mesh's own.
func (m *Mesh) Must(body proto.Message) command.Result {
	m.tb.Helper()
	r, err := m.Propose(context.Background(), "system", body)
	if err != nil {
		m.tb.Fatalf("%T: %v", body, err)
	}
	return r
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (Go 1.24)
	return b
}

// OpenCatalog opens a catalogue of its own, closed at the test's end.
func OpenCatalog(tb testing.TB) *catalog.Catalog {
	tb.Helper()
	c, err := catalog.Open(tb.TempDir(), catalog.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Errorf("close the catalogue: %v", err)
		}
	})
	return c
}

// Push puts a small manifest into the catalogue under tags, as a push of the
// image would, and gives its digest. Equal texts are equal manifests.
func (m *Mesh) Push(c *catalog.Catalog, project, repo, text string, tags ...string) digest.Digest {
	m.tb.Helper()
	p, ok := m.State.View().Project(project)
	if !ok {
		m.tb.Fatalf("no project %s", project)
	}
	body := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"annotations":{"text":%q}}`, v1.MediaTypeImageManifest, text)
	d := digest.FromString(body)
	layer := digest.FromString(text)
	_, err := c.PutManifest(context.Background(), catalog.Put{PID: p.PID, Repo: repo, Digest: d, MediaType: v1.MediaTypeImageManifest,
		Size: int64(len(body)), Bytes: []byte(body), Refs: []catalog.Ref{{Digest: layer, Size: int64(len(text)), Kind: catalog.RefBlob}},
		Tags: tags, Home: m.Site, Actor: "user:admin", ACLIndex: m.State.View().Index()})
	if err != nil {
		m.tb.Fatalf("push %s/%s: %v", project, repo, err)
	}
	return d
}

// Answer is what a server said.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Call sends a request as user ("": nobody) with AdminPassword, which is
// everybody's here; body is sent as JSON unless it is "".
func Call(tb testing.TB, h http.Handler, user, method, path, body string) Answer {
	tb.Helper()
	return CallWith(tb, h, nil, user, method, path, body)
}

// CallWith is Call with headers.
func CallWith(tb testing.TB, h http.Handler, header map[string]string, user, method, path, body string) Answer {
	tb.Helper()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	r := httptest.NewRequestWithContext(context.Background(), method, path, content)
	r.Header.Set("Content-Type", "application/json")
	for k, v := range header {
		r.Header.Set(k, v)
	}
	if user != "" {
		r.SetBasicAuth(user, AdminPassword)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return Answer{Status: w.Code, Header: w.Header(), Body: w.Body.String()}
}

// Tags is a catalogue that keeps conditions, as what decides over strong tags does.
type Tags struct{ *catalog.Catalog }

// DeleteTag implements mesh.Catalog.
func (t Tags) DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag string, match []digest.Digest, actor string, aclIndex uint64) error {
	if len(match) > 0 {
		said, err := t.Tag(pid, repo, tag)
		if err != nil {
			return err
		}
		if !slices.Contains(match, said.Digest) {
			return rest.Precondition("the tag does not say what the request expects: the tag %s says %s: look again, and repeat", tag, said.Digest)
		}
	}
	return t.Catalog.DeleteTag(ctx, pid, repo, tag, actor, aclIndex)
}
