package node

import (
	"time"

	"github.com/portolan/portolan/registryapi/mesh"
)

// scrubRate is a rate as the store takes it, where 0 is the default.
func scrubRate(bytes int64) int64 {
	if bytes == 0 {
		return -1
	}
	return bytes
}

// scrub says how far the store is with reading its blobs again.
func (n *node) scrub() mesh.Scrub {
	s := n.store.Scrub()
	out := mesh.Scrub{Rate: s.Rate, Running: s.Running, Blobs: s.Blobs, Bytes: s.Bytes, Damaged: s.Damaged, Unread: s.Unread}
	for _, at := range []struct {
		to   **time.Time
		from time.Time
	}{{&out.BegunAt, s.BegunAt}, {&out.PassedAt, s.PassedAt}} {
		if !at.from.IsZero() {
			*at.to = &at.from
		}
	}
	return out
}
