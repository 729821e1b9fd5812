package store

import (
	"container/list"
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// heldBytes bounds the units of blobs of a bucket that are in memory, all readers
// together: being checked, or checked and served from.
const heldBytes = 128 << 20

// heldUnit is one unit in memory.
type heldUnit struct {
	unit  int
	bytes []byte        // nil once it was taken back
	n     int64         // its length, also then
	idle  *list.Element // set between hold and free
}

// memory deals out heldBytes. A unit that is being filled keeps its memory. One
// that is checked keeps it until others need it: a client that reads slowly must
// not keep others waiting, and can read on from the bucket.
type memory struct {
	mu    sync.Mutex
	max   int64
	used  int64
	idle  *list.List    // of *heldUnit, longest held first
	freed chan struct{} // closed and made anew when memory came back
}

func newMemory(max int64) *memory {
	return &memory{max: max, idle: list.New(), freed: make(chan struct{})}
}

// take waits for n bytes. Its owner calls hold or drop.
func (m *memory) take(ctx context.Context, unit int, n int64) (*heldUnit, error) {
	for {
		m.mu.Lock()
		for m.used+n > m.max && m.idle.Len() > 0 {
			m.release(m.idle.Front().Value.(*heldUnit))
		}
		if m.used+n <= m.max || m.used == 0 {
			m.used += n
			m.mu.Unlock()
			return &heldUnit{unit: unit, bytes: make([]byte, n), n: n}, nil
		}
		freed := m.freed
		m.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// hold says that the unit is checked.
func (m *memory) hold(h *heldUnit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h.idle = m.idle.PushBack(h)
	m.signal()
}

// drop gives a unit back that was not checked.
func (m *memory) drop(h *heldUnit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.release(h)
}

// free ends what hold began.
func (m *memory) free(h *heldUnit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h.bytes != nil {
		m.release(h)
	}
}

// copy copies from a checked unit, unless it was taken back.
func (m *memory) copy(p []byte, h *heldUnit, off int64) (int, bool) {
	m.mu.Lock()
	b := h.bytes
	m.mu.Unlock()
	if b == nil {
		return 0, false
	}
	// The slice is not used for anything else after it was taken back.
	return copy(p, b[off:]), true
}

func (m *memory) release(h *heldUnit) {
	if h.idle != nil {
		m.idle.Remove(h.idle)
	}
	h.idle, h.bytes = nil, nil
	m.used -= h.n
	m.signal()
}

func (m *memory) signal() {
	close(m.freed)
	m.freed = make(chan struct{})
}

// metric says how much of it is in use.
func (m *memory) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "portolan_store_held_bytes",
		Help: "Units of blobs of the bucket that are in memory to be checked or served.",
	}, func() float64 {
		m.mu.Lock()
		defer m.mu.Unlock()
		return float64(m.used)
	})
}
