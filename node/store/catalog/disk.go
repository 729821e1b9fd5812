package catalog

import (
	"errors"
	"os"
	"path/filepath"
)

// prepareDir makes the database's directory ready for Badger.
func prepareDir(dir string) error {
	// Promise: what is committed here is found after a power cut. Badger makes its
	// directory as well, but not its name durable.
	if err := errors.Join(os.MkdirAll(dir, 0o700), syncPath(filepath.Dir(dir))); err != nil {
		return err
	}
	return dropEmptyLogs(dir)
}

// dropEmptyLogs removes logs without a byte. Badger makes a log, gives it its
// size and writes to it; a power cut may leave its name alone, and then Badger
// refuses to open ("Create a new file"). There are few files: its own start
// lists them as well.
func dropEmptyLogs(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if ext := filepath.Ext(f.Name()); ext != ".mem" && ext != ".vlog" {
			continue
		}
		st, err := f.Info()
		if err == nil && st.Mode().IsRegular() && st.Size() == 0 {
			err = os.Remove(filepath.Join(dir, f.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// syncPath makes the names in a directory durable.
func syncPath(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
