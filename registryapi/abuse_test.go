package registryapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/registryapi/apitest"
	v2 "github.com/portolan/portolan/registryapi/v2"
)

// target is a whole registry behind a real listener, with one user, admin, and
// one project, prod.
type target struct {
	addr  string
	store *store.Store
	stop  func()
}

// abuseStall is how long the target is patient.
const abuseStall = 300 * time.Millisecond

func newTarget(t *testing.T, edit ...func(*store.Config)) *target {
	t.Helper()
	m := apitest.New(t)
	pid := identity.NewProjectID()
	if _, err := m.Propose(t.Context(), "system", &command.ProjectCreate{ProjectId: pid[:], Name: "prod"}); err != nil {
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
	s := newServer(t, Config{V2: registry, Token: m.Access.TokenHandler(), Stall: abuseStall})
	s.leftover, s.head = abuseStall, abuseStall
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	tg := &target{addr: l.Addr().String(), store: st}
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

func TestX(t *testing.T) {
	tg := newTarget(t)
	long := strings.Repeat("a", 70_000)
	auth := "Authorization: Basic YWRtaW46SGFyYm91ci0xMjM0\r\n"
	for _, r := range []string{
		"TRACE /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
		"CONNECT /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
		"OPTIONS /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"BREW /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://other.example/v2/ HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/prod%2fapp/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/prod/%2e%2e/library/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/prod/../library/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/prod//app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/prod/app%00/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/prod/app/manifests/a%00b HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/prod/app/manifests/" + long[:60_000] + " HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/" + long[:300] + "/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/" + long + "/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-A: " + long + "\r\n\r\n",
		"GET /v2/prod/app/tags/list?n=%zz HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/prod/app/tags/list?n=1;last=2 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n",
		"GET /v2/ HTTP/1.1\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
		"GET /v2/ HTTP/2.0\r\nHost: a\r\n\r\n",
		"GET /v2/ HTTP/1.0\r\n\r\n",
		"PUT /v2/prod/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"PUT /v2/prod/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
		"PUT /v2/prod/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: -5\r\n\r\nabcdef",
		"PUT /v2/prod/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
		"PUT /v2/prod/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n0\r\n\r\n",
		"PUT /v2/prod/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: 99999999999\r\n\r\nabc",
		"PUT /v2/prod/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: 10\r\n\r\nabc",
		"PUT /v2/prod/app/manifests/1 HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: 10\r\nExpect: 200-ok\r\n\r\nabc",
		"POST /v2/prod/app/blobs/uploads/?digest=sha256:" + strings.Repeat("a", 64) + " HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Length: 10\r\n\r\nabc",
		"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		c, err := net.Dial("tcp", tg.addr)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, _ = io.WriteString(c, r)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		first, _, _ := strings.Cut(r, "\r\n")
		if err != nil {
			fmt.Printf("%-70.70q ERR %v after %s\n", first, err, time.Since(began))
			c.Close()
			continue
		}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		fmt.Printf("%-70.70q %d close=%v %s %.130q\n", first, resp.StatusCode, resp.Close, time.Since(began).Round(time.Millisecond), b)
		c.Close()
	}
}
