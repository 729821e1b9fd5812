package swarm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

// What a flight does with what comes: it is checked, kept, shown to readers and
// other receivers, and stored.

// readList checks what a peer sent as the blob's record and list. An error: no honest
// node sends it. Invariant T2.
func (f *flight) readList(record, list []byte) (units.Record, *units.List, error) {
	rec, err := units.ParseRecord(record)
	if err == nil && rec.Digest != f.digest {
		err = fmt.Errorf("record of %s", rec.Digest)
	}
	if err == nil && rec.Size != f.layout.size {
		err = fmt.Errorf("record of %d bytes instead of %d", rec.Size, f.layout.size)
	}
	if err == nil {
		err = rec.Verify()
	}
	if err == nil && !f.s.cfg.KnownSigner(rec.Signer) {
		err = fmt.Errorf("record signed by %s, which is no member of the mesh", rec.Signer)
	}
	if err != nil {
		return rec, nil, err
	}
	l, err := units.ParseList(rec, list)
	return rec, l, err
}

// openOnce opens the flight with the first list that comes: two may come at once.
func (f *flight) openOnce(c candidate, record, list []byte) error {
	f.listing.Lock()
	defer f.listing.Unlock()
	if f.listed() {
		return nil
	}
	return f.open(c, record, list)
}

// open checks a record and its list and begins to keep units. Who passes on a list
// that is false, or in doubt, may be deceived itself.
func (f *flight) open(c candidate, record, list []byte) error {
	rec, l, err := f.readList(record, list)
	if err != nil {
		return f.blameList(c.node, err)
	}
	f.s.witness(rec)
	if f.s.isBadRoot(rec.Root) || f.s.roots.passOver(rec, f.s.suspects.forges(rec.Signer), time.Now()) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.strikes[c.node] = maxStrikes
		f.charged(c)
		return errAside
	}
	var (
		v vessel
		p *store.Partial
	)
	if f.pass {
		v = newWindow(rec, l)
	} else {
		if p, err = f.s.keep(f.ctx, rec, l); err != nil {
			return fmt.Errorf("%w: %w", errLocal, err)
		}
		v = p
		f.s.roots.begins(f.digest, rec.Root, time.Now())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.vessel, f.partial, f.foreign = v, p, p != nil && !p.Serve(f.pid)
	f.charged(c).root = &rec.Root
	for i := range l.Units() {
		if v.Has(i) {
			f.gain(i, identity.NodeID{})
		}
	}
	f.count()
	if f.have > 0 {
		f.came.Add(min(f.layout.size, int64(f.have)*f.layout.unitSize))
		f.s.log.Info("blob fetch resumed", "digest", f.digest, "units", f.have, "of", l.Units())
		f.last = time.Now()
		f.announce()
	}
	f.broadcast()
	return nil
}

// put keeps one unit of a peer's if it holds.
func (f *flight) put(i int, data []byte, from identity.NodeID) error {
	return f.take(i, data, from, func(b []byte) []byte { return append([]byte{}, b...) })
}

// take is put with what makes data the flight's own.
func (f *flight) take(i int, data []byte, from identity.NodeID, own func([]byte) []byte) error {
	f.mu.Lock()
	v, n := f.vessel, f.layout.units()
	f.mu.Unlock()
	var small store.Checked
	if n == 1 {
		var err error
		if small, err = store.Check(f.digest, own(data)); err != nil {
			return fmt.Errorf("%w: %s", units.ErrBadUnit, f.digest)
		}
	} else {
		if v == nil {
			return fmt.Errorf("%w: unit %d before the list", units.ErrBadUnit, i)
		}
		if err := v.Put(i, data); err != nil {
			return err
		}
	}
	f.mu.Lock()
	if n == 1 {
		f.small = small
	}
	f.last = time.Now()
	f.from = from
	f.proves(i, from)
	f.gain(i, from)
	f.count()
	f.announce()
	f.broadcast()
	watched := f.partial != nil
	f.mu.Unlock()
	if watched {
		f.s.crowds.news(f.digest)
	}
	return nil
}

// gain notes that unit i is here; mu is held.
func (f *flight) gain(i int, from identity.NodeID) {
	if f.partial != nil && !f.sched.have.has(i) {
		f.log = append(f.log, uint32(i))
	}
	f.sched.got(i, from)
}

// count counts what is here; mu is held.
func (f *flight) count() {
	n := f.layout.units()
	if f.vessel != nil {
		f.have = n - f.vessel.Missing()
	} else {
		f.have = 1
	}
	if f.have == n && !f.complete {
		f.complete = true
		close(f.whole)
	}
}

// announce opens the flight to readers; mu is held.
func (f *flight) announce() {
	select {
	case <-f.opened:
	default:
		close(f.opened)
	}
}

// broadcast wakes the readers; mu is held.
func (f *flight) broadcast() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// store makes a complete blob durable.
func (f *flight) store() error {
	f.s.mu.Lock()
	class := f.class
	f.s.mu.Unlock()
	// Every byte is here: a caller that leaves now does not undo it.
	ctx := context.WithoutCancel(f.ctx)
	var err error
	switch {
	case f.partial != nil:
		for err = f.partial.Commit(ctx, class); errors.Is(err, store.ErrUnavailable) && f.read(); err = f.partial.Commit(ctx, class) {
			// The store's bucket is away. What is staged is whole: those who read it are
			// not cut off, and while they do the bucket may come back.
			select {
			case <-time.After(f.s.storeAgain):
			case <-f.ctx.Done():
				return f.ctx.Err()
			}
		}
	case f.vessel == nil:
		err = f.s.cfg.Store.PutChecked(ctx, f.pid, f.small, class)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	f.stored = class
	if f.partial != nil {
		return f.prove()
	}
	return nil
}
