package registryapi

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
)

// pieceBytes is what a body that sendfile can't take is read in, and what of its
// TLS records goes out in one system call: four records, or the 64 KiB that the
// kernel hands to a network card at once. crypto/tls alone would make a call, and
// wake the receiver, for each record of 16 KiB. Two such pieces are in use for
// each download under way.
const pieceBytes = 64 << 10

// recordOverhead is room for what TLS adds to a piece: a head and a seal for each
// record.
const recordOverhead = 512

var (
	pieces = sync.Pool{New: func() any { b := make([]byte, pieceBytes); return &b }}
	corks  = sync.Pool{New: func() any { b := make([]byte, 0, pieceBytes+recordOverhead); return &b }}
)

// corkedListener gives connections that can hold records back.
type corkedListener struct{ net.Listener }

func (l corkedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &corkedConn{Conn: c}, nil
}

// corkedConn is the TCP connection under a TLS one. While it is corked it
// collects what is written and sends it when a piece is full; uncork sends the
// rest. Only the handler that writes a body of HTTP/1.1 may cork it, since nobody
// else writes meanwhile but TLS itself (answers to key updates and alerts, which
// may wait for a piece).
type corkedConn struct {
	net.Conn

	mu   sync.Mutex
	held *[]byte // nil: not corked
	err  error   // what was lost with a failed write: nothing may follow it
}

// Write implements net.Conn.
func (c *corkedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if c.held != nil && len(*c.held)+len(p) <= cap(*c.held) {
		*c.held = append(*c.held, p...)
		return len(p), nil
	}
	if err := c.flush(); err != nil {
		return 0, err
	}
	if c.held == nil || len(p) > cap(*c.held) {
		return c.Conn.Write(p)
	}
	*c.held = append(*c.held, p...)
	return len(p), nil
}

// flush sends what is held. The caller holds c.mu.
func (c *corkedConn) flush() error {
	if c.err != nil || c.held == nil || len(*c.held) == 0 {
		return c.err
	}
	_, c.err = c.Conn.Write(*c.held)
	*c.held = (*c.held)[:0]
	return c.err
}

func (c *corkedConn) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		c.held = corks.Get().(*[]byte)
	}
}

// uncork sends what is held.
func (c *corkedConn) uncork() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.flush()
	if c.held != nil {
		corks.Put(c.held)
		c.held = nil
	}
	return err
}

type corkKey struct{}

// withCork is http.Server.ConnContext: handlers find the connection below TLS.
func withCork(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		if k, ok := t.NetConn().(*corkedConn); ok {
			return context.WithValue(ctx, corkKey{}, k)
		}
	}
	return ctx
}

// corkOf gives the connection under a request, if its handler is the only one to
// write to it: streams of HTTP/2 share theirs.
func corkOf(r *http.Request) *corkedConn {
	if r.TLS == nil || r.ProtoMajor != 1 {
		return nil
	}
	c, _ := r.Context().Value(corkKey{}).(*corkedConn)
	return c
}

// copyPieces copies src to w in large pieces.
func copyPieces(w io.Writer, src io.Reader) (n int64, err error) {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	return io.CopyBuffer(writerOnly{w}, readerOnly{src}, *buf)
}

// readerOnly hides everything but Read, or io.CopyBuffer would leave its buffer
// aside.
type readerOnly struct{ io.Reader }
