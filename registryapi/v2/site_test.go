package v2

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/registryapi/access"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is one registry with a real store and a real control state. Users:
// admin (administrator), dev and guest (members of prod and closed), stranger.
// Projects: library (public), prod, closed (private). All passwords are "pw".
type site struct {
	t     testing.TB
	state *state.State
	index uint64
	id    *identity.Identity
	store *store.Store
	dir   string // the store's
	v2    *Handler
	url   string
}

// password is hashed once: it costs tens of milliseconds.
var password = sync.OnceValues(func() (string, error) { return access.HashPassword("pw") })

func (s *site) apply(body proto.Message) int64 {
	s.t.Helper()
	env, err := command.New("system", time.Now(), body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.index++
	r, err := s.state.Apply(s.index, env)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.ID
}

func (s *site) project(name string) state.Project {
	s.t.Helper()
	p, ok := s.state.View().Project(name)
	if !ok {
		s.t.Fatalf("no project %s", name)
	}
	return p
}

func newSite(t testing.TB, edit ...func(*Config)) *site {
	t.Helper()
	hash, err := password()
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, state: state.New(), id: id, dir: t.TempDir()}
	st, err := store.Open(t.Context(), store.Config{Dir: s.dir, Identity: id, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	s.store = st

	pub, sig := id.BoxKey()
	storeID, meshID, pid, generation := st.ID(), identity.NewMeshID(), identity.NewProjectID(), make([]byte, 16)
	_, _ = rand.Read(generation)
	s.apply(&command.MeshCreate{MeshId: meshID[:], Site: "fra", RaftGeneration: generation, LibraryProjectId: pid[:], AdminPasswordHash: hash,
		Node: &command.Node{Id: id.ID[:], BoxKey: pub[:], BoxSignature: sig, StoreId: storeID[:], Host: "127.0.0.1", GossipPort: 7946, ControlPort: 7947, DataPort: 7948,
			RegistryUrl: "http://127.0.0.1:5000", Level: command.Level, Version: "test"}})
	dev := s.apply(&command.UserCreate{Name: "dev", PasswordHash: hash})
	guest := s.apply(&command.UserCreate{Name: "guest", PasswordHash: hash})
	s.apply(&command.UserCreate{Name: "stranger", PasswordHash: hash})
	for _, name := range []string{"prod", "closed"} {
		pid := identity.NewProjectID()
		p := s.apply(&command.ProjectCreate{ProjectId: pid[:], Name: name})
		s.apply(&command.MemberSet{ProjectId: p, UserId: dev, Role: int32(state.Developer)})
		s.apply(&command.MemberSet{ProjectId: p, UserId: guest, Role: int32(state.Guest)})
	}

	acc, err := access.New(access.Config{View: s.state.View, Identity: id})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{View: s.state.View, Access: acc, Store: st, Site: "fra"}
	for _, e := range edit {
		e(&cfg)
	}
	if s.v2, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle(access.TokenPath, acc.TokenHandler())
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2") {
			s.v2.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.Start()
	t.Cleanup(func() { http.DefaultClient.CloseIdleConnections(); srv.Close() })
	s.url = srv.URL
	return s
}

// exchange is one request and what came back.
type exchange struct {
	*http.Response
	body []byte
}

// do sends a request; user "" is anonymous.
func (s *site) do(user, method, path string, body io.Reader, header ...string) exchange {
	s.t.Helper()
	e, err := s.try(user, method, path, body, header...)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *site) try(user, method, path string, body io.Reader, header ...string) (exchange, error) {
	if !strings.HasPrefix(path, "http") {
		path = s.url + path
	}
	r, err := http.NewRequestWithContext(context.Background(), method, path, body)
	if err != nil {
		return exchange{}, err
	}
	if user != "" {
		r.SetBasicAuth(user, "pw")
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return exchange{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return exchange{Response: resp, body: b}, err
}

// want fails unless the status is as given.
func (e exchange) want(t testing.TB, status int) exchange {
	t.Helper()
	if e.StatusCode != status {
		t.Fatalf("%s %s: %d %s, want %d", e.Request.Method, e.Request.URL, e.StatusCode, e.body, status)
	}
	return e
}

// push puts a blob as admin.
func (s *site) push(repo string, b []byte) digest.Digest {
	s.t.Helper()
	d := digest.FromBytes(b)
	s.do("admin", "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), bytes.NewReader(b)).want(s.t, http.StatusCreated)
	return d
}

const (
	imageType = "application/vnd.oci.image.manifest.v1+json"
	indexType = "application/vnd.oci.image.index.v1+json"
)

// image makes a manifest of a config and layers that have been pushed.
func image(config []byte, layers ...[]byte) []byte {
	var list []string
	for _, l := range layers {
		list = append(list, descriptor("application/vnd.oci.image.layer.v1.tar", l))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, imageType,
		descriptor("application/vnd.oci.image.config.v1+json", config), strings.Join(list, ","))
}

func descriptor(mediaType string, b []byte) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digest.FromBytes(b), len(b))
}

func index(children ...[]byte) []byte {
	var list []string
	for _, c := range children {
		list = append(list, descriptor(imageType, c))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, indexType, strings.Join(list, ","))
}

func referrer(subject []byte, artifactType string, config []byte, note string) []byte {
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":%s,"layers":[],"subject":%s,"annotations":{"note":%q}}`,
		imageType, artifactType, descriptor("application/vnd.oci.empty.v1+json", config), descriptor(imageType, subject), note)
}

// elsewhere plays the rest of the mesh: what it holds by digest, and how it fails.
type elsewhere struct {
	content map[digest.Digest][]byte
	broken  map[digest.Digest]int // fails after that many bytes
	down    []string              // sites that cannot be reached
	asked   int

	accepted []digest.Digest
}

func (e *elsewhere) Available(_ context.Context, w Want) error {
	if _, ok := e.content[w.Digest]; ok {
		return nil
	}
	return e.missing()
}

func (e *elsewhere) missing() error {
	if len(e.down) > 0 {
		return &store.Unreachable{Sites: e.down, RetryAfter: 7 * time.Second}
	}
	return store.ErrNotFound
}

func (e *elsewhere) OpenBlob(_ context.Context, w Want) (Blob, error) {
	b, ok := e.content[w.Digest]
	if !ok {
		return nil, e.missing()
	}
	failAt, broken := e.broken[w.Digest]
	if !broken {
		failAt = -1
	}
	return &arriving{Reader: bytes.NewReader(b), failAt: int64(failAt)}, nil
}

func (e *elsewhere) Claim(_ context.Context, _ identity.ProjectID, _ string, want []Want) (Claim, error) {
	c := Claim{Unreachable: e.down}
	for _, w := range want {
		if _, ok := e.content[w.Digest]; !ok {
			c.Missing = append(c.Missing, w.Digest)
		}
	}
	return c, nil
}

func (e *elsewhere) Accepted(_ identity.ProjectID, _ string, d digest.Digest) {
	e.accepted = append(e.accepted, d)
}

func (e *elsewhere) PullProject(context.Context, identity.ProjectID) ([]string, error) {
	e.asked++
	return e.down, nil
}

var errLink = errors.New("the link does not hold")

// arriving is a blob that may fail on its way.
type arriving struct {
	*bytes.Reader
	failAt int64
}

func (a *arriving) Close() error { return nil }

func (a *arriving) Read(p []byte) (int, error) {
	pos, _ := a.Seek(0, io.SeekCurrent)
	if a.failAt >= 0 {
		if pos >= a.failAt {
			return 0, errLink
		}
		p = p[:min(int64(len(p)), a.failAt-pos)]
	}
	return a.Reader.Read(p)
}
