package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
)

// supply is what this node serves to others: blobs of the store, and the checked
// units of blobs that are arriving.
type supply struct{ s *Swarm }

// Open opens a project's blob that is here, or as much of it as is (*arriving).
func (u supply) Open(ctx context.Context, d digest.Digest, pid identity.ProjectID) (store.Blob, error) {
	b, err := u.s.openIn(ctx, d, pid)
	if err == nil || !errors.Is(err, store.ErrNotFound) {
		return b, err
	}
	if a := u.arriving(d); a != nil && a.f.serves(pid) {
		a.ctx = ctx
		return a, nil
	}
	// It may have been stored between the two looks.
	return u.s.openIn(ctx, d, pid)
}

// Damaged is the store's.
func (u supply) Damaged() uint64 { return u.s.cfg.Store.Damaged() }

// Doubt is the store's. What is still arriving was checked as it came.
func (u supply) Doubt(d digest.Digest) bool { return u.s.cfg.Store.Doubt(d) }

// Record gives the record and list of a blob that is here (verified) or arriving.
func (u supply) Record(ctx context.Context, d digest.Digest) (rec units.Record, l *units.List, verified bool, err error) {
	rec, l, err = u.s.cfg.Store.Record(ctx, d)
	if err == nil || !errors.Is(err, store.ErrNotFound) {
		return rec, l, err == nil, err
	}
	if a := u.arriving(d); a != nil {
		return a.part.Record(), a.part.List(), false, nil
	}
	// It may have been stored between the two looks.
	rec, l, err = u.s.cfg.Store.Record(ctx, d)
	return rec, l, err == nil, err
}

func (u supply) arriving(d digest.Digest) *arriving {
	u.s.mu.Lock()
	f := u.s.flights[d]
	u.s.mu.Unlock()
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.partial == nil || f.over || f.poisoned {
		return nil
	}
	return &arriving{s: u.s, f: f, part: f.partial, size: f.layout.size}
}

// arriving is a blob of which only some units are here. When it has all arrived
// it is read from the store.
type arriving struct {
	s     *Swarm
	ctx   context.Context
	f     *flight
	part  *store.Partial
	size  int64
	off   int64
	whole store.Blob // after the flight's end
}

// has says whether a unit is here and was checked.
func (a *arriving) has(unit int) bool { return a.whole != nil || a.part.Has(unit) }

func (a *arriving) ended() bool { return a.f.ended() }

// Size is the length of the whole blob.
func (a *arriving) Size() int64 { return a.size }

// File is nil: what is here has gaps.
func (a *arriving) File() *os.File { return nil }

// Seek sets the position of the next Read.
func (a *arriving) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += a.off
	case io.SeekEnd:
		off += a.size
	}
	if off < 0 {
		return 0, fmt.Errorf("seek to %d: before the blob's start", off)
	}
	a.off = off
	return off, nil
}

// Read reads units that are here.
func (a *arriving) Read(p []byte) (int, error) {
	n, err := a.ReadAt(p, a.off)
	a.off += int64(n)
	if n > 0 {
		err = nil
	}
	return n, err
}

// ReadAt reads units that are here.
func (a *arriving) ReadAt(p []byte, off int64) (int, error) {
	if a.whole == nil {
		n, err := a.part.ReadAt(p, off)
		if n > 0 || err == nil || errors.Is(err, io.EOF) || errors.Is(err, store.ErrIncomplete) {
			return n, err
		}
		// The flight let go of it: it is in the store now, unless it was given up.
		if a.whole, err = a.s.openIn(a.ctx, a.f.digest, a.f.pid); err != nil {
			a.whole = nil
			return 0, err
		}
	}
	return a.whole.ReadAt(p, off)
}

// Close lets go of what was opened.
func (a *arriving) Close() error {
	if a.whole != nil {
		return a.whole.Close()
	}
	return nil
}
