package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/portolan/portolan/node/durable"
	"github.com/portolan/portolan/node/identity"
)

// FormatVersion is the version of data directories that this binary writes.
//
//	1  first: identity.key, settings.yaml, raft/, store/
const FormatVersion = 1

const (
	formatName = "format"
	lockName   = "lock"
)

// Format says what a data directory is. It is written last when a directory is
// made or has joined: a directory without it belongs to no mesh yet.
type Format struct {
	Version int             `json:"version"`
	Mesh    identity.MeshID `json:"mesh"`
	Node    identity.NodeID `json:"node"`
}

// ReadFormat reads dir's format file. ok is false if there is none: the
// directory is new.
func ReadFormat(dir string) (f Format, ok bool, err error) {
	path := filepath.Join(dir, formatName)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Format{}, false, nil
	}
	if err != nil {
		return Format{}, false, fmt.Errorf("data directory: %w", err)
	}
	// The version alone first: what a newer one has besides may not parse.
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &v); err != nil || v.Version < 1 {
		return Format{}, false, fmt.Errorf("%s is damaged: restore it from a backup", path)
	}
	if v.Version > FormatVersion {
		return Format{}, false, fmt.Errorf("data directory %s was written by a newer Portolan (format %d, this one knows up to %d): use the newer binary, or another --data", dir, v.Version, FormatVersion)
	}
	if err := json.Unmarshal(b, &f); err != nil || f.Mesh.IsZero() || f.Node.IsZero() {
		return Format{}, false, fmt.Errorf("%s is damaged: restore it from a backup", path)
	}
	return f, true, nil
}

// WriteFormat makes dir a data directory of node in mesh, durably.
func WriteFormat(dir string, mesh identity.MeshID, node identity.NodeID) error {
	b, err := json.Marshal(Format{Version: FormatVersion, Mesh: mesh, Node: node})
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := WriteFile(filepath.Join(dir, formatName), append(b, '\n')); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return nil
}

// CheckMesh refuses a directory of another mesh than the one that is asked for.
func (f Format) CheckMesh(dir string, mesh identity.MeshID) error {
	if f.Mesh != mesh {
		return fmt.Errorf("data directory %s belongs to mesh %s, not to %s: use an empty directory to join another mesh", dir, f.Mesh, mesh)
	}
	return nil
}

// CheckNode refuses a directory whose node key is not the one that it was made
// with.
func (f Format) CheckNode(dir string, node identity.NodeID) error {
	if f.Node != node {
		return fmt.Errorf("data directory %s was made by node %s, but its key is that of node %s: put the right %s back", dir, f.Node, node, identity.KeyFile)
	}
	return nil
}

// Lock makes this process the only one that runs on dir, until the result is
// closed or the process ends. It makes dir if it is not there, and takes away
// what writes that were cut short left in it.
func Lock(dir string) (io.Closer, error) {
	if err := identity.MakeDir(dir); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another process: stop that one, or use another --data", dir)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	// The node key's may be a whole key, the password's a password.
	if err := durable.RemoveUnfinished(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("data directory: %w", err), f.Close())
	}
	return f, nil
}

// WriteFile is durable.WriteFile; it makes the directory if it is not there.
func WriteFile(path string, b []byte) error {
	if err := identity.MakeDir(filepath.Dir(path)); err != nil {
		return err
	}
	return durable.WriteFile(path, b)
}
