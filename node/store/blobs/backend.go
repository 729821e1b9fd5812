package blobs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
)

// Backend is a bucket behind one of distribution's storage drivers, as package
// drivers makes it.
type Backend struct {
	Driver storagedriver.StorageDriver
	// Name is for people: driver and bucket, no secrets.
	Name string
	// Place tells buckets apart: a store that was made on one is not opened on
	// another.
	Place string
	// Part is the number of bytes that the driver sends in one request.
	Part int64
	// MaxObject is the largest object that can be sent in such parts; 0: any.
	MaxObject int64
	// Resumable: a writer that appends finds the upload that an earlier one did not
	// end, so that it can be cancelled. Otherwise the bucket's own rules end it.
	Resumable bool
	// Redirects: objects can be read at presigned URLs.
	Redirects bool
	// Refused says that an error is the bucket's answer, and that the answer is no:
	// wrong credentials, no such bucket. Trying again does not help.
	Refused func(error) bool
	// Stall is how long the bucket may take for the next piece of anything; 0: 30 s.
	Stall time.Duration
	// Secrets are taken out of what is said of errors.
	Secrets []string
}

// ErrUnavailable is what every [*Unavailable] is.
var ErrUnavailable = errors.New("the bucket of this store does not do what it is asked")

// Unavailable says that the place of blobs could not be asked, or did not answer
// as it should. It says nothing about any blob: rows stay, and what is being
// stored is kept where it is staged.
type Unavailable struct {
	Place   string // for people
	Cause   string // one sentence, no secrets; for logs: it may have addresses and keys of objects
	Refused bool   // it answered, and the answer was no
}

func (u *Unavailable) Error() string { return fmt.Sprintf("%s: %s", u.Place, u.Cause) }

// Is makes errors.Is(err, ErrUnavailable) true.
func (u *Unavailable) Is(target error) bool { return target == ErrUnavailable }

// unavailable makes the error of a driver's call.
func (b *Backend) unavailable(what string, err error) *Unavailable {
	return &Unavailable{Place: b.Name, Cause: what + ": " + b.Conceal(err.Error()), Refused: b.Refused != nil && b.Refused(err)}
}

// Conceal takes secrets and line breaks out of a driver's words.
func (b *Backend) Conceal(text string) string {
	for _, s := range b.Secrets {
		text = strings.ReplaceAll(text, s, "[secret]")
	}
	return oneLine(text)
}

// oneLine: SDKs put request ids and nested errors on lines of their own.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
