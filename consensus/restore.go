package consensus

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/portolan/portolan/consensus/backup"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/durable"
	"github.com/portolan/portolan/node/identity"
)

// Backup writes this node's copy of the control state, sealed to the mesh's
// recovery key. site and version are told in the file.
func (n *Node) Backup(ctx context.Context, w io.Writer, site, version string) error {
	view := n.state.View()
	st := view.KeyState()
	if st.Recovery == "" {
		return &command.Error{Code: command.CodeConflict, Message: "the mesh has no recovery key to seal a backup to: make one with: portolan keys recovery create"}
	}
	s := backup.Source{View: view, MeshKeys: make(map[uint32]secrets.Key), Site: site, Version: version, Now: n.cfg.Now()}
	for _, row := range view.Keys(meshKey) {
		key, ok := n.keys.get(view, meshKey, row.Version)
		if !ok && view.SealedWith(row.Version) > 0 {
			return errNoMeshKey // what cannot be opened after a restore is no backup
		}
		if ok {
			s.MeshKeys[row.Version] = key
		}
	}
	return backup.Write(ctxWriter{ctx, w}, st.Recovery, s)
}

// ctxWriter ends with its context.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (c ctxWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}

// restoredTerm is the term of the snapshot that a restored mesh begins with.
const restoredTerm = 1

// Restore makes dir, which must not be there or be empty, the raft directory of
// a new mesh with the state of a backup and this one node, its only voter. node
// is where that will be and its store; Record fills in the rest. Open goes on
// from there. What a Restore that was cut short leaves must be removed.
func Restore(dir string, b *backup.Backup, id *identity.Identity, site string, node *command.Node, now time.Time) (mesh identity.MeshID, err error) {
	if list, err := os.ReadDir(dir); err == nil && len(list) > 0 {
		return mesh, fmt.Errorf("consensus: %s is not empty: a backup is restored into an empty directory", dir)
	}
	r := state.Renewal{Mesh: identity.NewMeshID(), Now: now, Site: site, Node: Record(id, node)}
	_, _ = rand.Read(r.Generation[:]) // crypto/rand.Read never fails (Go 1.24)
	st, err := b.Renew(r)
	if err != nil {
		return mesh, err
	}
	if err := writeDirectory(dir, st.View(), id.ID, position{restoredTerm, st.View().Index()}); err != nil {
		return mesh, fmt.Errorf("consensus: write the restored state: %w", err)
	}
	// A restore that was told to be done is found after a power cut.
	if err := syncTree(dir); err != nil {
		return mesh, fmt.Errorf("consensus: %w", err)
	}
	if err := durable.SyncDirs(filepath.Dir(dir)); err != nil {
		return mesh, fmt.Errorf("consensus: %w", err)
	}
	return r.Mesh, nil
}
