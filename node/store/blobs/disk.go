package blobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
)

// disk keeps finished blobs as files of the store's directory.
type disk struct {
	dir  string
	dirs *dirs
	now  func() time.Time
}

func (k *disk) blobPath(d digest.Digest) string { return filepath.Join(k.dir, "blobs", keyOf(d)) }
func (k *disk) listPath(d digest.Digest) string { return filepath.Join(k.dir, "units", keyOf(d)) }

// keyOf is the name of a blob below blobs/ and units/: the same on a disk and in
// a bucket.
func keyOf(d digest.Digest) string {
	return d.Algorithm().String() + "/" + d.Encoded()[:2] + "/" + d.Encoded()
}

// install: the list comes before the blob's own rename, so that a blob with a
// row never lacks the list that its record names.
func (k *disk) install(ctx context.Context, b *staged) error {
	list, err := marshalList(b.list)
	if err != nil {
		return err
	}
	if list != nil {
		if err := k.putList(ctx, b.digest, list, b.tmp); err != nil {
			return err
		}
	}
	// Promise: from here on the name exists with all bytes or not at all.
	if b.moved, err = k.moveInto(b.path, k.blobPath(b.digest)); err != nil {
		return fmt.Errorf("store blob %s: %w", b.digest, err)
	}
	return nil
}

func (k *disk) has(_ context.Context, d digest.Digest, size int64) (bool, error) {
	st, err := os.Stat(k.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("blob %s: %w", d, err) // says nothing: its row stays
	}
	return st.Size() == size, nil
}

// open opens the file of a blob, see [Store.Open].
func (k *disk) open(d digest.Digest, size int64) (*os.File, error) {
	f, err := os.Open(k.blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s: its file is gone)", ErrCorrupt, d)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob %s: %w", d, err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open blob %s: %w", d, err)
	}
	if st.Size() != size {
		_ = f.Close()
		return nil, fmt.Errorf("%w (%s: its file has %d bytes instead of %d)", ErrCorrupt, d, st.Size(), size)
	}
	return f, nil
}

func (k *disk) list(_ context.Context, d digest.Digest) ([]byte, error) {
	return os.ReadFile(k.listPath(d))
}

func (k *disk) putList(_ context.Context, d digest.Digest, b []byte, tmp string) error {
	if err := writeFileSync(tmp, b); err != nil {
		return fmt.Errorf("write the unit list of %s: %w", d, err)
	}
	if _, err := k.moveInto(tmp, k.listPath(d)); err != nil {
		return fmt.Errorf("store the unit list of %s: %w", d, err)
	}
	return nil
}

// moveInto renames a synced file to its final name and makes the name durable.
// With moved and an error the file has its new name, which may not stay.
func (k *disk) moveInto(tmp, final string) (moved bool, err error) {
	if err := k.dirs.keep(filepath.Dir(final)); err != nil {
		return false, err
	}
	if err := os.Rename(tmp, final); err != nil {
		return false, mapError(err)
	}
	// Promise: the name survives a power cut. Without this the bytes are on the
	// disk and nothing points at them.
	return true, syncDir(filepath.Dir(final))
}

func (k *disk) remove(_ context.Context, d digest.Digest) error {
	for _, p := range []string{k.blobPath(d), k.listPath(d), k.listPath(d) + extTmp} {
		err := os.Remove(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove blob %s: %w", d, err)
		}
		// Promise: no file without a row comes back after a power cut.
		if err := syncDir(filepath.Dir(p)); err != nil {
			return err
		}
	}
	return nil
}

func (k *disk) drop(ctx context.Context, d digest.Digest) error { return k.remove(ctx, d) }

// settled: the notes of an upload or partial go with its files.
func (k *disk) settled(digest.Digest) {}

func (k *disk) quarantine(d digest.Digest) error {
	to := filepath.Join(k.dir, "quarantine", fmt.Sprintf("%s.%d", stem(d), k.now().UnixNano()))
	err := os.Rename(k.blobPath(d), to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("put blob %s aside: %w", d, err)
	}
	// Promise: the damaged file does not come back under its name.
	return syncDir(filepath.Dir(k.blobPath(d)))
}
