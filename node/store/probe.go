package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/portolan/portolan/node/store/blobs"
)

const (
	// ProbeFor bounds a probe: a disk or bucket that takes longer for so little keeps
	// nobody waiting for an answer.
	ProbeFor = 10 * time.Second
	// probeRest is for how long after a probe others take its answer: so much of a disk or
	// bucket takes who asks all the time, and who has put it right need not wait.
	probeRest = time.Second
)

// ProbeBytes is what a probe writes.
const ProbeBytes = blobs.ProbeBytes

// ErrProbeClosed says that the store is closed, and there is nothing to try any more.
var ErrProbeClosed = errors.New("the store is closed: its node stops")

// probes are the attempts to write to the store, one at a time.
type probes struct {
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	worker sync.WaitGroup
	rest   time.Duration // probeRest; tests have another

	mu     sync.Mutex
	last   *probe // the one that runs, or the last; nil: there was none
	closed bool
}

// probe is one attempt. What it came to is there when done is closed.
type probe struct {
	done  chan struct{}
	took  time.Duration
	ended time.Time
	err   error
}

func newProbes() *probes {
	p := &probes{rest: probeRest}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Probe tries whether a blob would be kept now: a few bytes are written to where
// blobs are, read back and removed (see blobs.Store.Probe). One runs at a time, for
// ProbeFor at most: those that ask meanwhile, or within a second of its end, take
// its answer. ctx bounds the waiting alone: a disk that hangs can't be called off.
func (s *Store) Probe(ctx context.Context) (took time.Duration, err error) {
	p, err := s.probes.join(s.files)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.done:
		took, err = p.took, p.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("the store in %s did not write, read back and remove %d KiB in time: %w", s.files.Dir(), ProbeBytes>>10, err)
	}
	return took, err
}

// join gives the probe that runs or has just ended, or begins one.
func (q *probes) join(files *blobs.Store) (*probe, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil, ErrProbeClosed
	}
	if p := q.last; p != nil {
		select {
		case <-p.done:
			if time.Since(p.ended) < q.rest {
				return p, nil
			}
		default:
			return p, nil
		}
	}
	p := &probe{done: make(chan struct{})}
	q.last = p
	q.worker.Go(func() {
		ctx, cancel := context.WithTimeout(q.ctx, ProbeFor)
		defer cancel()
		begun := time.Now()
		p.err = files.Probe(ctx)
		p.ended = time.Now()
		p.took = p.ended.Sub(begun)
		close(p.done)
	})
	return p, nil
}

// end calls off the probe that runs, and waits for it.
func (q *probes) end() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.cancel()
	q.worker.Wait()
}
