package access

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/portolan/portolan/consensus/command"
)

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
