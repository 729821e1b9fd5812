package catalog

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/portolan/portolan/node/identity"
)

// Freeze notes that this store takes no tags of a project that sites write under a
// control state older than a raft index of a generation: another node was told so, and
// counts on it after a crash here, too. It returns once that is durable.
func (c *Catalog) Freeze(ctx context.Context, pid identity.ProjectID, generation [16]byte, index uint64) error {
	err := c.submit(ctx, func(b *batch) error {
		b.set(prefixPID(tabFrozen, pid), binary.BigEndian.AppendUint64(generation[:], index))
		return nil
	})
	if err != nil {
		return fmt.Errorf("catalog: freeze the tags of project %s: %w", pid, err)
	}
	return nil
}

// Frozen gives what Freeze noted last; index 0: nothing.
func (c *Catalog) Frozen(pid identity.ProjectID) (generation [16]byte, index uint64, err error) {
	err = c.view(func(r reader) error {
		key := prefixPID(tabFrozen, pid)
		b, err := r.get(key)
		if err != nil || b == nil {
			return err
		}
		if len(b) != len(generation)+8 {
			return damaged(key)
		}
		copy(generation[:], b)
		index = binary.BigEndian.Uint64(b[len(generation):])
		return nil
	})
	return generation, index, err
}
