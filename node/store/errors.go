package store

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/units"
)

// Errors shared with transfer and registryapi. They are matched with errors.Is;
// what wraps them names the blob or upload.
var (
	// ErrNotFound says that this store has no such blob or upload.
	ErrNotFound = blobs.ErrNotFound
	// ErrNoSpace says that the disk or its quota is full. Nothing was kept of
	// what was being written beyond the last durable offset.
	ErrNoSpace = blobs.ErrNoSpace
	// ErrDigestMismatch says that the bytes are not those of the digest.
	ErrDigestMismatch = blobs.ErrDigestMismatch
	// ErrUnsupportedDigest is a malformed digest or one of another algorithm.
	ErrUnsupportedDigest = units.ErrUnsupportedDigest
	// ErrUploadBusy says that another request is writing to this upload.
	ErrUploadBusy = blobs.ErrUploadBusy
	// ErrWrongOffset says that a chunk does not begin where the upload stands.
	ErrWrongOffset = errors.New("chunk does not begin where the upload stands: ask for the upload's offset and go on from there")
	// ErrTooManyUploads says that the number of open uploads is at its bound.
	ErrTooManyUploads = blobs.ErrTooManyUploads
	// ErrUploadShare says that the number of uploads of one user is at its bound.
	ErrUploadShare = blobs.ErrUploadShare
	// ErrTooLarge is an upload above Config.MaxUpload.
	ErrTooLarge = blobs.ErrTooLarge
	// ErrCorrupt says that a blob's file is not what its row says. The file was
	// put aside and the row corrected: the next question finds ErrNotFound.
	ErrCorrupt = blobs.ErrCorrupt
	// ErrFetchBusy says that another fetch of this digest is under way here.
	ErrFetchBusy = blobs.ErrFetchBusy
	// ErrBadUnit says that a unit does not fit the list: its sender is to blame.
	ErrBadUnit = units.ErrBadUnit
	// ErrIncomplete says that units are missing: from a fetch that was to be
	// committed, or from the range that was to be read.
	ErrIncomplete = blobs.ErrIncomplete
	// ErrUnavailable says that the bucket in which this store keeps its blobs does
	// not do what it is asked; errors.As gives the [*Unavailable]. Nothing is said
	// of the blob, and what was being stored can be committed again.
	ErrUnavailable = blobs.ErrUnavailable
	// ErrNoRecord says that a blob has no signed record and list here: it can
	// only be checked whole.
	ErrNoRecord = errors.New("blob has no signed unit list at this store")
)

// Unavailable is an ErrUnavailable: which bucket, and why.
type Unavailable = blobs.Unavailable

// Unreachable says that a blob is known to exist, but that none of its holders
// can be reached.
type Unreachable struct {
	Sites      []string      // names of the sites that should hold it
	RetryAfter time.Duration // when to try again
}

// Error implements error.
func (u *Unreachable) Error() string {
	if len(u.Sites) == 0 {
		return "the sites that hold this content cannot be reached: try again later"
	}
	return fmt.Sprintf("the content is held at %s, which cannot be reached from here: try again later", strings.Join(u.Sites, ", "))
}
