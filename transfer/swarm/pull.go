package swarm

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
)

// drive takes what is missing from the holder that answered. nil: every unit is
// here.
func (f *flight) drive(ct *contender, q *field) error {
	ss := ct.ss
	f.mu.Lock()
	f.from = ct.node
	f.mu.Unlock()
	f.touch(ct.node, 1)
	defer func() {
		f.touch(ct.node, -1)
		f.mu.Lock()
		f.from = identity.NodeID{}
		f.mu.Unlock()
	}()
	if !ct.again {
		ss.giveUp = func() bool { return f.others(q) }
	}
	asked := map[int]bool{}
	for i := range ct.request.n {
		asked[ct.request.first+i] = true
	}
	for {
		if err := f.fill(ss, ct.pid, asked); err != nil {
			return err
		}
		if len(ss.pending) == 0 {
			if !f.isComplete() {
				return fmt.Errorf("%w: neither list nor units", errProtocol)
			}
			return nil
		}
		if err := f.step(ss, asked); err != nil {
			return err
		}
	}
}

// step takes one answer.
func (f *flight) step(ss *session, asked map[int]bool) error {
	f.mu.Lock()
	l := f.layout
	f.mu.Unlock()
	var buf []byte
	if l != nil {
		b, free, err := f.s.buffer(f.ctx, min(l.unitSize, max(l.size, 1)))
		if err != nil {
			return err
		}
		defer free()
		buf = b
	}
	got, err := ss.receive(l, buf)
	if err != nil {
		return err
	}
	return f.take(ss.node, got, asked)
}

// take checks and keeps one answer.
func (f *flight) take(node identity.NodeID, got received, asked map[int]bool) error {
	if got.first {
		f.setSize(got.size)
	}
	if got.list != nil && !f.listed() {
		if err := f.open(node, got.record, got.list); err != nil {
			return err
		}
	}
	if got.unit < 0 {
		return nil
	}
	delete(asked, got.unit)
	f.s.metrics.bytesReceived.WithLabelValues(node.String()).Add(float64(len(got.data)))
	err := f.put(got.unit, got.data)
	if errors.Is(err, units.ErrBadUnit) {
		return f.blame(node, got.unit, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	f.s.metrics.unitsReceived.Inc()
	return nil
}

// fill asks for what is missing, as long as not too much is under way.
func (f *flight) fill(ss *session, pid identity.ProjectID, asked map[int]bool) error {
	for {
		first, n := f.next(ss.outstanding(), asked)
		if n == 0 {
			return nil
		}
		if err := ss.ask(f.digest, pid, false, first, n); err != nil {
			return err
		}
		for i := first; i < first+n; i++ {
			asked[i] = true
		}
	}
}

// next chooses a run of missing units that were not asked for: where readers
// wait, then what follows there, then from the start. outstanding units are
// under way.
func (f *flight) next(outstanding int, asked map[int]bool) (first, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.layout
	// A window may have let go of what its reader turned back to.
	if l == nil || f.complete && !f.pass || f.vessel == nil && l.units() > 1 {
		return 0, 0
	}
	room := int(max(1, inflightBytes/l.unitSize)) - outstanding
	longest := min(room, maxRun, int(max(1, runBytes/l.unitSize)))
	if longest <= 0 {
		return 0, 0
	}
	missing := func(i int) bool {
		return !asked[i] && (f.vessel == nil && !f.complete || f.vessel != nil && !f.vessel.Has(i))
	}
	run := func(i int) (int, int) {
		n := 1
		for n < longest && i+n < l.units() && missing(i+n) {
			n++
		}
		return i, n
	}
	at := make([]int, 0, len(f.positions))
	for _, i := range f.positions {
		at = append(at, i)
	}
	sort.Ints(at)
	for _, i := range at {
		if i < l.units() && missing(i) {
			return run(i)
		}
	}
	starts := []int{0}
	if len(at) > 0 {
		starts = []int{at[0], 0}
	}
	for _, from := range starts {
		for i := from; i < l.units(); i++ {
			if missing(i) {
				return run(i)
			}
		}
	}
	return 0, 0
}

// blame counts a bad unit. The holder goes on after the first (a flipped bit
// somewhere), and is out for this blob after maxStrikes.
func (f *flight) blame(node identity.NodeID, unit int, err error) error {
	f.strikes[node]++
	f.s.metrics.badUnits.WithLabelValues(node.String()).Inc()
	f.s.log.Warn("holder sent a unit that is not the blob's", "digest", f.digest, "node", node, "site", f.s.site(node), "unit", unit, "error", err)
	if f.strikes[node] < maxStrikes {
		return nil
	}
	f.failed[node] = true
	if f.vessel != nil && len(f.failed) >= maxFalse {
		rec := f.vessel.Record()
		f.s.addBadRoot(rec.Root)
		f.s.metrics.badLists.WithLabelValues(rec.Signer.String()).Inc()
		f.s.log.Error("holders agree on bytes that the signed unit list does not fit: the list is false", "digest", f.digest, "node", rec.Signer, "site", f.s.site(rec.Signer))
		f.mu.Lock()
		f.poisoned = true
		f.mu.Unlock()
		f.abandoned = true
		return fmt.Errorf("%w: signed by %s", errFalseList, rec.Signer)
	}
	return fmt.Errorf("%w: %w", errBad, err)
}

// blameList puts a holder out that sent what no honest one sends.
func (f *flight) blameList(node identity.NodeID, err error) error {
	f.strikes[node] = maxStrikes
	f.s.metrics.badLists.WithLabelValues(node.String()).Inc()
	f.s.log.Warn("holder sent a record or list that is refused", "digest", f.digest, "node", node, "site", f.s.site(node), "error", err)
	return fmt.Errorf("%w: %w", errBad, err)
}

// buffer gives room for one unit between network and disk, within bufferBytes
// over all flights; the caller gives it back with free.
func (s *Swarm) buffer(ctx context.Context, n int64) (b []byte, free func(), err error) {
	if err := s.buffers.Acquire(ctx, n); err != nil {
		return nil, nil, err
	}
	if n != units.Unit { // the short and the huge are few
		return make([]byte, n), func() { s.buffers.Release(n) }, nil
	}
	p := s.unitPool.Get().(*[]byte)
	return *p, func() {
		s.unitPool.Put(p)
		s.buffers.Release(n)
	}, nil
}
