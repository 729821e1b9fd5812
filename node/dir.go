package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// WriteFile replaces a small file whole: after it returns, and after a power
// cut at any moment, path has the old content or the new, never a part.
func WriteFile(path string, content []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no effect once it was renamed
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync() // the new content is whole before it gets the name
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%s can't be written: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync() // the name survives a power cut
}

// DirLock keeps a second process out of a data directory.
type DirLock struct{ f *os.File }

// LockDir takes the lock of a data directory that exists. The kernel releases
// it when the process ends, however it ends.
func LockDir(dir string) (*DirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s can't be used: %w", dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("the data directory %s is in use by another portolan: stop that one, or choose another --data", dir)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("the data directory %s can't be locked: %w", dir, err)
	}
	return &DirLock{f}, nil
}

// Close releases the lock.
func (l *DirLock) Close() error { return l.f.Close() }
