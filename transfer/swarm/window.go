package swarm

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

const (
	// passWindow is what a blob that can't be stored has in memory between the
	// network and its client.
	passWindow = 8 << 20
	// leastPassing is how many units it is at least: of the largest blobs one is read
	// while the next one comes.
	leastPassing = 2
)

// passUnits is how many units of a size a window holds.
func passUnits(unitSize int64) int { return int(max(leastPassing, passWindow/unitSize)) }

// errPassed is a read of what went by: a full disk keeps nothing.
var errPassed = fmt.Errorf("%w: the part asked for went by and was not kept", store.ErrNoSpace)

// vessel takes the units of a flight: a partial file, or a window in memory when
// the disk is full.
type vessel interface {
	// Put checks data as unit i and keeps it; ErrBadUnit if it does not link.
	Put(i int, data []byte) error
	// Has says that unit i is not to be fetched (again).
	Has(i int) bool
	// Missing is the number of units that were not checked yet.
	Missing() int
	// ReadAt reads units that are here.
	ReadAt(p []byte, off int64) (int, error)
	// Record and List are what the units are checked against.
	Record() units.Record
	List() *units.List
}

// window is the vessel of a flight that passes through: it holds the units from
// the reader's position on, and nothing is asked for that it has no room for. So
// no answer waits for the reader, nor what comes behind it from the same holder.
// Every link is still checked, so that the last unit waits for the whole chain
// here as well.
type window struct {
	rec  units.Record
	list *units.List
	max  int // units held

	mu     sync.Mutex
	pos    int
	proved []bool
	left   int // not proved
	held   map[int][]byte
}

func newWindow(rec units.Record, list *units.List) *window {
	return &window{
		rec: rec, list: list, max: passUnits(rec.UnitSize),
		proved: make([]bool, list.Units()), left: list.Units(),
		held: map[int][]byte{},
	}
}

// wants gives the units that may be asked for: those that there is room for, and once
// that is up to the blob's end, those behind the reader as well, whose links alone are
// needed: who reads a range that ends before waits for none of them.
func (w *window) wants() (from, until int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.list.Units(); w.pos+w.max >= n {
		return 0, n
	}
	return w.pos, w.pos + w.max
}

func (w *window) Put(i int, data []byte) error {
	if err := w.list.Verify(i, data); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.proved[i] {
		w.proved[i] = true
		w.left--
	}
	// What lies elsewhere was asked for before the reader jumped, or for its link alone.
	// When the reader comes there it is fetched again: to wait for that would hold up
	// what the reader waits for now.
	if i >= w.pos && i < w.pos+w.max && w.held[i] == nil {
		w.held[i] = append(make([]byte, 0, len(data)), data...)
	}
	return nil
}

func (w *window) Has(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i < w.pos {
		return w.proved[i]
	}
	return w.held[i] != nil
}

func (w *window) Missing() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.left
}

func (w *window) Record() units.Record { return w.rec }

func (w *window) List() *units.List { return w.list }

// move lets go of what is behind the reader, and of what is too far ahead. It says
// whether the reader has moved.
func (w *window) move(pos int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if pos == w.pos {
		return false
	}
	w.pos = pos
	for i := range w.held {
		if i < pos || i >= pos+w.max {
			delete(w.held, i)
		}
	}
	return true
}

func (w *window) ReadAt(p []byte, off int64) (int, error) {
	i := int(off / w.rec.UnitSize)
	w.mu.Lock()
	defer w.mu.Unlock()
	b := w.held[i]
	if b == nil {
		return 0, errPassed
	}
	n := copy(p, b[off-int64(i)*w.rec.UnitSize:])
	if n < len(p) {
		return n, store.ErrIncomplete
	}
	return n, nil
}

// passThrough reads a blob from its holders without storing it: the disk is
// full. Each reader has a flight of its own, as one window can't serve two.
func (s *Swarm) passThrough(ctx context.Context, w Want) (Blob, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	f := newFlight(s, w)
	f.pass = true
	select {
	case s.passing <- struct{}{}:
	default:
		s.mu.Unlock()
		f.cancel()
		return nil, fmt.Errorf("blob %s: %w", w.Digest, store.ErrNoSpace)
	}
	f.joined(w, true)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer func() { <-s.passing }()
		f.run()
	}()
	s.mu.Unlock()
	s.log.Warn("disk full: a blob is passed through without being stored", "digest", w.Digest)
	b, err := s.await(ctx, f, w)
	if errors.Is(err, store.ErrNotFound) && f.err == nil {
		err = store.ErrNoSpace // it came whole, and was not kept
	}
	return b, err
}
