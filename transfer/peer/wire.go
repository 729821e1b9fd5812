package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/crypto"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
)

// crypto/tls asks the kernel for each record of 16 KiB by itself, is woken by every
// packet that comes of one, and writes each by itself. But a frame of the muxer is
// four records, and of use only when all of it is here. So TLS stands on a wire: it
// takes as much from the kernel as there is, sleeps until the rest of a frame is
// here, and gives the kernel a whole frame at once.

const (
	// MaxFrame is how many bytes of a stream go in one frame, which with its head is
	// four full records. Who sends much writes so many at a time: a byte more is a
	// frame of its own.
	MaxFrame = 64<<10 - frameHeader

	// Of TLS 1.3.
	maxPlain     = 16 << 10 // bytes that a record carries
	recordHeader = 5
	recordSeal   = 1 + 16 // the type that is inside, and the tag

	// wireBuffer is how much is taken from the kernel at once, or given to it: a
	// frame in its records and as much of the next. A connection has one only while
	// there is something in it.
	wireBuffer = 128 << 10
	// maxLow bounds what the kernel is told to wait for. It fits into the receive
	// buffer that connections begin with (128 KiB, of which half or more is the
	// kernel's own), so that Linux does not take it as a wish for a larger one, and
	// never sets the window by it.
	maxLow = 32 << 10
)

var wireBuffers = sync.Pool{New: func() any { return new([wireBuffer]byte) }}

// wire is the connection that TLS has. TLS reads from one goroutine at a time, and
// writes from one.
type wire struct {
	net.Conn
	kernel kernelReader

	// Of who reads.
	in      *[wireBuffer]byte // nil: nothing is here
	r, w    int               // what was not read of it
	failed  error             // what comes behind it
	records records
	awaited int // see await

	// Of who writes.
	mu   sync.Mutex
	held bool
	out  *[wireBuffer]byte // what was written while it was held; nil: nothing
	n    int

	flushing, closing atomic.Bool
}

func newWire(c net.Conn) *wire {
	w := &wire{Conn: c}
	w.kernel.of(c)
	return w
}

// await says that what is read from now on is of no use before so many bytes of
// plain text are here.
func (w *wire) await(plain int) { w.awaited = plain }

func (w *wire) Read(p []byte) (int, error) {
	if !w.kernel.there() {
		return w.Conn.Read(p)
	}
	if w.in == nil && w.failed == nil {
		need := min(w.records.need(w.awaited), wireBuffer)
		w.in, w.w, w.failed = w.kernel.read(need)
		w.r = 0
	}
	if w.in == nil {
		err := w.failed
		if isTimeout(err) {
			w.failed = nil // the next read may have more time
		}
		return 0, err
	}
	n := copy(p, w.in[w.r:w.w])
	w.records.pass(w.in[w.r : w.r+n])
	if w.r += n; w.r == w.w {
		wireBuffers.Put(w.in)
		w.in = nil
	}
	return n, nil
}

// records follows the records that TLS is given. When TLS asks for more it has used
// up all whole ones, and has all that it was given of the next.
type records struct {
	head  [recordHeader]byte
	got   int // of head, of the record that begins
	left  int // of the record's rest that is behind the head, not given
	plain int // that it carries, at most
}

// pass notes what TLS was given.
func (r *records) pass(b []byte) {
	for len(b) > 0 {
		if r.left == 0 {
			n := copy(r.head[r.got:], b)
			b = b[n:]
			if r.got += n; r.got < recordHeader {
				return
			}
			r.got = 0
			r.left = int(binary.BigEndian.Uint16(r.head[3:]))
			r.plain = max(0, r.left-recordSeal)
			continue
		}
		n := min(r.left, len(b))
		r.left -= n
		b = b[n:]
	}
}

// need is how many bytes TLS has to be given at least before it can give so many of
// plain text.
func (r *records) need(plain int) int {
	if r.left > 0 {
		return r.left + sealed(plain-r.plain)
	}
	return max(1, sealed(plain)-r.got)
}

// sealed is how many bytes plain text takes at least in records.
func sealed(plain int) int {
	if plain <= 0 {
		return 0
	}
	return plain + (plain+maxPlain-1)/maxPlain*(recordHeader+recordSeal)
}

// hold keeps what is written from now on, until flush writes it at once.
func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = true
}

func (w *wire) flush() error {
	w.flushing.Store(true)
	defer w.flushing.Store(false)
	if w.closing.Load() {
		return net.ErrClosed
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = false
	return w.send()
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.held || len(p) > wireBuffer-w.n {
		if err := w.send(); err != nil {
			return 0, err
		}
	}
	if !w.held || len(p) > wireBuffer {
		return w.Conn.Write(p)
	}
	if w.out == nil {
		w.out = wireBuffers.Get().(*[wireBuffer]byte)
	}
	w.n += copy(w.out[w.n:], p)
	return len(p), nil
}

// send writes what was held; mu is held. What could not be written is lost: the
// connection is of no more use.
func (w *wire) send() error {
	if w.out == nil {
		return nil
	}
	_, err := w.Conn.Write(w.out[:w.n])
	wireBuffers.Put(w.out)
	w.out, w.n = nil, 0
	return err
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// abort ends a flush that the other side does not take, and any later one. TLS ends
// its own writes when it is closed; of this one it knows nothing, and would wait 5 s
// to say good-bye behind it.
func (w *wire) abort() {
	w.closing.Store(true) // before the look: either this sees the flush, or it sees this
	if w.flushing.Load() {
		_ = w.Conn.Close()
	}
}

// wired is libp2p's TLS on a wire.
type wired struct{ *libp2ptls.Transport }

func newWired(id protocol.ID, key crypto.PrivKey, muxers []upgrader.StreamMuxer) (*wired, error) {
	t, err := libp2ptls.New(id, key, muxers)
	return &wired{t}, err
}

// wiredConn is a secured connection, and what it stands on.
type wiredConn struct {
	sec.SecureConn
	wire *wire
}

func (c *wiredConn) Close() error {
	c.wire.abort()
	err := c.SecureConn.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil // by abort, or twice
	}
	return err
}

func (t *wired) SecureInbound(ctx context.Context, insecure net.Conn, p corepeer.ID) (sec.SecureConn, error) {
	w := newWire(insecure)
	c, err := t.Transport.SecureInbound(ctx, w, p)
	if err != nil {
		return nil, err
	}
	return &wiredConn{c, w}, nil
}

func (t *wired) SecureOutbound(ctx context.Context, insecure net.Conn, p corepeer.ID) (sec.SecureConn, error) {
	w := newWire(insecure)
	c, err := t.Transport.SecureOutbound(ctx, w, p)
	if err != nil {
		return nil, err
	}
	return &wiredConn{c, w}, nil
}
