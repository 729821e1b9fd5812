package consensus

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/test/ports"
)

func TestJoin_Refusals(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, b := m.site("ams"), m.site("fra")
	a.bootstrap()
	b.join(a)

	// One mesh serves all cases: each makes its own joiner and token.
	for _, c := range []struct {
		name string
		// bend spoils a good join.
		bend func(t *testing.T, joiner *site, tok *Token)
		code command.Code // 0: no refusal, the words alone
		want string
	}{
		{"wrong secret", func(_ *testing.T, _ *site, tok *Token) { tok.Secret[0] ^= 1 }, command.CodeDenied, "not known here"},
		{"unknown token", func(_ *testing.T, _ *site, tok *Token) { tok.ID = 1 << 40 }, command.CodeDenied, "not known here"},
		{"another site's name", func(_ *testing.T, _ *site, tok *Token) { tok.Site = "tyo" }, command.CodeInvalid, `is for site`},
		{"wrong mesh", func(_ *testing.T, _ *site, tok *Token) { tok.Mesh = identity.NewMeshID() }, command.CodeDenied, "another mesh"},
		{"clock an hour ahead", func(_ *testing.T, j *site, _ *Token) { j.now = func() time.Time { return time.Now().Add(time.Hour) } }, command.CodeInvalid, "clocks differ by 1h0m"},
		{"clock an hour behind", func(_ *testing.T, j *site, _ *Token) { j.now = func() time.Time { return time.Now().Add(-time.Hour) } }, command.CodeInvalid, "clocks differ by 1h0m"},
		{"unreachable", func(t *testing.T, _ *site, tok *Token) {
			tok.Nodes = []TokenNode{{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(ports.Free(t))), ID: tok.Nodes[0].ID}}
		}, 0, "cannot be reached"},
		{"another node at the address", func(t *testing.T, _ *site, tok *Token) {
			id, _, err := identity.LoadOrCreate(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			tok.Nodes = []TokenNode{{Addr: tok.Nodes[0].Addr, ID: id.ID}}
		}, 0, "another node than the token names"},
		{"revoked", func(t *testing.T, _ *site, tok *Token) {
			if _, err := b.node.Propose(t.Context(), "user:admin", &command.TokenRevoke{Id: tok.ID}); err != nil {
				t.Fatal(err)
			}
		}, command.CodeDenied, "was revoked at"},
		{"version too new", func(_ *testing.T, j *site, _ *Token) { j.minLevel = command.Level + 1 }, command.CodeConflict, "too new: it needs command level"},
		{"something else at the address", func(t *testing.T, _ *site, tok *Token) {
			srv := httptest.NewServer(http.NotFoundHandler())
			t.Cleanup(srv.Close)
			tok.Nodes = []TokenNode{{Addr: srv.Listener.Addr().String(), ID: tok.Nodes[0].ID}}
		}, 0, "is not the control port of a portolan node"},
		{"no such name", func(_ *testing.T, _ *site, tok *Token) {
			tok.Nodes = []TokenNode{{Addr: "no-such-host.invalid:7947", ID: tok.Nodes[0].ID}}
		}, 0, "cannot be reached"},
		{"deleted", func(t *testing.T, _ *site, tok *Token) {
			if _, err := b.node.Propose(t.Context(), "user:admin", &command.TokenDelete{Id: tok.ID}); err != nil {
				t.Fatal(err)
			}
		}, command.CodeDenied, "not known here"},
		{"store of another node", func(_ *testing.T, j *site, _ *Token) { j.record.StoreId = a.record.StoreId }, command.CodeExists, "belongs to site ams"},
	} {
		t.Run(c.name, func(t *testing.T) {
			j := m.site("sgp")
			tok := j.token(b)
			before := a.node.State().View()
			c.bend(t, j, &tok)
			_, err := j.tryJoin(tok)
			var refusal *command.Error
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &refusal) != (c.code != 0) || (refusal != nil && refusal.Code != c.code) {
				t.Fatalf("%v, want code %d and %q", err, c.code, c.want)
			}
			if after := a.node.State().View(); len(after.Nodes()) != len(before.Nodes()) || len(after.Sites()) != len(before.Sites()) {
				t.Fatal("a refused join left something behind")
			}
		})
	}

	t.Run("site given beside the token is another", func(t *testing.T) {
		j := m.site("sgp")
		if _, err := Join(t.Context(), JoinConfig{Token: j.token(a), Identity: j.id, Node: j.record, Site: "tyo"}); err == nil || !strings.Contains(err.Error(), `for site "sgp"`) {
			t.Fatal(err)
		}
	})
	t.Run("site name taken at creation", func(t *testing.T) {
		if _, err := a.node.CreateToken(t.Context(), "user:admin", "fra", time.Hour); !errors.Is(err, &command.Error{Code: command.CodeExists}) {
			t.Fatal(err)
		}
	})
	t.Run("site name taken since, used, repeated, expired", func(t *testing.T) {
		first, second, third := m.site("nyc"), m.site("nyc"), m.site("nyc")
		tok, late := first.token(a), second.token(b)
		tok.Nodes = tok.Nodes[:1]
		late.Nodes = append([]TokenNode{{Addr: "127.0.0.1:1", ID: late.Nodes[0].ID}}, late.Nodes...) // the second address must do
		lost, err := first.tryJoin(tok)
		if err != nil {
			t.Fatal(err)
		}
		var sure *NotTakenError
		if _, err := second.tryJoin(late); !errors.Is(err, &command.Error{Code: command.CodeExists}) || !strings.Contains(err.Error(), "taken") || errors.As(err, &sure) {
			t.Fatalf("name taken, after an address that did not answer: %v", err)
		}
		if _, err := third.tryJoin(tok); !errors.Is(err, &command.Error{Code: command.CodeUsed}) || !errors.As(err, &sure) {
			t.Fatalf("used by another: %v", err)
		}
		first.record.DataPort = 4711 // the second try may be with other options
		again, err := first.tryJoin(tok)
		if err != nil || again.Mesh != lost.Mesh || len(again.Nodes) != 3 {
			t.Fatalf("the same joiner again: %+v, %v", again, err)
		}
		first.start(again.Nodes)
		await(t, "nyc ready", first.node.isReady)
		await(t, "the new record", func() bool {
			n, _ := first.node.State().View().Node(first.id.ID)
			return n.DataPort == 4711 && n.Site == "nyc"
		})

		// The mesh's clock decides about expiry: the joiner's agrees with it here.
		tyo := m.site("tyo")
		tok = tyo.token(a)
		late2 := func() time.Time { return time.Now().Add(2 * time.Hour) }
		a.setClock(late2)
		b.setClock(late2)
		tyo.now = late2
		if _, err := tyo.tryJoin(tok); !errors.Is(err, &command.Error{Code: command.CodeExpired}) {
			t.Fatalf("expired: %v", err)
		}
	})
}

