package swarm

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

// Protocol is the name of the blob protocol on the data plane.
const Protocol = "/portolan/blob/1"

const (
	// maxMessage bounds a request or the head of an answer: a record is under
	// 250 bytes, a reason a sentence.
	maxMessage = 4 << 10
	// maxRun bounds the units of one request: 8 MiB of 1 MiB units.
	maxRun = 8
	// piece is what is read or written between two looks at the deadline. With a
	// stall time of 10 s a holder below 6.5 kB/s counts as stalled.
	piece = 64 << 10
)

// errProtocol is an answer that no honest node of this version sends.
var errProtocol = errors.New("answer breaks the blob protocol")

// refusedError is an answer with a status.
type refusedError struct {
	status Status
	reason string
	// The units asked for that do not come.
	first, end int
	coming     bool // see Answer.coming
	elsewhere  bool // of a small blob: it comes from another receiver there, see Answer.taken
}

func (e *refusedError) Error() string {
	if e.reason == "" {
		return e.status.String()
	}
	return e.reason
}

// stream is what sessions and the server need of a plane.Stream.
type stream interface {
	io.ReadWriter
	SetIdle(time.Duration)
	SetReadDeadline(time.Time) error
	Reset() error
	Close() error
}

var _ stream = plane.Stream(nil)

// run is a request whose answers are not all here.
type run struct {
	id      uint64
	next    int // unit that the next answer must bring
	end     int
	alg     digest.Algorithm // of the digest: what states a list has
	record  bool             // a record was asked for and has not come
	sparing bool             // units may be left out
	subs    bool             // sub-states may come with the next unit
	trial   bool             // see order
	opened  bool             // the first answer came
}

// session is one stream to a holder with the requests on their way. Answers
// come in the order of the requests. One goroutine reads; one at a time asks,
// which may be another.
type session struct {
	node   identity.NodeID
	st     stream
	stall  time.Duration            // longest wait for a head or a piece
	quiet  time.Duration            // after so long without a byte giveUp is asked
	giveUp func() bool              // says that others can go on with it; nil: nobody
	heard  func()                   // told of every read; may be nil
	came   func(n int)              // told of every piece of a list or unit; may be nil
	splits splitsFunc               // told of sub-states; may be nil
	timed  func(time.Duration)      // told how long the first answer took when none was outstanding; may be nil
	limit  time.Time                // of the head or piece that is read now
	woken  time.Time                // the stream's read deadline, which may be earlier than it should; zero: to be set
	lastID uint64                   // of the asking goroutine
	class  atomic.Uint32            // budget.Class of the last request
	pace   func(n int) (int, error) // waits until some of n bytes may be read; nil: all may be
	head   *Answer                  // of the next answer, when it was read before the rest
	used   time.Time                // when it was put back into the pool

	mu      sync.Mutex
	pending []*run
	heads   int       // answers that began
	since   time.Time // the request that found none outstanding; zero: answered
}

// requests is the number of those that are not wholly answered.
func (s *session) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

// answers counts the answers that began on this stream.
func (s *session) answers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heads
}

// ask sends a request for units, and for the record.
func (s *session) ask(d digest.Digest, project identity.ProjectID, o order) error {
	s.lastID++
	s.class.Store(uint32(o.class.onLink()))
	s.mu.Lock()
	if len(s.pending) == 0 {
		s.since = time.Now()
	}
	// Before it is written: the answer may come at once.
	s.pending = append(s.pending, &run{id: s.lastID, next: o.first, end: o.first + o.n, alg: d.Algorithm(), record: o.record, sparing: o.unlessGiven > 0, subs: o.subs, trial: o.trial})
	s.mu.Unlock()
	return peer.WriteMsg(s.st, &Request{
		Id: s.lastID, Digest: d.String(), Project: project[:], UnlessGivenMs: uint32(o.unlessGiven / time.Millisecond),
		WantRecord: o.record, FirstUnit: uint32(o.first), Units: uint32(o.n), Class: uint32(o.class.onLink()) + 1,
		WantSubStates: o.subs, Doubt: o.doubt,
	}, maxMessage)
}

// first is the request that the next answer belongs to.
func (s *session) first() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		return nil
	}
	return s.pending[0]
}

