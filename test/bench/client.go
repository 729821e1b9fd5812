package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// patience bounds one request: a registry that hangs is an error in the
	// table, not a bench that hangs. The slowest answer seen is a deletion among
	// 100,000 tags, some seconds.
	patience = 5 * time.Minute
	// readBuffer is small enough for 500 clients and large enough that the
	// client's system calls do not show.
	readBuffer = 128 << 10
)

// client speaks HTTP/1.1 over one connection that it keeps. It does what a
// registry's client does and nothing else: no goroutines, no redirects, no
// copies. Not for use by several goroutines.
type client struct {
	server *server
	login  bool // send the credentials
	conn   net.Conn
	in     *bufio.Reader
	buf    []byte
}

func newClient(s *server, login bool) *client { return &client{server: s, login: login} }

func (c *client) close() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// request is one to send. A body is given in parts, so that 200 MB which differ
// in their first bytes need no 200 MB each.
type request struct {
	method, path string
	contentType  string
	body         [][]byte
	keep         bool // the answer's body is wanted, not only its length
	want         int  // status; anything else is an error
}

type reply struct {
	header http.Header
	n      int64  // bytes of the body
	body   []byte // if they were to be kept
}

// do sends a request and reads the whole answer.
func (c *client) do(ctx context.Context, q request) (reply, error) {
	r, err := c.try(ctx, q)
	if err != nil {
		c.close()
		return r, fmt.Errorf("%s %s: %w", q.method, q.path, err)
	}
	return r, nil
}

func (c *client) try(ctx context.Context, q request) (reply, error) {
	if err := c.dial(ctx); err != nil {
		return reply{}, err
	}
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return reply{}, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.conn.Close() })()

	length := 0
	for _, b := range q.body {
		length += len(b)
	}
	var head bytes.Buffer
	head.WriteString(q.method + " " + q.path + " HTTP/1.1\r\nHost: " + c.server.addr + "\r\nUser-Agent: portolan-bench\r\n")
	if c.login && c.server.auth != "" {
		head.WriteString("Authorization: " + c.server.auth + "\r\n")
	}
	if q.contentType != "" {
		head.WriteString("Content-Type: " + q.contentType + "\r\n")
	}
	if asks := q.method == http.MethodGet || q.method == http.MethodHead; asks && strings.Contains(q.path, "/manifests/") {
		head.WriteString("Accept: " + mediaManifest + ", " + mediaIndex + "\r\n")
	}
	if length > 0 || q.method == http.MethodPost || q.method == http.MethodPut {
		head.WriteString("Content-Length: " + strconv.Itoa(length) + "\r\n")
	}
	head.WriteString("\r\n")
	out := append(net.Buffers{head.Bytes()}, q.body...)
	if _, err := out.WriteTo(c.conn); err != nil {
		return reply{}, err
	}

	resp, err := http.ReadResponse(c.in, &http.Request{Method: q.method})
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	r := reply{header: resp.Header}
	if q.keep || resp.StatusCode != q.want {
		r.body, err = io.ReadAll(resp.Body)
		r.n = int64(len(r.body))
	} else {
		r.n, err = c.discard(resp.Body)
	}
	if err != nil {
		return r, err
	}
	if resp.StatusCode != q.want {
		return r, fmt.Errorf("%s instead of %d: %.300s", resp.Status, q.want, bytes.TrimSpace(r.body))
	}
	if resp.Close {
		c.close()
	}
	return r, nil
}

func (c *client) dial(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", c.server.addr)
	if err != nil {
		return err
	}
	if c.server.roots != nil {
		t := tls.Client(&tlsInput{conn, bufio.NewReaderSize(conn, readBuffer)}, &tls.Config{RootCAs: c.server.roots, ServerName: "127.0.0.1", NextProtos: []string{"http/1.1"}})
		if err := t.HandshakeContext(ctx); err != nil {
			_ = conn.Close()
			return err
		}
		conn = t
	}
	c.conn = conn
	if c.in == nil {
		c.in, c.buf = bufio.NewReaderSize(nil, 16<<10), make([]byte, readBuffer)
	}
	c.in.Reset(conn)
	return nil
}

// tlsInput takes what has arrived in one system call: crypto/tls asks for a
// record or less at a time, and the client's time would hide the servers'.
type tlsInput struct {
	net.Conn
	in *bufio.Reader
}

func (t *tlsInput) Read(p []byte) (int, error) { return t.in.Read(p) }

// discard counts the bytes of r. Reads as large as its buffer go past the
// bufio.Reader.
func (c *client) discard(r io.Reader) (n int64, err error) {
	for {
		k, err := r.Read(c.buf)
		n += int64(k)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// getBlob downloads a blob and compares its length.
func (c *client) getBlob(ctx context.Context, repo string, b blob) error {
	r, err := c.do(ctx, request{method: http.MethodGet, path: "/v2/" + repo + "/blobs/" + b.digest, want: http.StatusOK})
	if err == nil && r.n != b.size() {
		err = fmt.Errorf("blob %s: %d bytes instead of %d", b.digest, r.n, b.size())
	}
	return err
}

// pushBlob uploads a blob as docker does: POST, then one PUT.
func (c *client) pushBlob(ctx context.Context, repo string, b blob) error {
	r, err := c.do(ctx, request{method: http.MethodPost, path: "/v2/" + repo + "/blobs/uploads/", want: http.StatusAccepted})
	if err != nil {
		return err
	}
	u, err := url.Parse(r.header.Get("Location"))
	if err != nil {
		return err
	}
	v := u.Query()
	v.Set("digest", b.digest)
	u.RawQuery = v.Encode()
	_, err = c.do(ctx, request{method: http.MethodPut, path: u.RequestURI(), contentType: "application/octet-stream", body: b.parts, want: http.StatusCreated})
	return err
}

// putManifest pushes a manifest under a reference; query may name more tags.
func (c *client) putManifest(ctx context.Context, repo, ref string, m manifest) error {
	_, err := c.do(ctx, request{method: http.MethodPut, path: "/v2/" + repo + "/manifests/" + ref, contentType: m.mediaType,
		body: [][]byte{m.bytes}, want: http.StatusCreated})
	return err
}

// getManifest pulls a manifest and compares its length.
func (c *client) getManifest(ctx context.Context, repo, ref string, size int) error {
	r, err := c.do(ctx, request{method: http.MethodGet, path: "/v2/" + repo + "/manifests/" + ref, want: http.StatusOK})
	if err == nil && r.n != int64(size) {
		err = fmt.Errorf("manifest %s of %s: %d bytes instead of %d", ref, repo, r.n, size)
	}
	return err
}

// call does a request whose answer only has to have the right status.
func (c *client) call(ctx context.Context, method, path string, want int) error {
	_, err := c.do(ctx, request{method: method, path: path, want: want})
	return err
}

// clients are one connection per worker of a load.
type clients []*client

func newClients(s *server, n int, login bool) clients {
	cs := make(clients, n)
	for i := range cs {
		cs[i] = newClient(s, login)
	}
	return cs
}

func (cs clients) close() {
	for _, c := range cs {
		c.close()
	}
}
