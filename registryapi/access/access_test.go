package access

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// mesh is a control state of one node, edited by commands as raft would.
type mesh struct {
	t     testing.TB
	state *state.State
	index uint64
	id    *identity.Identity
	now   time.Time
}

func newIdentity(t testing.TB) *identity.Identity {
	t.Helper()
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func nodeRecord(id *identity.Identity, port uint32) *command.Node {
	pub, sig := id.BoxKey()
	store := identity.NewStoreID()
	return &command.Node{Id: id.ID[:], BoxKey: pub[:], BoxSignature: sig, StoreId: store[:], Host: "127.0.0.1",
		GossipPort: port, ControlPort: port + 1, DataPort: port + 2, RegistryUrl: "http://127.0.0.1:5000", Level: command.Level, Version: "test"}
}

func newMesh(t testing.TB) *mesh {
	t.Helper()
	m := &mesh{t: t, state: state.New(), id: newIdentity(t), now: time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)}
	meshID, pid, generation := identity.NewMeshID(), identity.NewProjectID(), make([]byte, 16)
	_, _ = rand.Read(generation)
	m.apply(&command.MeshCreate{MeshId: meshID[:], Site: "fra", Node: nodeRecord(m.id, 7946), RaftGeneration: generation,
		LibraryProjectId: pid[:], AdminPasswordHash: m.hash("secret")})
	return m
}

func (m *mesh) hash(password string) string {
	m.t.Helper()
	h, err := HashPassword(password)
	if err != nil {
		m.t.Fatal(err)
	}
	return h
}

func (m *mesh) apply(body proto.Message) int64 {
	m.t.Helper()
	env, err := command.New("system", m.now, body)
	if err != nil {
		m.t.Fatal(err)
	}
	m.index++
	r, err := m.state.Apply(m.index, env)
	if err != nil {
		m.t.Fatal(err)
	}
	return r.ID
}

func (m *mesh) project(name string, public bool) int64 {
	pid := identity.NewProjectID()
	return m.apply(&command.ProjectCreate{ProjectId: pid[:], Name: name, Public: public})
}

func (m *mesh) access(proxies ...string) *Access {
	m.t.Helper()
	cfg := Config{View: m.state.View, Identity: m.id, Now: func() time.Time { return m.now }}
	for _, p := range proxies {
		cfg.TrustedProxies = append(cfg.TrustedProxies, netip.MustParsePrefix(p))
	}
	a, err := New(cfg)
	if err != nil {
		m.t.Fatal(err)
	}
	return a
}

func get(path, user, password string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "http://reg.example.com:5000"+path, nil)
	if user != "" {
		r.SetBasicAuth(user, password)
	}
	return r
}

func (m *mesh) token(a *Access, user, password string, scopes ...string) string {
	m.t.Helper()
	w := httptest.NewRecorder()
	a.TokenHandler().ServeHTTP(w, get(TokenPath+"?"+url.Values{"service": {Service}, "scope": scopes}.Encode(), user, password))
	if w.Code != http.StatusOK {
		m.t.Fatalf("token: %d %s", w.Code, w.Body)
	}
	var got tokenResponse
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		m.t.Fatal(err)
	}
	if got.Token == "" || got.Token != got.AccessToken || got.ExpiresIn < 60 {
		m.t.Fatalf("token answer %+v", got)
	}
	return got.Token
}

