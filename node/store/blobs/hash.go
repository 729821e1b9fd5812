package blobs

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// Expect says which algorithm the content will be named by, before its first
// byte comes: it is then hashed by that from the start. An upload that has bytes
// goes on as it began, and [Upload.Hashed] makes up for it. With keep set the
// algorithm is noted, for a client that goes on after a restart; like the
// session itself the note may be lost in a power cut, which costs reading again.
func (u *Upload) Expect(alg digest.Algorithm, keep bool) error {
	if u.hasher.Size() > 0 || u.hasher.Algorithm() == alg {
		return nil
	}
	u.close()
	// Left of bytes that were given up: new entries would not fit its form.
	if err := os.Remove(u.path(extCkpt)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	u.hasher, u.synced = units.NewHasher(alg), 0
	if !keep {
		return nil
	}
	return u.note(nil)
}

// Hashed gives the hash of the bytes taken so far by alg. If they were hashed by
// another algorithm as they came, because the client named this one only at the
// end, they are read once more, and their unit list is made on the way.
func (u *Upload) Hashed(ctx context.Context, alg digest.Algorithm) (*units.Hasher, error) {
	if u.hasher.Algorithm() == alg {
		return u.hasher, nil
	}
	h := units.NewHasher(alg)
	if u.small != nil {
		_, err := h.Write(u.small)
		return h, err
	}
	return h, u.readBack(ctx, h, u.hasher.Size())
}