// shift takes the first request off: it is answered.
func (s *session) shift() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = s.pending[1:]
}

// began notes the head of an answer.
func (s *session) began() {
	s.mu.Lock()
	s.heads++
	since := s.since
	s.since = time.Time{}
	s.mu.Unlock()
	if !since.IsZero() && s.timed != nil {
		s.timed(time.Since(since))
	}
}

// await reads the head of the next answer, if that is not here, and gives it.
func (s *session) await() (*Answer, error) {
	if s.head == nil {
		if err := s.peek(); err != nil {
			return nil, err
		}
	}
	return s.head, nil
}

// received is one answer, checked against the request but not against the list.
type received struct {
	size   int64 // of the blob; valid when first
	first  bool  // the first answer to its request
	record []byte
	list   []byte
	unit   int // -1: none
	data   []byte
	taken  int  // the unit that was left out; -1: none
	trial  bool // it was asked for as one
}

// layout is what the receiver knows of a blob: how many bytes each unit has.
type layout struct {
	size     int64
	unitSize int64
}

func layoutOf(size int64) layout { return layout{size: size, unitSize: units.UnitSizeFor(size)} }

func (l layout) units() int {
	if l.size == 0 {
		return 1
	}
	return int((l.size + l.unitSize - 1) / l.unitSize)
}

func (l layout) span(i int) (off, n int64) {
	off = int64(i) * l.unitSize
	return off, min(l.unitSize, l.size-off)
}

// peek reads the head of the next answer and leaves it for receive, unless it is
// a refusal.
func (s *session) peek() error {
	s.limit = time.Now().Add(s.stall)
	var a Answer
	if err := peer.ReadMsg(patient{s}, &a, maxMessage); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // something was asked: this is no end
		}
		return err
	}
	r := s.first()
	if r == nil {
		return fmt.Errorf("%w: nothing was asked", errProtocol)
	}
	if a.Id != r.id {
		return fmt.Errorf("%w: answer to request %d instead of %d", errProtocol, a.Id, r.id)
	}
	s.began()
	if a.Status != Status_STATUS_OK {
		s.shift()
		return &refusedError{status: a.Status, reason: a.Reason, first: r.next, end: r.end}
	}
	s.head = &a
	return nil
}

// receive reads the next answer. known is the blob's layout, nil as long as no
// answer told its size. buf takes a unit: it must hold as many bytes as a unit of
// known has. The error is a *refusedError, errProtocol or the
// stream's; after any but a refusal the session is of no more use.
func (s *session) receive(known *layout, buf []byte) (received, error) {
	got := received{unit: -1, taken: -1}
	r := s.first()
	if r == nil {
		return got, fmt.Errorf("%w: nothing was asked", errProtocol)
	}
	got.trial = r.trial
	a, err := s.await()
	if err != nil {
		return got, err
	}
	s.head = nil
	got.first = !r.opened
	if got.first {
		if a.Size < 0 || a.Size > units.MaxSize {
			return got, fmt.Errorf("%w: size %d", errProtocol, a.Size)
		}
		if known != nil && a.Size != known.size {
			// It may as well be the manifest that is wrong: no blame.
			return got, &refusedError{status: Status_STATUS_NOT_FOUND, reason: fmt.Sprintf("the holder's blob has %d bytes, not %d", a.Size, known.size)}
		}
		r.opened = true
		got.size = a.Size
		l := layoutOf(a.Size)
		known = &l
		// The sender cuts a run at the blob's end.
		s.mu.Lock()
		r.end = max(r.next, min(r.end, l.units()))
		s.mu.Unlock()
	}
	if known == nil {
		return got, fmt.Errorf("%w: no size", errProtocol)
	}
	if len(a.Record) > 0 || a.ListBytes > 0 {
		if !r.record || int(a.ListBytes) != units.ListBytes(r.alg, known.size) {
			return got, fmt.Errorf("%w: list of %d bytes", errProtocol, a.ListBytes)
		}
		r.record = false
		got.record = a.Record
		got.list = make([]byte, a.ListBytes)
		if err := s.readFull(got.list, nil); err != nil {
			return got, err
		}
	}
	if a.HasUnit {
		if r.next >= r.end || int(a.Unit) != r.next {
			return got, fmt.Errorf("%w: unit %d instead of %d", errProtocol, a.Unit, r.next)
		}
		_, n := known.span(r.next)
		if int64(a.UnitBytes) != n || n > int64(len(buf)) {
			return got, fmt.Errorf("%w: unit %d of %d bytes instead of %d", errProtocol, a.Unit, a.UnitBytes, n)
		}
		got.unit, got.data = r.next, buf[:n]
		told, err := s.subStates(r, a, got.data)
		if err == nil {
			err = s.readFull(got.data, told)
		}
		if err != nil {
			return got, err
		}
		s.mu.Lock()
		r.next++
		s.mu.Unlock()
	} else if a.Taken {
		if !r.sparing || r.next >= r.end || int(a.Unit) != r.next || a.UnitBytes > 0 || a.SubBytes > 0 {
			return got, fmt.Errorf("%w: unit %d is left out", errProtocol, a.Unit)
		}
		got.taken = r.next
		r.subs = false
		s.mu.Lock()
		r.next++
		s.mu.Unlock()
	} else if a.UnitBytes > 0 || a.SubBytes > 0 {
		return got, fmt.Errorf("%w: %d bytes of no unit", errProtocol, a.UnitBytes+a.SubBytes)
	} else if got.list == nil && !a.Last {
		// Each answer brings something: else a holder could answer for ever.
		return got, fmt.Errorf("%w: an answer without content", errProtocol)
	}
	if done := r.next == r.end; a.Last != done {
		return got, fmt.Errorf("%w: answer ends at unit %d instead of %d", errProtocol, r.next, r.end)
	}
	if a.Last {
		s.shift()
	}
	return got, nil
}

