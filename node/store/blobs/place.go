package blobs

import (
	"context"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// place is where finished blobs and their unit lists are: the store's own disk,
// or a bucket behind a storage driver. What is not yet a blob is staged on the
// disk in both cases, since it needs writes at any offset and a local sync.
//
// Errors of a bucket that does not do what it is asked are [*Unavailable]: they
// say nothing about the blob.
type place interface {
	// install makes a staged file the blob, and its list the blob's list. When
	// it returns nil both outlive a power cut. It may take the file away, see
	// staged.moved. The caller has the digest's lock.
	install(ctx context.Context, b *staged) error
	// has says whether the blob is there with this size.
	has(ctx context.Context, d digest.Digest, size int64) (bool, error)
	// remove takes away blob and list, durably. Not for requests: a driver lists.
	remove(ctx context.Context, d digest.Digest) error
	// quarantine lets nobody be served from a damaged blob any more, and keeps it
	// for people to look at.
	quarantine(d digest.Digest) error
	// list reads the stored form of a unit list; fs.ErrNotExist: there is none.
	list(ctx context.Context, d digest.Digest) ([]byte, error)
	// putList replaces one, durably. tmp is a name on the disk that may be used.
	putList(ctx context.Context, d digest.Digest, b []byte, tmp string) error
	// drop removes what install made where the row was not committed.
	drop(ctx context.Context, d digest.Digest) error
	// settled says that the row of an installed blob is committed.
	settled(d digest.Digest)
}

// staged is a file whose bytes are synced and have the digest.
type staged struct {
	digest digest.Digest
	size   int64
	f      *os.File
	path   string      // of f
	list   *units.List // nil: the blob is stored without one
	tmp    string      // where the list may be written first
	moved  bool        // set by install: path is gone
}

// marshalList gives the stored form of a list, nil if the blob needs no file of
// one.
func marshalList(l *units.List) ([]byte, error) {
	if l == nil || l.Units() == 1 {
		return nil, nil
	}
	return l.MarshalBinary()
}