func bearer(token string) *http.Request {
	r := get("/v2/", "", "")
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

func TestAuthenticate(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	if s, err := a.Authenticate(get("/", "", "")); err != nil || s.Kind != Anonymous {
		t.Errorf("no credentials: %+v, %v", s, err)
	}
	if s, err := a.Authenticate(get("/", "admin", "secret")); err != nil || s.Name != "admin" || !s.Admin || s.Actor() != "user:admin" {
		t.Errorf("admin: %+v, %v", s, err)
	}
	for _, c := range [][2]string{{"admin", "wrong"}, {"nobody", "secret"}, {"admin", ""}} {
		if _, err := a.Authenticate(get("/", c[0], c[1])); !errors.Is(err, ErrCredentials) {
			t.Errorf("%v: %v, want ErrCredentials", c, err)
		}
	}
	r := get("/", "", "")
	r.Header.Set("Authorization", "Digest x")
	if _, err := a.Authenticate(r); !errors.Is(err, ErrScheme) {
		t.Errorf("digest scheme: %v, want ErrScheme", err)
	}
	if _, err := a.Authenticate(bearer(m.token(a, "admin", "secret"))); !errors.Is(err, ErrToken) {
		t.Errorf("a registry token at a management end: %v, want ErrToken", err)
	}
}

func TestAuthenticate_AfterAChangeOfPassword(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	id := m.apply(&command.UserCreate{Name: "ann", PasswordHash: m.hash("old")})
	tok := m.token(a, "ann", "old")
	if _, err := a.Authenticate(get("/", "ann", "old")); err != nil {
		t.Fatal(err)
	}
	hash := m.hash("new")
	m.apply(&command.UserUpdate{Id: id, PasswordHash: &hash})
	if _, err := a.Authenticate(get("/", "ann", "old")); !errors.Is(err, ErrCredentials) {
		t.Errorf("the old password: %v, want ErrCredentials", err)
	}
	if _, err := a.AuthenticateRegistry(bearer(tok)); !errors.Is(err, ErrToken) {
		t.Errorf("a token of the old password: %v, want ErrToken", err)
	}
	if _, err := a.Authenticate(get("/", "ann", "new")); err != nil {
		t.Errorf("the new password: %v", err)
	}
}

func TestCan(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	public, private := m.project("open", true), m.project("closed", false)
	roles := map[string]state.Role{"boss": state.ProjectAdmin, "maint": state.Maintainer, "dev": state.Developer, "guest": state.Guest, "limited": state.LimitedGuest, "stranger": 0}
	all := []Action{Pull, Push, Delete, ReadProject, ListMembers, ManageProject}
	want := map[string][]Action{
		"boss": all, "maint": {Pull, Push, Delete, ReadProject, ListMembers}, "dev": {Pull, Push, ReadProject, ListMembers},
		"guest": {Pull, ReadProject, ListMembers}, "limited": {Pull, ReadProject}, "stranger": nil,
	}
	open, _ := m.state.View().ProjectByID(public)
	closed, _ := m.state.View().ProjectByID(private)
	hash := m.hash("x")
	for name, role := range roles {
		id := m.apply(&command.UserCreate{Name: name, PasswordHash: hash})
		if role != 0 {
			m.apply(&command.MemberSet{ProjectId: private, UserId: id, Role: int32(role)})
		}
		s := Subject{Kind: User, UserID: id, Name: name}
		for _, act := range all {
			expect := false
			for _, w := range want[name] {
				expect = expect || w == act
			}
			if got := a.Can(s, closed, act); got != expect {
				t.Errorf("%s may %s in a private project: %v, want %v", name, act, got, expect)
			}
			if got := a.Can(s, open, act); got != (act == Pull || act == ReadProject) {
				t.Errorf("%s may %s in a public project of others: %v", name, act, got)
			}
		}
	}
	if a.Can(Subject{}, closed, Pull) || !a.Can(Subject{}, open, Pull) || a.Can(Subject{}, open, Push) {
		t.Error("anonymous may pull from public projects, and no more")
	}
	if !a.Can(Subject{Kind: User, UserID: 1, Admin: true}, closed, ManageProject) {
		t.Error("an administrator may everything")
	}
}

func TestChallengeAndProxies(t *testing.T) {
	m := newMesh(t)
	a := m.access("10.0.0.0/8", "fd00::/16")
	challenge := func(r *http.Request) string {
		w := httptest.NewRecorder()
		a.Challenge(w, r, "insufficient_scope", RepositoryScope("x/y", Pull, Push))
		return w.Header().Get("WWW-Authenticate")
	}
	direct := get("/v2/", "", "")
	direct.Header.Set("X-Forwarded-Host", "evil.example.com")
	direct.Header.Set("X-Forwarded-Proto", "https")
	direct.Header.Set("X-Forwarded-For", "203.0.113.9")
	want := `Bearer realm="http://reg.example.com:5000/service/token",service="portolan",scope="repository:x/y:pull,push",error="insufficient_scope"`
	if got := challenge(direct); got != want {
		t.Errorf("direct:\n%s\nwant\n%s", got, want)
	}
	if got := a.ClientAddr(direct).String(); got != "192.0.2.1" {
		t.Errorf("direct client %s", got)
	}
	proxied := direct.Clone(t.Context())
	proxied.RemoteAddr = "10.1.2.3:4567"
	proxied.Header.Set("X-Forwarded-Host", "hub.example.com")
	proxied.Header.Set("X-Forwarded-For", "198.51.100.1, 203.0.113.9, 10.9.9.9")
	if got := challenge(proxied); !strings.Contains(got, `realm="https://hub.example.com/service/token"`) {
		t.Errorf("behind a proxy: %s", got)
	}
	if got := a.ClientAddr(proxied).String(); got != "203.0.113.9" {
		t.Errorf("client behind proxies %s", got)
	}
	for _, c := range []struct{ from, host, proto, want string }{
		{"10.1.2.3:4567", "hub.example.com:8443", "https", "https://hub.example.com:8443"},
		{"10.1.2.3:4567", "[2001:db8::7]:8443", "https", "https://[2001:db8::7]:8443"},
		{"10.1.2.3:4567", "hub.example.com, inner.example.com", "HTTPS, http", "https://hub.example.com"}, // proxies append
		{"10.1.2.3:4567", "", "https", "https://reg.example.com:5000"},
		{"10.1.2.3:4567", "hub.example.com", "", "http://hub.example.com"},
		{"10.1.2.3:4567", "hub.example.com", "gopher", "http://hub.example.com"},
		{"10.1.2.3:4567", "hub.example.com/registry", "https", "https://reg.example.com:5000"}, // a path is no host
		{"[fd00:1::2]:4567", "hub.example.com", "https", "https://hub.example.com"},
		{"[fd00:1::2%eth0]:4567", "hub.example.com", "https", "https://hub.example.com"},
		{"[::ffff:10.1.2.3]:4567", "hub.example.com", "https", "https://hub.example.com"}, // IPv4 on a socket of both
		{"[fd01::2]:4567", "hub.example.com", "https", "http://reg.example.com:5000"},
		{"11.1.2.3:4567", "hub.example.com", "https", "http://reg.example.com:5000"},
		{"", "hub.example.com", "https", "http://reg.example.com:5000"},
	} {
		r := get("/v2/", "", "")
		r.RemoteAddr = c.from
		r.Header.Set("X-Forwarded-Host", c.host)
		r.Header.Set("X-Forwarded-Proto", c.proto)
		if got := a.ExternalURL(r); got != c.want {
			t.Errorf("from %q, host %q, proto %q: %s, want %s", c.from, c.host, c.proto, got, c.want)
		}
	}
	proxied.Header.Set("X-Forwarded-Host", `x",realm="y`)
	if got := challenge(proxied); strings.Contains(got, "y") && strings.Contains(got, `x"`) {
		t.Errorf("a host that is none came through: %s", got)
	}
}
