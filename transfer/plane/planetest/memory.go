// Package planetest has a data plane in memory, for tests, and the tests that every
// data plane has to pass.
package planetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/plane"
)

const (
	// window is what a stream takes of what nobody has read.
	window = 256 << 10
	// idle is what streams begin with.
	idle = 30 * time.Second
	// streamsEach is more than anybody here opens.
	streamsEach = 28
)

var (
	errReset  = errors.New("stream reset")
	errClosed = errors.New("stream closed")
)

// Net is the nodes that reach one another.
type Net struct {
	mu    sync.Mutex
	hosts map[identity.NodeID]*Host
}

// NewNet is one without nodes.
func NewNet() *Net { return &Net{hosts: map[identity.NodeID]*Host{}} }

// Host is a node of a Net.
type Host struct {
	net    *Net
	id     identity.NodeID
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	handlers map[string]plane.Handler
	closed   bool
	serving  sync.WaitGroup
}

var _ plane.Host = (*Host)(nil)

// Join makes a node of the net, until Close.
func (n *Net) Join(id identity.NodeID) *Host {
	h := &Host{net: n, id: id, handlers: map[string]plane.Handler{}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[id] = h
	return h
}

func (n *Net) find(id identity.NodeID) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hosts[id]
}

// Close ends the node's streams and waits for its handlers.
func (h *Host) Close() error {
	h.net.mu.Lock()
	if h.net.hosts[h.id] == h {
		delete(h.net.hosts, h.id)
	}
	h.net.mu.Unlock()
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.serving.Wait()
	return nil
}

// ID implements plane.Host.
func (h *Host) ID() identity.NodeID { return h.id }

// Handle implements plane.Host.
func (h *Host) Handle(protocol string, handle plane.Handler) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.handlers[protocol] = handle
}

// Open implements plane.Host.
func (h *Host) Open(ctx context.Context, to identity.NodeID, protocol string) (plane.Stream, error) {
	if err := errors.Join(ctx.Err(), h.ctx.Err()); err != nil {
		return nil, err
	}
	other := h.net.find(to)
	if other == nil || other == h {
		return nil, fmt.Errorf("node %s can't be reached", to.Short())
	}
	out, back := newPipe(), newPipe()
	if !other.serve(h.id, protocol, out, back) {
		return nil, fmt.Errorf("node %s does not speak %s", to.Short(), protocol)
	}
	s := newStream(ctx, back, out)
	context.AfterFunc(h.ctx, s.breakOff)
	return s, nil
}

// OpenBulk implements plane.Host.
func (h *Host) OpenBulk(ctx context.Context, to identity.NodeID, protocol string) (plane.Stream, error) {
	return h.Open(ctx, to, protocol)
}

func (h *Host) serve(from identity.NodeID, protocol string, in, out *pipe) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	handle := h.handlers[protocol]
	if handle == nil || h.closed {
		return false
	}
	h.serving.Go(func() {
		ctx, cancel := context.WithCancel(h.ctx)
		defer cancel()
		s := newStream(ctx, in, out)
		defer func() { _ = s.Close() }()
		handle(ctx, from, s)
	})
	return true
}

// StreamsEach implements plane.Host.
func (h *Host) StreamsEach() int { return streamsEach }

// Connected implements plane.Host.
func (h *Host) Connected(id identity.NodeID) bool { return h.net.find(id) != nil }

// Responds implements plane.Host.
func (h *Host) Responds(ctx context.Context, id identity.NodeID) bool {
	return ctx.Err() == nil && h.Connected(id)
}

// Filled implements plane.Host: there is nothing to fill.
func (h *Host) Filled(identity.NodeID, int64) {}

// DialAfresh implements plane.Host.
func (h *Host) DialAfresh(ctx context.Context, to identity.NodeID) error {
	if !h.Responds(ctx, to) {
		return fmt.Errorf("node %s can't be reached", to.Short())
	}
	return nil
}

// pipe is one direction of a stream.
type pipe struct {
	mu      sync.Mutex
	changed chan struct{} // closed at each change
	b       []byte
	eof     bool  // nothing more comes
	err     error // it broke
}

func newPipe() *pipe { return &pipe{changed: make(chan struct{})} }

// stir wakes those that wait; mu is held.
func (p *pipe) stir() {
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *pipe) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil && (err != nil || !p.eof) {
		p.eof = true
		if p.err = err; err != nil {
			p.b = nil
		}
		p.stir()
	}
}

// wait waits until ready, which is called with mu held, says true or an error.
func (p *pipe) wait(until func() time.Time, ready func() (bool, error)) error {
	for {
		p.mu.Lock()
		ok, err := ready()
		changed := p.changed
		p.mu.Unlock()
		if ok || err != nil {
			return err
		}
		var over <-chan time.Time
		if at := until(); !at.IsZero() {
			t := time.NewTimer(time.Until(at))
			defer t.Stop()
			over = t.C
		}
		select {
		case <-changed:
		case <-over:
			if at := until(); !at.IsZero() && !time.Now().Before(at) {
				return os.ErrDeadlineExceeded
			}
		}
	}
}

type stream struct {
	in, out *pipe
	stop    func() bool

	mu       sync.Mutex
	idle     time.Duration
	deadline time.Time
}

func newStream(ctx context.Context, in, out *pipe) *stream {
	s := &stream{in: in, out: out, idle: idle}
	s.stop = context.AfterFunc(ctx, s.breakOff) // which must not look at stop
	return s
}

// until gives the end of a read or write that begins now.
func (s *stream) until(read bool) func() time.Time {
	begun := time.Now()
	return func() time.Time {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case read && !s.deadline.IsZero():
			return s.deadline
		case s.idle == 0:
			return time.Time{}
		}
		return begun.Add(s.idle)
	}
}

func (s *stream) Read(b []byte) (n int, err error) {
	err = s.in.wait(s.until(true), func() (bool, error) {
		switch {
		case s.in.err != nil:
			return false, s.in.err
		case len(s.in.b) > 0:
			n = copy(b, s.in.b)
			s.in.b = s.in.b[n:]
			s.in.stir()
			return true, nil
		case s.in.eof:
			return false, io.EOF
		}
		return len(b) == 0, nil
	})
	return n, err
}

func (s *stream) Write(b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		err = s.out.wait(s.until(false), func() (bool, error) {
			switch room := window - len(s.out.b); {
			case s.out.err != nil:
				return false, s.out.err
			case s.out.eof:
				return false, errClosed
			case room > 0:
				m := min(room, len(b)-n)
				s.out.b = append(s.out.b, b[n:n+m]...)
				n += m
				s.out.stir()
				return true, nil
			}
			return false, nil
		})
	}
	return n, err
}

func (s *stream) SetIdle(d time.Duration) {
	s.mu.Lock()
	s.idle = d
	s.mu.Unlock()
	s.look()
}

func (s *stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	s.deadline = t
	s.mu.Unlock()
	s.look()
	return nil
}

// look has reads and writes look at the time again.
func (s *stream) look() {
	for _, p := range []*pipe{s.in, s.out} {
		p.mu.Lock()
		p.stir()
		p.mu.Unlock()
	}
}

func (s *stream) CloseWrite() error {
	s.out.end(nil)
	return nil
}

func (s *stream) Close() error {
	s.stop()
	s.out.end(nil)
	s.in.end(errClosed)
	return nil
}

func (s *stream) Reset() error {
	s.stop()
	s.breakOff()
	return nil
}

func (s *stream) breakOff() {
	s.out.end(errReset)
	s.in.end(errReset)
}
