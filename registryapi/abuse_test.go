package registryapi

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/apitest"
	v2 "github.com/portolan/portolan/registryapi/v2"
)

// target is a whole registry behind a real listener, with two users, admin
// and bob, and a project, prod.
type target struct {
	addr   string
	store  *store.Store
	server *Server
	stop   func()
}

// abuseStall is how long the target is patient.
const abuseStall = 1500 * time.Millisecond

func newTarget(t *testing.T, edit ...func(*store.Config)) *target {
	t.Helper()
	return newTargetOf(t, Config{}, edit...)
}

func newTargetTLS(t *testing.T, secure *tls.Config, edit ...func(*store.Config)) *target {
	t.Helper()
	return newTargetOf(t, Config{TLS: secure}, edit...)
}

func newTargetOf(t *testing.T, of Config, edit ...func(*store.Config)) *target {
	t.Helper()
	m := apitest.New(t)
	pid := identity.NewProjectID()
	if _, err := m.Propose(t.Context(), "system", &command.ProjectCreate{ProjectId: pid[:], Name: "prod"}); err != nil {
		t.Fatal(err)
	}
	hash, err := access.HashPassword(apitest.AdminPassword)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Propose(t.Context(), "system", &command.UserCreate{Name: "bob", PasswordHash: hash, Admin: true}); err != nil {
		t.Fatal(err)
	}
	cfg := store.Config{Dir: t.TempDir(), Identity: m.Identity, Logger: slog.New(slog.DiscardHandler)}
	for _, e := range edit {
		e(&cfg)
	}
	st, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	registry, err := v2.New(v2.Config{View: m.State.View, Access: m.Access, Store: st, Site: m.Site, Limits: v2.Limits{Stall: abuseStall}})
	if err != nil {
		t.Fatal(err)
	}
	of.V2, of.Token, of.Stall = registry, m.Access.TokenHandler(), abuseStall
	s := newServer(t, of)
	s.leftover, s.head = abuseStall, abuseStall
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	tg := &target{addr: l.Addr().String(), store: st, server: s}
	stopped := false
	tg.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(tg.stop)
	return tg
}

// login is the header of the target's administrator.
var login = loginOf("admin")

func loginOf(name string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+apitest.AdminPassword)) + "\r\n"
}

// patience bounds the waits of these tests; none is expected to be used up.
const patience = 30 * time.Second

// raw opens a connection and writes text to it.
func (tg *target) raw(t *testing.T, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", tg.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// answer reads one answer whole.
func answer(t *testing.T, br *bufio.Reader) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		t.Fatalf("%d %q: %v", resp.StatusCode, b, err)
	}
	return resp, string(b)
}

