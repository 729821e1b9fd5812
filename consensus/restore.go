package consensus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/portolan/portolan/consensus/backup"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/secrets"
	"github.com/portolan/portolan/consensus/state"
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

const (
	// restoredTerm is the term of the snapshot that a restored mesh begins with.
	restoredTerm = 1
	// currentTermKey is raft's own, for its stable store (raft.keyCurrentTerm).
	currentTermKey = "CurrentTerm"
)

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
	walDir := filepath.Join(dir, "wal")
	if err := os.MkdirAll(walDir, 0o700); err != nil {
		return mesh, fmt.Errorf("consensus: make directory: %w", err)
	}
	// raft never asks for an entry before the snapshot, and counts its terms from
	// the snapshot's on.
	logs, err := wal.Open(walDir, wal.WithSegmentSize(walSegmentBytes), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return mesh, fmt.Errorf("consensus: make raft log in %s: %w", walDir, err)
	}
	err = logs.SetUint64([]byte(currentTermKey), restoredTerm)
	if err := errors.Join(err, logs.Close()); err != nil {
		return mesh, fmt.Errorf("consensus: make raft log in %s: %w", walDir, err)
	}
	if err := writeSnapshot(dir, st.View(), raft.ServerID(id.ID.String())); err != nil {
		return mesh, fmt.Errorf("consensus: write the restored state: %w", err)
	}
	// A restore that was told to be done is found after a power cut; the snapshot
	// store has synced its own files.
	if err := syncDirs(walDir, dir, filepath.Dir(dir)); err != nil {
		return mesh, fmt.Errorf("consensus: %w", err)
	}
	return r.Mesh, nil
}

func writeSnapshot(dir string, view *state.View, self raft.ServerID) error {
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(self))
	only := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: self, Address: raft.ServerAddress(self)}}}
	sink, err := snaps.Create(raft.SnapshotVersionMax, view.Index(), restoredTerm, only, view.Index(), trans)
	if err != nil {
		return err
	}
	return snapshot{view}.Persist(sink)
}