// readFull gives each piece the stall time: a holder that dribbles is stalled. told,
// if not nil, hears after each how much of b is here.
func (s *session) readFull(b []byte, told func(n int)) error {
	for at := 0; at < len(b); {
		n := min(len(b)-at, piece)
		s.limit = time.Now().Add(s.stall)
		if _, err := io.ReadFull(patient{s}, b[at:at+n]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if s.came != nil {
			s.came(n)
		}
		if at += n; told != nil {
			told(at)
		}
	}
	return nil
}

// patient reads a session's stream until the limit, and no longer than the quiet
// time without a byte if somebody else can go on.
type patient struct{ s *session }

func (p patient) Read(b []byte) (int, error) {
	s := p.s
	if s.pace != nil && len(b) > 0 {
		before := time.Now()
		n, err := s.pace(len(b))
		if err != nil {
			return 0, err
		}
		b = b[:n]
		s.limit = s.limit.Add(time.Since(before)) // it is not the holder that is slow
	}
	var until time.Time
	for {
		set := false
		if until.IsZero() {
			until = s.limit
			if s.giveUp != nil {
				if q := time.Now().Add(s.quiet); q.Before(until) {
					until = q
				}
			}
		}
		// A timer for each read costs more than to be woken too early now and then. But
		// no read begins with a deadline that is over or near, as it would be after a
		// wait for a budget or the disk: the muxer gives the sender's window back under
		// the same deadline, and what it can't send by then it forgets.
		now := time.Now()
		if left, wait := s.woken.Sub(now), until.Sub(now); s.woken.IsZero() || left > wait || left < wait/2 {
			if err := s.st.SetReadDeadline(until); err != nil {
				return 0, err
			}
			s.woken, set = until, true
		}
		n, err := s.st.Read(b)
		if n > 0 && s.heard != nil {
			s.heard()
		}
		if n > 0 || err == nil || !timedOut(err) {
			return n, err
		}
		s.woken = time.Time{}
		if time.Now().Before(until) {
			if set {
				// It is not this deadline that is over: no later one will be better.
				return 0, fmt.Errorf("the stream has ended: %w", err)
			}
			continue
		}
		if !until.Before(s.limit) {
			return 0, fmt.Errorf("sent nothing for %s: %w", s.stall, err)
		}
		if s.giveUp() {
			return 0, fmt.Errorf("for %s %w", s.quiet, errQuiet)
		}
		until = time.Time{}
	}
}

func timedOut(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
