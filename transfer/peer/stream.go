package peer

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

// DefaultIdle is how long a Read or Write waits for the first byte to move
// before it fails, unless SetIdle says otherwise.
const DefaultIdle = 30 * time.Second

// Stream is one bidirectional stream to a member. libp2p's streams know no
// context and wait for ever; these are reset when their context ends, and each
// Read and Write has the idle time to make progress.
type Stream struct {
	s    network.MuxedStream
	stop func() bool // of the context's AfterFunc

	idle        atomic.Int64 // nanoseconds; 0: no rolling deadline
	readRolled  atomic.Int64 // Unix nanoseconds: when the reader last moved its deadline
	writeRolled atomic.Int64
	readFixed   atomic.Bool // SetReadDeadline rules until it is cleared
	writeFixed  atomic.Bool

	once     sync.Once
	closeErr error
}

func newStream(ctx context.Context, s network.MuxedStream) *Stream {
	st := &Stream{s: s}
	st.idle.Store(int64(DefaultIdle))
	st.stop = context.AfterFunc(ctx, func() { _ = s.Reset() })
	return st
}

// Read reads with the rolling deadline.
func (s *Stream) Read(p []byte) (int, error) {
	if !s.readFixed.Load() {
		s.roll(&s.readRolled, s.s.SetReadDeadline)
	}
	n, err := s.s.Read(p)
	return n, orFull(err)
}

// Write writes with the rolling deadline: it is moved on for each piece of what
// is written, so a large write to a slow peer ends only if nothing moves.
func (s *Stream) Write(p []byte) (int, error) {
	const piece = 256 << 10 // about a first window
	done := 0
	for {
		if !s.writeFixed.Load() {
			s.roll(&s.writeRolled, s.s.SetWriteDeadline)
		}
		part := p[done:]
		if len(part) > piece {
			part = part[:piece]
		}
		n, err := s.s.Write(part)
		done += n
		if err != nil || done == len(p) {
			return done, orFull(err)
		}
	}
}

// fullError is why a stream ended that the other side has no room for, or has no more:
// it tells of how many there are, not of what was asked on it.
type fullError struct{ error }

func (e fullError) Unwrap() error { return e.error }

// Full tells from other errors.
func (e fullError) Full() bool { return true }

// orFull says of a reset for want of room what it is.
func orFull(err error) error {
	var reset *network.StreamError
	if errors.As(err, &reset) && reset.Remote && reset.ErrorCode == network.StreamResourceLimitExceeded {
		return fullError{err}
	}
	return err
}

// refuse is Reset for want of room, which the other side is told.
func (s *Stream) refuse() error {
	s.stop()
	return s.s.ResetWithError(network.StreamResourceLimitExceeded)
}

// roll moves the deadline on, but not at every call: a timer costs more than a
// small read.
func (s *Stream) roll(last *atomic.Int64, set func(time.Time) error) {
	idle := time.Duration(s.idle.Load())
	now := time.Now()
	if idle == 0 || now.Sub(time.Unix(0, last.Load())) < idle/8 {
		return
	}
	last.Store(now.UnixNano())
	_ = set(now.Add(idle)) // fails only on a stream that is closed, as will the call that follows
}

// SetIdle sets how long a Read or Write may make no progress; 0 lets them wait
// as long as the context does. It holds from the next call on.
func (s *Stream) SetIdle(d time.Duration) {
	s.idle.Store(int64(d))
	s.readRolled.Store(0)
	s.writeRolled.Store(0)
	if d == 0 {
		_ = s.s.SetDeadline(time.Time{})
	}
}

// SetDeadline sets a fixed deadline for reads and writes; zero goes back to
// rolling ones.
func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// SetReadDeadline is SetDeadline for reads alone.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.readFixed.Store(!t.IsZero())
	s.readRolled.Store(0)
	return s.s.SetReadDeadline(t)
}

// SetWriteDeadline is SetDeadline for writes alone.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.writeFixed.Store(!t.IsZero())
	s.writeRolled.Store(0)
	return s.s.SetWriteDeadline(t)
}

// CloseWrite tells the peer that nothing more comes.
func (s *Stream) CloseWrite() error { return s.s.CloseWrite() }

// Close closes both directions; what was written is still delivered.
func (s *Stream) Close() error {
	s.once.Do(func() {
		s.stop()
		s.closeErr = s.s.Close()
	})
	return s.closeErr
}

// Reset ends the stream at both ends at once, dropping what is under way. On
// any failure reset: a half-open stream holds memory at both ends.
func (s *Stream) Reset() error {
	s.stop()
	return s.s.Reset()
}
