// Package durable writes small files that are wholly there or not at all, and still
// there after a power cut. Bulk content has ways of its own (node/store).
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// mark is in the names of files that are written and not there yet.
const mark = ".tmp-"

// WriteFile replaces path by rename, 0600, durable before it returns. Its
// directory is there.
func WriteFile(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+mark+"*") // 0600
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
	return SyncDirs(dir)
}

// SyncDirs makes the names in directories durable.
func SyncDirs(dirs ...string) error {
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return fmt.Errorf("sync %s: %w", dir, err)
		}
	}
	return nil
}

// RemoveUnfinished deletes from a directory the files of writes that a kill cut
// short: one may be a whole key, or a password. The caller makes sure that nobody
// writes there.
func RemoveUnfinished(dir string) error {
	found, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range found {
		if !e.Type().IsRegular() || !strings.Contains(e.Name(), mark) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("what a write left behind cannot be removed: %w", err)
		}
	}
	return nil
}