func TestControl_StrangersAreRefused(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	a, stranger := m.site("ams"), m.site("evil")
	a.bootstrap()
	conn, err := dialControl(a.addr(), wire.Credentials(stranger.id, a.id.ID), func(ctx context.Context, addr string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}, LAN.Election)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := NewControlClient(conn)
	env, err := command.New("user:admin", time.Now(), &command.UserCreate{Name: "evil", PasswordHash: "x", Admin: true})
	if err != nil {
		t.Fatal(err)
	}
	_, perr := c.Propose(t.Context(), &ProposeRequest{Envelope: env})
	_, ierr := c.Ping(t.Context(), &PingRequest{})
	_, jerr := c.Join(t.Context(), &JoinRequest{Forwarded: true})
	_, merr := c.Join(t.Context(), &JoinRequest{Node: a.node.cfg.Self})
	for what, err := range map[string]error{"propose": perr, "ping": ierr, "forwarded join": jerr} {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !errors.Is(fromStatus(merr), &command.Error{Code: command.CodeDenied}) {
		t.Errorf("join as another node: %v", merr)
	}
	if _, err := wire.DialRaft(t.Context(), a.addr(), a.id.ID, stranger.id, everybody{}); err == nil {
		// TLS 1.3 tells a client of its refusal at its first read.
		await(t, "raft refuses the stranger", func() bool { return !a.node.IsMember(stranger.id.ID) })
	}
	if _, ok := a.node.State().View().User("evil"); ok {
		t.Fatal("a stranger made a user")
	}
}

type everybody struct{}

func (everybody) IsMember(identity.NodeID) bool { return true }

func TestToken_RoundTrip(t *testing.T) {
	want := testToken()
	got, err := ParseToken("  " + want.String()[:20] + "\n" + want.String()[20:] + " \n")
	if err != nil {
		t.Fatal(err)
	}
	if got.Mesh != want.Mesh || got.ID != want.ID || got.Secret != want.Secret || got.Site != want.Site || !got.Expires.Equal(want.Expires) || !slices.Equal(got.Nodes, want.Nodes) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if s := want.LogValue().String(); strings.Contains(s, want.String()) || strings.Contains(s, string(want.Secret[:])) {
		t.Fatal("the log would have the secret")
	}
}

func testToken() Token {
	return Token{Mesh: identity.MeshID{1}, ID: 7, Secret: [32]byte{2, 3}, Site: "sgp", Expires: time.Unix(2e9, 0).UTC(),
		Nodes: []TokenNode{{Addr: "ams.example.org:7947", ID: identity.NodeID{4}}, {Addr: "[2001:db8::1]:7947", ID: identity.NodeID{5}}}}
}

func TestParseToken_Refusals(t *testing.T) {
	good := testToken().String()
	nobody := testToken()
	nobody.Nodes = nil
	badSite := testToken()
	badSite.Site = "../etc"
	for name, c := range map[string]struct{ in, want string }{
		"empty":         {"", "not a join token"},
		"something":     {"dGVzdA", "not a join token"},
		"newer version": {"portolan2_xyz", "newer version"},
		"cut short":     {good[:len(good)-3], "damaged"},
		"one changed":   {good[:30] + string(good[30]^1) + good[31:], "damaged"},
		"too long":      {good + strings.Repeat("A", maxTokenChars), "too long"},
		"no address":    {nobody.String(), "damaged"},
		"bad site":      {badSite.String(), "not a site name"},
	} {
		if _, err := ParseToken(c.in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(testToken().String())
	f.Add("portolan1_")
	f.Add("portolan2_AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		again, err := ParseToken(tok.String())
		if err != nil || again.String() != tok.String() {
			t.Fatalf("%q parses, and what it gives does not: %v", s, err)
		}
	})
}
