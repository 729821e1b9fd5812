package registryapi

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/node/store"
)

// begin starts an upload and gives its path.
func (tg *target) begin(t *testing.T) string {
	t.Helper()
	resp, body := answer(t, bufio.NewReader(tg.raw(t, "POST /v2/prod/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+login+"Content-Length: 0\r\n\r\n")))
	if resp.StatusCode != http.StatusAccepted {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	return resp.Header.Get("Location")
}

// Bodies that come a byte at a time, or not at all: each ends with a 408 that
// says what to do, keeps what came, and holds nobody else up.
func TestAbuse_SlowBodies(t *testing.T) {
	tg := newTarget(t)
	tg.works(t)
	before := runtime.NumGoroutine()
	const crowd = 60
	var conns []net.Conn
	var paths []string
	for range crowd {
		path := tg.begin(t)
		paths = append(paths, path)
		conns = append(conns, tg.raw(t, "PATCH "+path+" HTTP/1.1\r\nHost: x\r\n"+login+"Content-Length: 100000\r\n\r\nsome"))
	}
	tg.works(t)

	var wg sync.WaitGroup
	ended := make(chan struct{})
	for i, c := range conns {
		if i%2 == 0 {
			continue // stands still
		}
		wg.Go(func() { // a drip, well within the limit for standing still
			drip := time.NewTicker(abuseStall / 6)
			defer drip.Stop()
			for {
				select {
				case <-drip.C:
					if _, err := c.Write([]byte("x")); err != nil {
						return
					}
				case <-ended:
					return
				}
			}
		})
	}
	for i, c := range conns {
		resp, body := answer(t, bufio.NewReader(c))
		if resp.StatusCode != http.StatusRequestTimeout || !strings.Contains(body, "SIZE_INVALID") || !resp.Close {
			t.Errorf("client %d: %d %s", i, resp.StatusCode, body)
		}
		_ = c.Close()
	}
	close(ended)
	wg.Wait()
	tg.works(t)
	for i, path := range paths {
		resp, _ := answer(t, bufio.NewReader(tg.raw(t, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+login+"\r\n")))
		if _, end, _ := strings.Cut(resp.Header.Get("Range"), "-"); resp.StatusCode != http.StatusNoContent || end == "0" {
			t.Errorf("upload %d: %d, range %q", i, resp.StatusCode, resp.Header.Get("Range"))
		}
	}
	settles(t, before)
}

// Heads that never end.
func TestAbuse_SlowHeads(t *testing.T) {
	tg := newTarget(t)
	before := runtime.NumGoroutine()
	var conns []net.Conn
	for range 200 {
		conns = append(conns, tg.raw(t, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-A"))
	}
	tg.works(t)
	for i, c := range conns {
		if _, err := io.Copy(io.Discard, c); err != nil { // until the server closes
			t.Errorf("connection %d: %v", i, err)
		}
		_ = c.Close()
	}
	settles(t, before)
}

// Clients that vanish in the middle of a body, or of an answer.
func TestAbuse_VanishingClients(t *testing.T) {
	tg := newTarget(t)
	before := runtime.NumGoroutine()
	big := bytes.Repeat([]byte("0123456789abcdef"), 2<<20) // 32 MiB: no socket buffer takes it
	sum := sha256.Sum256(big)
	d := "sha256:" + hex.EncodeToString(sum[:])
	c := tg.raw(t, fmt.Sprintf("POST /v2/prod/app/blobs/uploads/?digest=%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n", d, login, len(big)))
	if _, err := c.Write(big); err != nil {
		t.Fatal(err)
	}
	if resp, body := answer(t, bufio.NewReader(c)); resp.StatusCode != http.StatusCreated {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	vanish := func(c net.Conn) {
		t.Helper()
		if err := c.(*net.TCPConn).SetLinger(0); err != nil { // a reset, as of a machine that died and came back
			t.Error(err)
		}
		_ = c.Close()
	}
	for range 30 {
		path := tg.begin(t)
		c := tg.raw(t, "PATCH "+path+" HTTP/1.1\r\nHost: x\r\n"+login+"Content-Length: 300000\r\n\r\n"+strings.Repeat("x", 150_000))
		vanish(c)
		c = tg.raw(t, "GET /v2/prod/app/blobs/"+d+" HTTP/1.1\r\nHost: x\r\n"+login+"\r\n")
		if _, err := io.CopyN(io.Discard, c, 10_000); err != nil {
			t.Fatal(err)
		}
		vanish(c)
	}
	tg.works(t)
	settles(t, before)
}

// A client that has said all closes its half, and still gets its answer; one
// that says ten things at once gets ten answers in their order.
func TestAbuse_HalfClosedAndPipelined(t *testing.T) {
	tg := newTarget(t)
	c := tg.raw(t, "GET /v2/ HTTP/1.1\r\nHost: x\r\n"+login+"\r\n")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err == nil && len(b) > 0 && !strings.HasPrefix(string(b), "HTTP/1.1 200") {
		t.Errorf("half closed: %q", b)
	}

	var all strings.Builder
	for i := range 100 {
		fmt.Fprintf(&all, "GET /v2/prod/app/manifests/tag-%d HTTP/1.1\r\nHost: x\r\n%s\r\n", i, login)
	}
	br := bufio.NewReader(tg.raw(t, all.String()))
	for i := range 100 {
		if resp, body := answer(t, br); resp.StatusCode != http.StatusNotFound || !strings.Contains(body, `"tag-`+strconv.Itoa(i)+`"`) {
			t.Fatalf("answer %d: %d %s", i, resp.StatusCode, body)
		}
	}
}

// What is refused by its head alone is refused before the body is sent.
func TestAbuse_ExpectContinue(t *testing.T) {
	tg := newTarget(t)
	ask := func(line string, length int) (*http.Response, string, net.Conn, *bufio.Reader) {
		c := tg.raw(t, fmt.Sprintf("%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", line, login, length))
		br := bufio.NewReader(c)
		resp, body := answer(t, br)
		return resp, body, c, br
	}
	for line, length := range map[string]int{
		"PUT /v2/prod/app/manifests/1":                      4<<20 + 1,
		"PUT /v2/prod/app/manifests/.bad":                   10,
		"POST /v2/prod/app/blobs/uploads/?digest=sha256:12": 10,
		"PATCH /v2/prod/app/blobs/uploads/nothing":          10,
	} {
		if resp, body, _, _ := ask(line, length); resp.StatusCode < 400 || !strings.Contains(body, `{"errors":[`) {
			t.Errorf("%s: %d %s", line, resp.StatusCode, body)
		}
	}
	resp, _, c, br := ask("PUT /v2/prod/app/manifests/1", 1)
	if resp.StatusCode != http.StatusContinue {
		t.Fatalf("%d", resp.StatusCode)
	}
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if resp, body := answer(t, br); resp.StatusCode != http.StatusBadRequest || !strings.Contains(body, "MANIFEST_INVALID") {
		t.Errorf("after the body: %d %s", resp.StatusCode, body)
	}
}

// Ten thousand connections that ask for nothing, or as many as this process may
// hold both ends of: some kilobytes each, and nobody else is kept out.
func TestAbuse_IdleConnections(t *testing.T) {
	tg := newTarget(t)
	tg.works(t)
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	n := min(10_000, (int(min(files.Cur, 1<<20))-500)/2)
	if testing.Short() {
		n = min(n, 500)
	}
	before, used := runtime.NumGoroutine(), memory()
	conns := make([]net.Conn, 0, n)
	for range n {
		c, err := net.Dial("tcp", tg.addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	tg.works(t)
	each := (memory() - used) / int64(n)
	t.Logf("%d idle connections, %d bytes each", n, each)
	if each > 32<<10 {
		t.Errorf("%d bytes for an idle connection", each)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	settles(t, before)
}

func memory() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// One user begins uploads without end: his share is his bound, said in the
// specification's words.
func TestAbuse_OpenUploads(t *testing.T) {
	tg := newTarget(t, func(c *store.Config) { c.MaxUploads, c.MaxUploadsPerUser = 40, 30 })
	for range 30 {
		tg.begin(t)
	}
	c := tg.raw(t, strings.Repeat("POST /v2/prod/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n"+login+"Content-Length: 0\r\n\r\n", 500))
	br := bufio.NewReader(c)
	for range 500 {
		resp, body := answer(t, br)
		if resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(body, "TOOMANYREQUESTS") || resp.Header.Get("Retry-After") == "" {
			t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
		}
	}
	// Others have theirs.
	resp, body := answer(t, bufio.NewReader(tg.raw(t, "POST /v2/prod/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n"+loginOf("bob")+"Content-Length: 0\r\n\r\n")))
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("somebody else: %d %s", resp.StatusCode, body)
	}
}

// More connections than there is room for: those that ask for nothing go, of the
// address that has most, and who is in the middle of a pull stays.
func TestAbuse_NoRoom(t *testing.T) {
	tg := newTargetOf(t, Config{MaxConnections: 20})
	count := func(reason string) float64 {
		return testutil.ToFloat64(tg.server.crowd.dropped.WithLabelValues(reason))
	}
	path := tg.begin(t)
	busy := tg.raw(t, "PATCH "+path+" HTTP/1.1\r\nHost: x\r\n"+login+"Content-Length: 4\r\n\r\nso")
	eventually(t, "the upload is under way", func() bool { return tg.server.crowd.door.Len() >= 1 })
	var crowd []net.Conn
	for range 60 {
		crowd = append(crowd, tg.raw(t, "")) // slower than the listener they may be, and all come
	}
	eventually(t, "those too many have gone", func() bool { return count("busy") >= 40 })
	if n := tg.server.crowd.door.Len(); n > 20 {
		t.Errorf("%d connections are open", n)
	}
	if _, err := crowd[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the one that waited longest: %v", err)
	}
	tg.works(t)
	if _, err := io.WriteString(busy, "me"); err != nil {
		t.Fatal(err)
	}
	if resp, body := answer(t, bufio.NewReader(busy)); resp.StatusCode != http.StatusAccepted {
		t.Errorf("the upload under way: %d %s", resp.StatusCode, body)
	}
	for _, c := range append(crowd, busy) {
		_ = c.Close()
	}
	eventually(t, "nobody is in any more", func() bool { return tg.server.crowd.door.Len() == 0 })
	if count("silent") == 0 {
		t.Error("connections without a request are not counted")
	}
}

func TestMaxConnections(t *testing.T) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	if n := maxConnections(); n > MaxConnections || uint64(n) > files.Cur/shareOfFiles {
		t.Errorf("%d connections, with %d files", n, files.Cur)
	}
}
