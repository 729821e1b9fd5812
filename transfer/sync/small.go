package sync

import (
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// Small gives a blob that the store keeps as a row to a peer that may have it on
// behalf of a project: Access and the store's Open in one look. false: by this way
// there is nothing to say, and they are to be asked.
func (s *Sync) Small(from identity.NodeID, d digest.Digest, pid identity.ProjectID) ([]byte, bool) {
	if s.takes(s.cfg.State.View(), pid, from) != nil {
		return nil, false
	}
	b, linked, err := s.cat.LinkedContent(pid, d)
	// Wrong bytes are the store's to find: Open corrects the row.
	if err != nil || !linked || b == nil || d.Algorithm().FromBytes(b) != d {
		return nil, false
	}
	return b, true
}
