package store

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// doubtRest is for how long a blob that was read again is believed whoever
	// doubts it: who lies about others can have a disk read one blob after another,
	// not one blob for ever.
	doubtRest = time.Minute
	// maxDoubts bounds the blobs that wait to be read again. One beyond is read
	// anew when somebody asks for it, as its check is forgotten.
	maxDoubts = 64
)

// doubts are the blobs that are to be read again, one at a time.
type doubts struct {
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	worker sync.WaitGroup

	mu      sync.Mutex
	waiting []digest.Digest
	now     digest.Digest // the one that is read; empty: none
	closed  bool
	rests   map[digest.Digest]time.Time // until when doubts are not heard
}

func newDoubts() *doubts {
	d := &doubts{rests: map[digest.Digest]time.Time{}}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Doubt has a blob read and checked again, soon: somebody was sent bytes of it
// that are not its own. What was checked lately is believed no more, so that from
// now on nobody is served bytes of it that are not checked anew. A blob that turns
// out to be damaged is put aside, as if a reader had found it. It returns at once,
// and reports whether the doubt was heard: within a minute of another it is not.
func (s *Store) Doubt(d digest.Digest) bool {
	q := s.doubts
	q.mu.Lock()
	defer q.mu.Unlock()
	at := s.now()
	if q.closed || at.Before(q.rests[d]) {
		return false
	}
	for old, until := range q.rests {
		if !at.Before(until) {
			delete(q.rests, old)
		}
	}
	if len(q.rests) >= maxChecks {
		return false
	}
	q.rests[d] = at.Add(doubtRest)
	s.checks.known.Remove(d)
	s.doubted.Add(1)
	if len(q.waiting) >= maxDoubts {
		return true
	}
	q.waiting = append(q.waiting, d)
	if q.now == "" {
		q.now = q.waiting[0]
		q.worker.Go(s.readAgain)
	}
	return true
}

// readAgain reads what is doubted until nothing is.
func (s *Store) readAgain() {
	q := s.doubts
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 || q.closed {
			q.now, q.waiting = "", nil
			q.mu.Unlock()
			return
		}
		q.now, q.waiting = q.waiting[0], q.waiting[1:]
		d := q.now
		q.mu.Unlock()
		switch err := s.readWhole(q.ctx, d); {
		case err == nil:
			s.log.Info("a blob that another node doubted was read again: it is good", "digest", d)
		case errors.Is(err, ErrCorrupt), errors.Is(err, ErrNotFound), q.ctx.Err() != nil:
			// Whoever found the damage has said so; what is not here is in no doubt.
		default:
			s.log.Warn("a blob that another node doubted could not be read again", "digest", d, "error", err)
		}
	}
}

// readWhole reads a blob as a client would, and checks the whole besides: there
// are blobs without a list.
func (s *Store) readWhole(ctx context.Context, d digest.Digest) error {
	row, err := s.row(d)
	if err != nil {
		return err
	}
	b, err := s.Open(ctx, d)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	v := d.Verifier()
	if _, err := io.Copy(v, contextReader{ctx, b}); err != nil {
		return err
	}
	if !v.Verified() {
		return s.rotten(ctx, row, b.File())
	}
	return nil
}

// end waits for the blob that is being read.
func (q *doubts) end() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.cancel()
	q.worker.Wait()
}