// works fails unless somebody else can push and pull right now.
func (tg *target) works(t *testing.T) {
	t.Helper()
	body := fmt.Sprintf("content of %s at %s", t.Name(), time.Now())
	d := digest.FromString(body).String()
	c := tg.raw(t, fmt.Sprintf("POST /v2/prod/app/blobs/uploads/?digest=%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s", d, login, len(body), body)+
		"GET /v2/prod/app/blobs/"+d+" HTTP/1.1\r\nHost: x\r\n"+login+"Connection: close\r\n\r\n")
	br := bufio.NewReader(c)
	if resp, b := answer(t, br); resp.StatusCode != http.StatusCreated {
		t.Fatalf("somebody else's push: %d %s", resp.StatusCode, b)
	}
	if resp, b := answer(t, br); resp.StatusCode != http.StatusOK || b != body {
		t.Fatalf("somebody else's pull: %d %s", resp.StatusCode, b)
	}
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// settles waits until as few goroutines run as did before, and some.
func settles(t *testing.T, before int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d goroutines are left of some %d", runtime.NumGoroutine(), before), func() bool { return runtime.NumGoroutine() <= before+5 })
}

// Requests as no client library writes them: each has its refusal, in the
// specification's form where it is about the registry, and nobody else notices.
func TestAbuse_RawRequests(t *testing.T) {
	tg := newTarget(t)
	long := strings.Repeat("a", MaxHeaderBytes+8<<10)
	none := "sha256:" + strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		line, head, body string
		code             int
		says             string
	}{
		"TRACE":                       {line: "TRACE /v2/", code: 405, says: "UNSUPPORTED"},
		"TRACE elsewhere":             {line: "TRACE /", code: 405},
		"CONNECT, as to a proxy":      {line: "CONNECT example.com:443", code: 405},
		"CONNECT with a path":         {line: "CONNECT /v2/", code: 405, says: "UNSUPPORTED"},
		"a method of nobody":          {line: "BREW /v2/", code: 405, says: "UNSUPPORTED"},
		"an absolute URL":             {line: "GET http://other.example/v2/", code: 200},
		"slashes encoded":             {line: "GET /v2/prod%2fapp/manifests/1", code: 404, says: "MANIFEST_UNKNOWN"},
		"dots encoded":                {line: "GET /v2/prod/%2e%2e/library/manifests/1", code: 400, says: "NAME_INVALID"},
		"dots":                        {line: "GET /v2/prod/../library/manifests/1", code: 400, says: "NAME_INVALID"},
		"dots for the store":          {line: "GET /v2/prod/app/blobs/sha256:..%2f..%2f..%2fstore.id", code: 404, says: "UNSUPPORTED"},
		"two slashes":                 {line: "GET /v2/prod//app/manifests/1", code: 400, says: "NAME_INVALID"},
		"NUL in a name":               {line: "GET /v2/prod/app%00/manifests/1", code: 400, says: "NAME_INVALID"},
		"NUL in a tag":                {line: "GET /v2/prod/app/manifests/a%00b", code: 404, says: "MANIFEST_UNKNOWN"},
		"a newline in a tag":          {line: "PUT /v2/prod/app/manifests/a%0ab", head: "Content-Length: 1\r\n", body: "x", code: 400, says: "TAG_INVALID"},
		"a long name":                 {line: "GET /v2/prod/" + long[:300] + "/manifests/1", code: 400, says: "NAME_INVALID"},
		"a long tag":                  {line: "GET /v2/prod/app/manifests/" + long[:60_000], code: 404, says: "MANIFEST_UNKNOWN"},
		"a long path":                 {line: "GET /v2/" + long + "/manifests/1", code: 431},
		"a long header":               {line: "GET /v2/", head: "X-A: " + long + "\r\n", code: 431},
		"many headers":                {line: "GET /v2/", head: strings.Repeat("X-A: b\r\n", 12_000), code: 431},
		"a query that is none":        {line: "GET /v2/prod/app/tags/list?n=%zz", code: 400, says: "UNSUPPORTED"},
		"a query with semicolons":     {line: "GET /v2/prod/app/tags/list?n=1;last=2", code: 400, says: "UNSUPPORTED"},
		"two lengths":                 {line: "PUT /v2/prod/app/manifests/1", head: "Content-Length: 5\r\nContent-Length: 6\r\n", body: "abcdef", code: 400},
		"a negative length":           {line: "PUT /v2/prod/app/manifests/1", head: "Content-Length: -5\r\n", body: "abcdef", code: 400},
		"a length and chunks":         {line: "PUT /v2/prod/app/manifests/1", head: "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", body: "0\r\n\r\n", code: 400, says: "MANIFEST_INVALID"},
		"chunks of another encoding":  {line: "PUT /v2/prod/app/manifests/1", head: "Transfer-Encoding: gzip\r\n", body: "0\r\n\r\n", code: 501},
		"chunks that are none":        {line: "PUT /v2/prod/app/manifests/1", head: "Transfer-Encoding: chunked\r\n", body: "zz\r\nabc\r\n0\r\n\r\n", code: 400, says: "SIZE_INVALID"},
		"blob chunks that are none":   {line: "POST /v2/prod/app/blobs/uploads/?digest=" + none, head: "Transfer-Encoding: chunked\r\n", body: "3\r\nabcdefg", code: 400, says: "SIZE_INVALID"},
		"a chunk without end":         {line: "PUT /v2/prod/app/manifests/1", head: "Transfer-Encoding: chunked\r\n", body: "ffffffffffffffff\r\nabc", code: 408, says: "SIZE_INVALID"},
		"a manifest of 90 GB":         {line: "PUT /v2/prod/app/manifests/1", head: "Content-Length: 99999999999\r\n", body: "abc", code: 413, says: "SIZE_INVALID"},
		"a manifest that never comes": {line: "PUT /v2/prod/app/manifests/1", head: "Content-Length: 10\r\n", body: "abc", code: 408, says: "SIZE_INVALID"},
		"a blob that never comes":     {line: "POST /v2/prod/app/blobs/uploads/?digest=" + none, head: "Content-Length: 10\r\n", body: "abc", code: 408, says: "SIZE_INVALID"},
		"an expectation of nobody":    {line: "PUT /v2/prod/app/manifests/1", head: "Content-Length: 3\r\nExpect: tea\r\n", body: "abc", code: 417},
		"no such login":               {line: "GET /v2/", head: "Authorization: Basic %%%\r\n", code: 401, says: "UNAUTHORIZED"},
		"a token of rubbish":          {line: "GET /v2/prod/app/tags/list", head: "Authorization: Bearer " + long[:20_000] + "\r\n", code: 401, says: "UNAUTHORIZED"},
	} {
		t.Run(name, func(t *testing.T) {
			who := login
			if strings.Contains(c.head, "Authorization") {
				who = ""
			}
			conn := tg.raw(t, c.line+" HTTP/1.1\r\nHost: x\r\n"+who+c.head+"\r\n"+c.body)
			resp, body := answer(t, bufio.NewReader(conn))
			if resp.StatusCode != c.code || !strings.Contains(body, c.says) {
				t.Fatalf("%d %.300s, want %d with %q", resp.StatusCode, body, c.code, c.says)
			}
			if c.says != "" && !strings.HasPrefix(body, `{"errors":[{"code":"`+c.says) {
				t.Errorf("not the specification's form: %.300s", body)
			}
			if len(body) > 1<<10 {
				t.Errorf("an answer of %d bytes to rubbish", len(body))
			}
		})
	}
	for name, text := range map[string]string{
		"no host":             "GET /v2/ HTTP/1.1\r\n\r\n",
		"two hosts":           "GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"TLS at a plain port": "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n",
		"HTTP/2 by surprise":  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"a head with NUL":     "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
		"a header folded":     "GET /v2/ HTTP/1.1\r\nHost: x\r\n X-A: a\r\n\r\n",
	} {
		if resp, body := answer(t, bufio.NewReader(tg.raw(t, text))); resp.StatusCode != http.StatusBadRequest || !resp.Close {
			t.Errorf("%s: %d %s, closed %v", name, resp.StatusCode, body, resp.Close)
		}
	}
	tg.works(t)
}
