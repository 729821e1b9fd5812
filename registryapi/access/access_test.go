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
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
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

func TestPassword(t *testing.T) {
	h, err := HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(h, "$argon2id$v=19$m=") {
		t.Errorf("hash %q is not a PHC string", h)
	}
	if ok, err := VerifyPassword(h, "correct horse"); !ok || err != nil {
		t.Errorf("right password: %v, %v", ok, err)
	}
	if ok, err := VerifyPassword(h, "battery staple"); ok || err != nil {
		t.Errorf("wrong password: %v, %v", ok, err)
	}
	for _, bad := range []string{"", "$argon2id$", "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=4194304,t=2,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=19456,t=0,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA"} {
		if _, err := VerifyPassword(bad, "x"); !errors.Is(err, ErrPasswordHash) {
			t.Errorf("hash %q: %v, want ErrPasswordHash", bad, err)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", MaxPasswordBytes+1)} {
		if _, err := HashPassword(bad); err == nil {
			t.Errorf("a password of %d bytes was taken", len(bad))
		}
	}
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

func TestLogin_BacksOffPerAccountAndAddress(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	if _, err := a.Authenticate(get("/", "admin", "secret")); err != nil {
		t.Fatal(err)
	}
	for range freeFailures {
		if _, err := a.Authenticate(get("/", "admin", "guess")); !errors.Is(err, ErrCredentials) {
			t.Fatalf("a wrong password: %v", err)
		}
	}
	var busy *TooMany
	if _, err := a.Authenticate(get("/", "admin", "guess")); !errors.As(err, &busy) || busy.RetryAfter <= 0 {
		t.Fatalf("after %d failures: %v, want *TooMany", freeFailures, err)
	}
	if _, err := a.Authenticate(get("/", "admin", "secret")); err != nil {
		t.Errorf("a password that was checked before must go on working: %v", err)
	}
	other := get("/", "admin", "guess")
	other.RemoteAddr = "198.51.100.7:1234"
	if _, err := a.Authenticate(other); !errors.Is(err, ErrCredentials) {
		t.Errorf("from another address: %v, want ErrCredentials", err)
	}
	m.now = m.now.Add(firstWait)
	if _, err := a.Authenticate(get("/", "admin", "guess")); !errors.Is(err, ErrCredentials) {
		t.Errorf("after the wait: %v, want ErrCredentials", err)
	}
}

func TestLogin_RemembersLittleOfAFailure(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	r := get("/", strings.Repeat("A", 60_000), "guess")
	r.RemoteAddr = "[2001:db8:1:2:3:4:5:6]:1234"
	if _, err := a.Authenticate(r); !errors.Is(err, ErrCredentials) {
		t.Fatal(err)
	}
	for _, k := range a.failures.by.Keys() {
		if len(k.account) > MaxNameBytes || k.addr != netip.MustParseAddr("2001:db8:1:2::") {
			t.Errorf("remembered: %d bytes of name from %s", len(k.account), k.addr)
		}
	}
	if n := a.failures.by.Len(); n != 1 {
		t.Errorf("%d failures are remembered, want 1", n)
	}
}

func TestLogin_RefusesWhenTooManyWait(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	for range cap(a.queue) {
		a.queue <- struct{}{}
	}
	var busy *TooMany
	if _, err := a.Authenticate(get("/", "admin", "secret")); !errors.As(err, &busy) {
		t.Errorf("full queue: %v, want *TooMany", err)
	}
}

func TestLogin_ManyAtOnce(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, err := a.Authenticate(get("/", "admin", "secret")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
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

func TestToken(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	lib, _ := m.state.View().Project("library")
	tok := m.token(a, "admin", "secret", "repository:alpine:pull,push repository:other/x:pull", "registry:catalog:*", "nonsense", "repository:BAD:pull")
	s, err := a.AuthenticateRegistry(bearer(tok))
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "admin" || !s.Admin || s.Scope == nil || !s.Scope.Catalog {
		t.Fatalf("subject %+v", s)
	}
	if !a.CanRepository(s, lib, "alpine", Push) {
		t.Error("alpine is library/alpine: push should be allowed")
	}
	if a.CanRepository(s, lib, "alpine", Delete) || a.CanRepository(s, lib, "debian", Pull) {
		t.Error("outside of the scope, even an administrator's token allows nothing")
	}
	if a.Can(s, lib, ReadProject) {
		t.Error("a registry token is for repositories alone")
	}

	anon, err := a.AuthenticateRegistry(bearer(m.token(a, "", "", "repository:library/alpine:pull,push")))
	if err != nil || anon.Kind != Anonymous || anon.Scope == nil {
		t.Fatalf("anonymous: %+v, %v", anon, err)
	}
	if !a.CanRepository(anon, lib, "alpine", Pull) || a.CanRepository(anon, lib, "alpine", Push) {
		t.Error("an anonymous token grants what anonymous may: the scope only narrows")
	}

	m.now = m.now.Add(tokenLife + clockLeeway + time.Second)
	if _, err := a.AuthenticateRegistry(bearer(tok)); !errors.Is(err, ErrToken) {
		t.Errorf("an expired token: %v, want ErrToken", err)
	}
}

func TestToken_OfAnotherSite(t *testing.T) {
	m := newMesh(t)
	other := newIdentity(t)
	secret := make([]byte, 32)
	m.apply(&command.TokenCreate{Site: "sgp", SecretHash: secret, ExpiresUnixNs: m.now.Add(time.Hour).UnixNano()})
	join := m.state.View().Tokens()[0]
	m.apply(&command.NodeJoin{TokenId: join.ID, SecretHash: secret, Site: "sgp", Node: nodeRecord(other, 8946)})

	there, err := New(Config{View: m.state.View, Identity: other, Now: func() time.Time { return m.now }})
	if err != nil {
		t.Fatal(err)
	}
	here := m.access()
	if _, err := here.AuthenticateRegistry(bearer(m.token(there, "admin", "secret"))); err != nil {
		t.Errorf("a member's token: %v", err)
	}
	stranger, err := New(Config{View: m.state.View, Identity: newIdentity(t), Now: func() time.Time { return m.now }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := here.AuthenticateRegistry(bearer(m.token(stranger, "admin", "secret"))); !errors.Is(err, ErrToken) {
		t.Errorf("a stranger's token: %v, want ErrToken", err)
	}
}

// TestToken_OfARemovedNode: its tokens die with its key, at once and everywhere
// but at itself, which may serve what it has.
func TestToken_OfARemovedNode(t *testing.T) {
	m := newMesh(t)
	other := newIdentity(t)
	secret := make([]byte, 32)
	token := m.apply(&command.TokenCreate{Site: "sgp", SecretHash: secret, ExpiresUnixNs: m.now.Add(time.Hour).UnixNano()})
	m.apply(&command.NodeJoin{TokenId: token, SecretHash: secret, Site: "sgp", Node: nodeRecord(other, 8946)})
	there, err := New(Config{View: m.state.View, Identity: other, Now: func() time.Time { return m.now }})
	if err != nil {
		t.Fatal(err)
	}
	here := m.access()
	known, fresh := m.token(there, "admin", "secret"), m.token(there, "", "", "repository:library/x:pull")
	if _, err := here.AuthenticateRegistry(bearer(known)); err != nil {
		t.Fatal(err)
	}
	m.apply(&command.NodeRemove{NodeId: other.ID[:]})
	for _, tok := range []string{known, fresh} {
		if _, err := here.AuthenticateRegistry(bearer(tok)); !errors.Is(err, ErrToken) {
			t.Errorf("a removed node's token: %v, want ErrToken", err)
		}
		if _, err := there.AuthenticateRegistry(bearer(tok)); err != nil {
			t.Errorf("at the removed node itself: %v", err)
		}
	}
}

func TestToken_Forged(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	good := m.token(a, "admin", "secret")
	parts := strings.Split(good, ".")
	unsigned := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{"sub": "admin", "uid": 1, "aud": Service})
	unsigned.Header["kid"] = m.id.ID.String()
	none, err := unsigned.SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(c jwt.Claims) string {
		tok := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
		tok.Header["kid"] = m.id.ID.String()
		s, err := tok.SignedString(m.id.PrivateKey())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	exp := jwt.NewNumericDate(m.now.Add(time.Hour))
	nbf := jwt.NewNumericDate(m.now)
	mesh := m.state.View().Mesh().ID.String()
	for name, tok := range map[string]string{
		"empty":          "",
		"garbage":        "a.b.c",
		"other body":     parts[0] + "." + parts[1][:len(parts[1])-2] + "AA." + parts[2],
		"no algorithm":   none,
		"too long":       strings.Repeat("a", maxTokenBytes+1),
		"no expiry":      sign(jwt.RegisteredClaims{Issuer: mesh, Audience: jwt.ClaimStrings{Service}, NotBefore: nbf}),
		"other audience": sign(jwt.RegisteredClaims{Issuer: mesh, Audience: jwt.ClaimStrings{"x"}, NotBefore: nbf, ExpiresAt: exp}),
		"other mesh":     sign(jwt.RegisteredClaims{Issuer: "x", Audience: jwt.ClaimStrings{Service}, NotBefore: nbf, ExpiresAt: exp}),
		"name, no id":    sign(jwt.RegisteredClaims{Issuer: mesh, Subject: "admin", Audience: jwt.ClaimStrings{Service}, NotBefore: nbf, ExpiresAt: exp}),
		"future":         sign(jwt.RegisteredClaims{Issuer: mesh, Audience: jwt.ClaimStrings{Service}, NotBefore: exp, ExpiresAt: exp}),
	} {
		if s, err := a.AuthenticateRegistry(bearer(tok)); !errors.Is(err, ErrToken) {
			t.Errorf("%s: %+v, %v, want ErrToken", name, s, err)
		}
	}
}

func TestTokenHandler(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	post := func(form url.Values) *http.Request {
		r := httptest.NewRequest(http.MethodPost, "http://reg.example.com"+TokenPath, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return r
	}
	for _, c := range []struct {
		name string
		r    *http.Request
		code int
		body string
	}{
		{"anonymous", get(TokenPath, "", ""), 200, `"token"`},
		{"wrong password", get(TokenPath, "admin", "no"), 401, "UNAUTHORIZED"},
		{"password grant", post(url.Values{"grant_type": {"password"}, "username": {"admin"}, "password": {"secret"}, "scope": {"repository:a/b:pull"}}), 200, `"access_token"`},
		{"password grant, wrong", post(url.Values{"grant_type": {"password"}, "username": {"admin"}, "password": {"no"}}), 401, "UNAUTHORIZED"},
		{"refresh grant", post(url.Values{"grant_type": {"refresh_token"}}), 400, "grant_type=password"},
		{"too long a form", post(url.Values{"x": {strings.Repeat("x", maxFormBytes)}}), 400, "UNSUPPORTED"},
		{"delete", httptest.NewRequest(http.MethodDelete, TokenPath, nil), 405, "UNSUPPORTED"},
	} {
		w := httptest.NewRecorder()
		a.TokenHandler().ServeHTTP(w, c.r)
		if w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%s: %d %s, want %d with %s", c.name, w.Code, w.Body, c.code, c.body)
		}
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

func TestCanonical(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	m.project("reg.example.org", false)
	long := strings.Repeat("a", 127)
	for name, want := range map[string]string{
		"alpine":                             "library alpine",
		"library/alpine":                     "library alpine",
		"reg.example.com:5000/alpine":        "library alpine",
		"reg.example.com:5000/prod/app":      "prod app",
		"prod/app/web":                       "prod app/web",
		"a__b/c---d/e.f_g":                   "a__b c---d/e.f_g",
		"other.example.com/alpine":           "other.example.com alpine",
		long + "/" + long:                    long + " " + long,
		"":                                   "",
		"/a":                                 "",
		"a//b":                               "",
		"A/b":                                "",
		"a/b/":                               "",
		"a/../b":                             "",
		"a/.b":                               "",
		"a/b_":                               "",
		"a/b___c":                            "",
		"other.example.com:5000/alpine":      "",
		"a/" + strings.Repeat("b", 254):      "",
		strings.Repeat("b", 250):             "",
		"a/b\n":                              "",
		"ä/b":                                "",
		"reg.example.com:5000/":              "",
		"reg.example.com:5000":               "",
		"reg.example.com:5000/x:5000/y":      "",
		"reg.example.com:5000/library/" + "": "",
	} {
		project, repo, err := a.Canonical(get("/v2/", "", ""), name)
		if want == "" {
			if !errors.Is(err, ErrName) {
				t.Errorf("%q: %q %q %v, want ErrName", name, project, repo, err)
			}
			continue
		}
		if err != nil || project+" "+repo != want {
			t.Errorf("%q: %q %q %v, want %q", name, project, repo, err, want)
		}
	}
	r := get("/v2/", "", "")
	r.Host = "reg.example.org"
	if p, repo, err := a.Canonical(r, "reg.example.org/app"); err != nil || p != "reg.example.org" || repo != "app" {
		t.Errorf("a project of the host's name: %q %q %v", p, repo, err)
	}
}

func FuzzCanonical(f *testing.F) {
	m := newMesh(f)
	a := m.access()
	for _, s := range []string{"alpine", "a/b", "reg.example.com:5000/alpine", "A/b", "a//b", strings.Repeat("a/", 130)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		r := get("/v2/", "", "")
		project, repo, err := a.Canonical(r, name)
		if err != nil {
			return
		}
		full := project + "/" + repo
		if len(full) > MaxNameBytes || !nameRegexp.MatchString(full) || strings.Contains(project, "/") {
			t.Fatalf("%q became %q", name, full)
		}
		// One form only: the canonical name is its own canonical name.
		if p, q, err := a.Canonical(r, full); err != nil || p != project || q != repo {
			t.Fatalf("%q became %q, which becomes %q %q %v", name, full, p, q, err)
		}
	})
}

func FuzzToken(f *testing.F) {
	m := newMesh(f)
	a := m.access()
	f.Add("a.b.c")
	f.Add(m.token(a, "", ""))
	f.Fuzz(func(t *testing.T, raw string) {
		if s, err := a.verifyToken(raw); err == nil && s.Kind == User {
			t.Fatalf("%q is %+v", raw, s)
		}
	})
}

func FuzzPHC(f *testing.F) {
	f.Add("$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parsePHC(s)
		if err == nil && (h.memory > maxArgonMemoryKiB || h.time == 0 || h.threads == 0 || len(h.salt) < 8) {
			t.Fatalf("%q is %+v", s, h)
		}
	})
}
