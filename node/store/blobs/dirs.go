package blobs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// dirs makes the directories of a store.
type dirs struct {
	root string

	mu      sync.Mutex      // guards durable; held while a directory is made
	durable map[string]bool // directories whose names a power cut cannot take
}

func newDirs(root string) *dirs { return &dirs{root: root, durable: make(map[string]bool)} }

// keep makes a directory whose name a power cut cannot take. That one is there
// does not say so: another goroutine may be making it, or this process was
// killed before it had synced the parent.
func (k *dirs) keep(dir string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keepLocked(dir)
}

func (k *dirs) keepLocked(dir string) error {
	if k.durable[dir] {
		return nil
	}
	parent := filepath.Dir(dir)
	if dir != k.root {
		if err := k.keepLocked(parent); err != nil {
			return err
		}
	}
	synced := parent + string(filepath.Separator)
	if err := makeDir(dir); err != nil {
		delete(k.durable, synced) // it may be there, with a name that is not durable
		return err
	}
	// What was there before the first look at the parent is synced with it, once;
	// what comes later is made here.
	if !k.durable[synced] {
		// Promise: what is renamed into the directory is found after a power cut.
		if err := syncDir(parent); err != nil {
			return err
		}
		k.durable[synced] = true
	}
	k.durable[dir] = true
	return nil
}

// makeDir makes a directory and its parents durable, unless it is there.
func makeDir(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return mapError(err)
	}
	// Promise: what is renamed into the new directory is found after a power cut.
	return syncDir(parent)
}
