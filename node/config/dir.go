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
	if err := removeUnfinished(dir); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unfinished are the files of writes whose process was killed before it gave
// them their name; the node key's may be a whole key, the password's a password.
const unfinished = "*.tmp-*"

// removeUnfinished deletes them. Whoever writes in dir holds its lock.
func removeUnfinished(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	for _, e := range entries {
		if is, _ := filepath.Match(unfinished, e.Name()); !is || !e.Type().IsRegular() {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("data directory: what a write left behind cannot be removed: %w", err)
		}
	}
	return nil
}

// WriteFile replaces path by rename, 0600, durable before it returns.
func WriteFile(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	if err := identity.MakeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, filepath.Base(path)+".tmp-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		return err
	}
	// Promise: what the name shows is the whole content, or what was there before.
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	// Promise: a power cut does not bring the old content back.
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
