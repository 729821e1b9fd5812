package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// tempMark is in the names of files that are written and not there yet.
const tempMark = ".tmp-"

// removeUnfinished deletes the files of writes that a kill cut short: the
// directory is this process's alone when a node opens it.
func removeUnfinished(dir string) error {
	found, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("consensus: %w", err)
	}
	for _, e := range found {
		if !e.Type().IsRegular() || !strings.Contains(e.Name(), tempMark) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("consensus: %w", err)
		}
	}
	return nil
}

// writeFile writes by rename. The fsyncs keep the promise that a joined node can
// start again after a power cut.
func writeFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+tempMark+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if _, err = io.Copy(f, bytes.NewReader(b)); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDirs(filepath.Dir(path))
}

// syncDirs makes the names in directories durable.
func syncDirs(dirs ...string) error {
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
