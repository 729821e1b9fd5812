package registryapi

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// writes counts a connection's writes, and breaks at the one numbered fail.
type writes struct {
	net.Conn
	mu    sync.Mutex
	sizes []int
	sent  bytes.Buffer
	fail  int
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sizes = append(w.sizes, len(p))
	if len(w.sizes) == w.fail {
		return 0, os.ErrDeadlineExceeded
	}
	w.sent.Write(p)
	if w.Conn == nil {
		return len(p), nil
	}
	return w.Conn.Write(p)
}

// countedListener keeps the connections that it accepted.
type countedListener struct {
	net.Listener
	accepted chan *writes
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	w := &writes{Conn: c}
	l.accepted <- w
	return w, nil
}

func TestCorkedConn(t *testing.T) {
	under := &writes{}
	c := &corkedConn{Conn: under}
	var want bytes.Buffer
	write := func(n int) {
		t.Helper()
		p := bytes.Repeat([]byte{byte(want.Len())}, n)
		want.Write(p)
		if k, err := c.Write(p); k != n || err != nil {
			t.Fatalf("write of %d: %d, %v", n, k, err)
		}
	}
	write(10) // goes out at once
	if len(under.sizes) != 1 {
		t.Fatalf("an uncorked write was held back: %v", under.sizes)
	}
	c.cork()
	for range 9 {
		write(16 << 10)
	}
	write(3 * pieceBytes) // larger than a piece: in order, and alone
	write(7)
	if len(under.sizes) >= 9 {
		t.Errorf("writes were not collected: %v", under.sizes)
	}
	if err := c.uncork(); err != nil {
		t.Fatal(err)
	}
	write(5)
	if !bytes.Equal(under.sent.Bytes(), want.Bytes()) {
		t.Error("what arrived is not what was written")
	}
	if last := under.sizes[len(under.sizes)-1]; last != 5 {
		t.Errorf("the last write had %d bytes", last)
	}
}

// A write that failed took bytes with it: whatever came after them would make
// another stream.
func TestCorkedConn_NothingFollowsALostWrite(t *testing.T) {
	under := &writes{fail: 1}
	c := &corkedConn{Conn: under}
	c.cork()
	if _, err := c.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	if err := c.uncork(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("uncork says %v", err)
	}
	for _, corked := range []bool{false, true} {
		if corked {
			c.cork()
		}
		if _, err := c.Write([]byte("more")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a write behind it says %v", err)
		}
	}
	if err := c.uncork(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("uncork says %v", err)
	}
	if under.sent.Len() != 0 {
		t.Errorf("%q followed", under.sent.Bytes())
	}
}

// Over TLS a file arrives whole and in fewer system calls than it has records,
// and small answers on the same connection are not held back.
func TestServer_TLSInPieces(t *testing.T) {
	content := make([]byte, 3<<20+12345)
	for i := range content {
		content[i] = byte(rand.Int())
	}
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	pair := httptest.NewUnstartedServer(nil)
	pair.StartTLS()
	cert := pair.TLS.Certificates[0]
	roots := pair.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	pair.Close()
	for _, h2 := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		accepted := make(chan *writes, 1)
		url, stop := startOn(t, countedListener{l, accepted}, Config{
			TLS: &tls.Config{Certificates: []tls.Certificate{cert}},
			V2: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				f, err := os.Open(path)
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				http.ServeContent(w, r, "", time.Time{}, f)
			})})
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}, ForceAttemptHTTP2: h2}
		client := &http.Client{Transport: tr, Timeout: time.Minute}
		for range 2 {
			for _, q := range []struct {
				path string
				want []byte
			}{{"/v2/x", content}, {"/healthz", []byte("ok\n")}} {
				resp, err := client.Get("https://" + url + q.path)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || !bytes.Equal(got, q.want) {
					t.Fatalf("%s %s: %d bytes, %v", resp.Proto, q.path, len(got), err)
				}
				if resp.ProtoMajor == 2 != h2 {
					t.Fatalf("answered over %s", resp.Proto)
				}
			}
		}
		w := <-accepted
		w.mu.Lock()
		// Most records have 16 KiB; the first ones of a connection less.
		if n, records := len(w.sizes), 2*len(content)/(16<<10); !h2 && n > records/2 {
			t.Errorf("%d writes for %d records", n, records)
		}
		w.mu.Unlock()
		tr.CloseIdleConnections()
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}
