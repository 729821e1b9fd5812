package swarm

import (
	"context"
	"slices"
	"sync"

	"github.com/portolan/portolan/node/store/units"
)

// bufferBytes bounds the units in memory between network and disk, of all flights
// together.
const bufferBytes = 64 << 20

// leastBuffers is how much of bufferBytes is kept for each class, whatever the others
// have: a unit has its room from its first byte on, which over a slow link is long. A
// unit of the largest blobs fits, so each class goes on. Rules have 40 MiB at most.
var leastBuffers = [classes]int64{16 << 20, 8 << 20, 8 << 20}

// buffers is the memory for units between network and disk. It is given by class, and
// within a class to who came first.
type buffers struct {
	pool sync.Pool // *[]byte of units.Unit

	mu   sync.Mutex
	used [classes]int64
	line []*room // in the order in which they came
}

// room is that of one unit, or somebody in line for it.
type room struct {
	n     int64
	class class         // that it was given as, or is waited for
	got   chan struct{} // closed when it is given
}

func newBuffers() *buffers {
	return &buffers{pool: sync.Pool{New: func() any { b := make([]byte, units.Unit); return &b }}}
}

// take gives room for one unit of at most leastBuffers; who has it gives it back with
// free. Who waits stands as what the unit is for at the moment.
func (b *buffers) take(ctx context.Context, n int64, of need) (data []byte, free func(), err error) {
	c, _, changed := of.now()
	w := &room{n: n, class: c, got: make(chan struct{})}
	b.mu.Lock()
	b.line = append(b.line, w)
	b.give()
	b.mu.Unlock()
	for given := false; !given; {
		select {
		case <-w.got:
			given = true
		case <-changed:
			c, _, changed = of.now()
			b.stands(w, c)
		case <-ctx.Done():
			b.leave(w)
			return nil, nil, ctx.Err()
		}
	}
	if n != units.Unit { // the short and the huge are few
		return make([]byte, n), func() { b.leave(w) }, nil
	}
	p := b.pool.Get().(*[]byte)
	return *p, func() {
		b.pool.Put(p)
		b.leave(w)
	}, nil
}

// stands changes what a unit that waits is for. It keeps its place.
func (b *buffers) stands(w *room, c class) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Contains(b.line, w) {
		w.class = c
		b.give()
	}
}

// leave gives room back, or leaves the line.
func (b *buffers) leave(w *room) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.line)
	if b.line = slices.DeleteFunc(b.line, func(o *room) bool { return o == w }); len(b.line) == before {
		b.used[w.class] -= w.n
	}
	b.give()
}

// give gives what is free; mu is held. Nobody is passed by those of its own class: a
// large unit would wait for as long as small ones come.
func (b *buffers) give() {
	for c := range classes {
		full := false
		b.line = slices.DeleteFunc(b.line, func(w *room) bool {
			if w.class != c || full {
				return false
			}
			if full = spare(bufferBytes, b.used, leastBuffers, c) < w.n; full {
				return false
			}
			b.used[c] += w.n
			close(w.got)
			return true
		})
	}
}
