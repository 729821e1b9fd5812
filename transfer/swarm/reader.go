package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/portolan/portolan/node/store"
)

var errReaderClosed = errors.New("blob reader is closed")

// reader reads a blob as it arrives. It has one owner, as any io.Reader.
type reader struct {
	f    *flight
	ctx  context.Context
	size int64
	off  int64

	subject string // who reads

	local  store.Blob // after the flight's end
	closed bool

	early  bool  // see Early; guarded by flight.mu
	owes   owing // what was given out and is not proven
	failed error // it was wrong
}

// await waits for a flight's first unit and gives the reader that the caller
// joined for.
func (s *Swarm) await(ctx context.Context, f *flight, w Want) (Blob, error) {
	patience := time.NewTimer(s.cfg.Answer)
	defer patience.Stop()
	look := time.NewTimer(lookAfter)
	defer look.Stop()
	looking, stop := context.WithCancel(ctx)
	var looks sync.WaitGroup
	defer looks.Wait()
	defer stop()
	signs := make(chan time.Duration, 1) // of one look at a time: until the next
	var err error
	for err == nil {
		select {
		case <-f.opened:
			return newReader(ctx, f, w), nil
		case <-f.done:
			if f.readable() {
				return newReader(ctx, f, w), nil
			}
			if err = f.err; err == nil {
				s.leave(f, true, w.Subject)
				return s.openIn(ctx, w.Digest, w.PID)
			}
		case <-look.C:
			looks.Go(func() { signs <- f.alive(looking) })
		case again := <-signs:
			if again > 0 {
				look.Reset(again)
			} else {
				err = s.unreachable(f.holders())
			}
		case <-patience.C:
			err = s.unreachable(f.holders())
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	s.leave(f, true, w.Subject)
	return nil, err
}

// newReader takes over the caller's place in the flight.
func newReader(ctx context.Context, f *flight, w Want) *reader {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := &reader{f: f, ctx: ctx, size: f.layout.size, subject: w.Subject}
	f.positions[r] = 0
	return r
}

// Size is the blob's length.
func (r *reader) Size() int64 { return r.size }

// Seek moves the next Read; the unit there is then asked for first.
func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d: before the blob's start", offset)
	}
	r.off = offset
	return offset, nil
}

// Read blocks until the unit at the position is checked. Invariants T1 and T3.
func (r *reader) Read(p []byte) (int, error) {
	if r.closed {
		return 0, errReaderClosed
	}
	if r.off >= r.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, wait, err := r.read(p)
		if wait == nil {
			r.off += int64(n)
			return n, err
		}
		if err := r.pause(wait); err != nil {
			return 0, err
		}
	}
}

// pause waits for a change, and at the flight's end opens what the store has.
func (r *reader) pause(changed <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-r.f.done:
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
	if r.f.err != nil {
		return r.f.err
	}
	b, err := r.f.s.openIn(r.ctx, r.f.digest, r.f.pid)
	if err == nil {
		r.local = b
	}
	return err
}

// stand says in which unit the reader is; flight.mu is held.
func (r *reader) stand(i int) {
	f := r.f
	moved := f.positions[r] != i
	f.positions[r] = i
	if moved && !f.sched.have.has(i) {
		for _, l := range f.lanes { // it is asked for before what follows elsewhere
			wake(l.waiter.wake)
		}
	}
}

// read reads what is here at the position; else it gives what to wait for.
func (r *reader) read(p []byte) (int, <-chan struct{}, error) {
	f := r.f
	if r.failed != nil {
		return 0, nil, r.failed
	}
	// What was given out of one unit is proven before another one is read.
	i := int(r.off / f.layout.unitSize)
	if r.owes.early != nil && (r.owes.unit != i || r.local != nil) {
		if wait, err := r.prove(); r.owes.early != nil {
			return 0, wait, err
		}
	}
	if r.local != nil {
		n, err := r.local.ReadAt(p[:min(int64(len(p)), r.size-r.off)], r.off)
		if n > 0 {
			err = nil
		}
		return n, nil, err
	}
	f.mu.Lock()
	l := f.layout
	r.stand(i)
	wait := f.changed
	lastUnit := l.units() - 1
	off, n := l.span(i)
	end := off + n
	kept := f.complete && (f.small.Bytes() != nil || f.pass) // readable beyond the flight's end
	ok := !f.poisoned && !f.foreign && (!f.over || kept) && (i < lastUnit || f.complete)
	small, vessel, over := f.small.Bytes(), f.vessel, f.over
	peeked := 0
	if i < lastUnit && !f.foreign {
		peeked = r.peeked(p, i)
	}
	f.mu.Unlock()
	if w, passing := vessel.(*window); passing {
		f.follow(w, i)
		if over && kept && !w.Has(i) {
			return 0, nil, errPassed
		}
	}
	if peeked > 0 {
		return peeked, nil, nil
	}
	if !ok {
		return 0, wait, nil
	}
	p = p[:min(int64(len(p)), end-r.off)]
	switch {
	case small != nil:
		return copy(p, small[r.off:]), nil, nil
	case vessel == nil || !vessel.Has(i):
		return 0, wait, nil
	}
	if r.owes.early != nil {
		if wait, err := r.prove(); r.owes.early != nil {
			return 0, wait, err
		}
	}
	if got, _ := vessel.ReadAt(p, r.off); got > 0 {
		return got, nil, nil
	}
	// The flight closed its partial just now: how it ended tells more.
	return 0, f.done, nil
}

// Close leaves the flight.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.f.mu.Lock()
	delete(r.f.positions, r)
	r.f.mu.Unlock()
	r.f.s.leave(r.f, true, r.subject)
	if r.local != nil {
		return r.local.Close()
	}
	return nil
}
