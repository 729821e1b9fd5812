package blobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// recover finds the last durable offset, cuts off what came after it, and brings
// the hash there.
func (u *Upload) recover() error {
	st, err := os.Stat(u.path(extData))
	if err != nil {
		return err
	}
	c, err := readCheckpoint(u.path(extCkpt))
	if err != nil {
		return err
	}
	// The data was synced before its entry was written, so a shorter file is
	// damage: nothing of it can be relied on.
	if st.Size() < c.offset {
		c = checkpoint{alg: c.alg}
	}
	if c.sound > 0 {
		// A torn entry at the end would hide the entries added behind it.
		err = os.Truncate(u.path(extCkpt), c.sound)
	} else if err = os.Remove(u.path(extCkpt)); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	u.files.Store(true)
	u.touched.Store(st.ModTime().UnixNano())
	if err := u.rewind(c.alg, c.offset, c.states); err != nil {
		return err
	}
	// In plain-digest mode no states are added to those in the file.
	u.synced = min(len(c.states), len(u.hasher.States()))
	u.early = c.offset > 0
	return nil
}

// rewind brings file and hash back to offset; states are those of alg that are
// known at or before it.
func (u *Upload) rewind(alg digest.Algorithm, offset int64, states []byte) error {
	full := int(offset/units.Unit) * units.StateSize(alg)
	h, err := units.ResumeHasher(alg, states[:min(full, len(states))])
	if errors.Is(err, units.ErrUnavailable) {
		h, err = units.NewHasher(alg), nil // plain-digest mode: read it all again
	}
	if err != nil {
		return err
	}
	f, err := u.open()
	if err != nil {
		return err
	}
	defer u.close()
	if err := f.Truncate(offset); err != nil {
		return err
	}
	if err := u.readBack(context.Background(), h, offset); err != nil {
		return err
	}
	u.hasher = h
	u.durable.Store(offset)
	return nil
}

// readBack hashes the file on, from where h stands to offset.
func (u *Upload) readBack(ctx context.Context, h *units.Hasher, offset int64) error {
	f, err := u.open()
	if err != nil {
		return err
	}
	buf := u.s.bufs.Get().(*[]byte)
	defer u.s.bufs.Put(buf)
	for h.Size() < offset {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := (*buf)[:min(int64(len(*buf)), offset-h.Size())]
		if n, err := f.ReadAt(b, h.Size()); n < len(b) {
			return fmt.Errorf("upload %s: read back %d bytes at %d: %w", u.id, len(b), h.Size(), errors.Join(err, ErrCorrupt))
		}
		if _, err := h.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// back gives up what was appended after offset, notes and space included.
func (u *Upload) back(offset int64) error {
	u.close()
	u.small = nil
	if u.durable.Load() > offset {
		// Entries only grow: the file begins anew. A crash in here costs the
		// client bytes that it sends again, nothing else.
		if err := os.Remove(u.path(extCkpt)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Promise: the old entries do not come back: they speak of other bytes.
		if err := syncDir(u.s.path("uploads")); err != nil {
			return err
		}
		u.synced, u.kept = 0, 0
		u.durable.Store(0)
	}
	known := u.durable.Load()
	if err := u.rewind(u.hasher.Algorithm(), offset, u.hasher.States()); err != nil {
		return err
	}
	u.durable.Store(known)
	return u.checkpoint(offset, u.hasher.States())
}
