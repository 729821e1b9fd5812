package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// Upload is a handle on an upload. Each of its writing methods is the only
// writer while it runs; another one at the same time gets ErrUploadBusy. There
// is nothing to close.
type Upload struct {
	s  *Store
	u  *blobs.Upload
	at int64 // where Append and Finish must find the upload; below 0: anywhere
}

// At gives a handle whose Append and Finish answer ErrWrongOffset unless the
// upload stands at off when their turn comes. Comparing with Offset before the
// call is not enough: two requests with the same chunk may both do that.
func (u *Upload) At(off int64) *Upload { return &Upload{s: u.s, u: u.u, at: off} }

// acquire makes the caller the writer, at the right place.
func (u *Upload) acquire() error {
	if err := u.u.Acquire(); err != nil {
		return err
	}
	if u.at >= 0 && u.at != u.u.Size() {
		defer u.u.Release()
		return fmt.Errorf("upload %s: %w: it is at %d, not %d", u.ID(), ErrWrongOffset, u.u.Size(), u.at)
	}
	return nil
}

// CreateUpload begins an upload and gives its id, a UUID. It is the node's own,
// without a share.
func (s *Store) CreateUpload(ctx context.Context) (string, error) { return s.CreateUploadFor(ctx, "") }

// CreateUploadFor begins an upload for a user and gives its id. Upload finds it
// by that, also after a restart. ErrUploadShare and ErrTooManyUploads say that
// the user or the store has as many open as may be.
func (s *Store) CreateUploadFor(ctx context.Context, user string) (string, error) {
	u, err := s.BeginUpload(ctx, user)
	if err != nil {
		return "", err
	}
	if err := u.u.Keep(); err != nil {
		return "", err
	}
	return u.ID(), nil
}

// BeginUpload is CreateUploadFor for an upload that ends in the same request, one
// way or the other: it leaves nothing behind. Cancel it if Finish failed.
func (s *Store) BeginUpload(_ context.Context, user string) (*Upload, error) {
	owner := blobs.NodeOwner
	if user != "" {
		owner = blobs.OwnerOf(user)
	}
	u, err := s.files.CreateUploadFor(owner)
	if err != nil {
		return nil, err
	}
	return &Upload{s: s, u: u, at: -1}, nil
}

// Upload finds an upload that has not ended, also one from before a restart.
func (s *Store) Upload(_ context.Context, id string) (*Upload, error) {
	u, err := s.files.Upload(id)
	if err != nil {
		return nil, err
	}
	return &Upload{s: s, u: u, at: -1}, nil
}

// ID is the upload's UUID.
func (u *Upload) ID() string { return u.u.ID() }

// Offset is the number of bytes that are durably here: where a client goes on.
func (u *Upload) Offset() int64 { return u.u.Offset() }

// Append adds what r gives, and returns when that is durable. If r fails, what
// came before is kept and n says how much; if the disk is full (ErrNoSpace) or
// the content too large (ErrTooLarge), nothing of it is kept.
func (u *Upload) Append(ctx context.Context, r io.Reader) (n int64, err error) {
	if err := u.acquire(); err != nil {
		return 0, err
	}
	defer u.u.Release()
	return u.u.Append(ctx, r, false)
}

// Expect says which algorithm the content will be named by, before its first
// byte comes: it is then hashed by that from the start, also if the client goes
// on after a restart. Without it sha256 is taken. Another algorithm at the end is
// no mistake: the bytes that are here are then read once more.
func (u *Upload) Expect(alg digest.Algorithm) error {
	if err := units.CheckAlgorithm(alg); err != nil {
		return err
	}
	if err := u.acquire(); err != nil {
		return err
	}
	defer u.u.Release()
	return u.u.Expect(alg, true)
}

// Commit makes the upload the blob want, leased to link's repository. When it
// returns nil the blob outlives a power cut. ErrDigestMismatch and
// ErrUnsupportedDigest are the client's; the former ends the upload.
func (u *Upload) Commit(ctx context.Context, want digest.Digest, link Link) (Descriptor, error) {
	return u.Finish(ctx, nil, want, link)
}

// Finish is Append and Commit in one, and cheaper: it syncs once, and content of
// up to InlineMax bytes touches no file. r may be nil.
func (u *Upload) Finish(ctx context.Context, r io.Reader, want digest.Digest, link Link) (Descriptor, error) {
	return u.finish(ctx, r, want, catalog.Home, &link)
}

// finish leases the blob only if there is a link.
func (u *Upload) finish(ctx context.Context, r io.Reader, want digest.Digest, class Class, link *Link) (Descriptor, error) {
	if err := units.CheckDigest(want); err != nil {
		return Descriptor{}, err
	}
	if err := u.acquire(); err != nil {
		return Descriptor{}, err
	}
	defer u.u.Release()
	if err := u.u.Expect(want.Algorithm(), false); err != nil {
		return Descriptor{}, err
	}
	if r != nil {
		if _, err := u.u.Append(ctx, r, true); err != nil {
			return Descriptor{}, err
		}
	}
	if by := u.u.Algorithm(); by != want.Algorithm() {
		u.s.log.Debug("an upload is read once more: its digest is of another algorithm than was expected",
			"upload", u.ID(), "bytes", u.u.Size(), "hashed_by", by, "digest", want)
	}
	hashed, err := u.u.Hashed(ctx, want.Algorithm())
	if err != nil {
		return Descriptor{}, errors.Join(err, u.u.Settle())
	}
	if got := hashed.Digest(); got != want {
		return Descriptor{}, errors.Join(
			fmt.Errorf("%w: expected %s, got %d bytes of %s", ErrDigestMismatch, want, u.u.Size(), got),
			u.u.Discard())
	}
	desc := Descriptor{Digest: want, Size: u.u.Size()}
	installed, err := u.s.commitUpload(ctx, u.u, catalog.BlobRow{Digest: want, Size: desc.Size, Class: class}, hashed.List, link)
	if err != nil {
		if installed {
			return Descriptor{}, errors.Join(err, u.u.Discard())
		}
		return Descriptor{}, errors.Join(err, u.u.Settle())
	}
	if err := u.u.Discard(); err != nil {
		// The blob is there; the sweep takes what is left.
		u.s.log.Warn("files of a finished upload are left", "upload", u.ID(), "error", err)
	}
	return desc, nil
}

// Cancel ends the upload and removes its bytes.
func (u *Upload) Cancel() error {
	if err := u.u.Acquire(); err != nil {
		return err
	}
	defer u.u.Release()
	return u.u.Discard()
}

// commitUpload says with installed that the upload's file is no longer its own.
// The caller has compared the digest; makeList gives the list of what was hashed.
func (s *Store) commitUpload(ctx context.Context, u *blobs.Upload, row catalog.BlobRow, makeList func() (*units.List, error), link *Link) (installed bool, err error) {
	unlock := s.locks.lock(row.Digest)
	defer unlock()
	lease := s.lease(link)
	if row.Size <= InlineMax {
		b, err := u.Small()
		if err != nil {
			return false, err
		}
		return false, s.putInline(ctx, row, b, lease)
	}
	if here, err := s.present(ctx, row.Digest); err != nil {
		return false, err
	} else if here {
		// Here already: the row's commit renews the lease and makes this site
		// responsible for it. The row keeps its record.
		return false, s.commitRow(ctx, row, nil, lease)
	}
	list, err := s.describe(&row, makeList)
	if err != nil {
		return false, err
	}
	if err := u.Install(ctx, row.Digest, list); err != nil {
		return u.Moved(), err
	}
	if err := s.commitRow(ctx, row, nil, lease); err != nil {
		derr := s.dropOrphan(ctx, row.Digest)
		if derr != nil && u.Moved() {
			u.Leave()
		}
		return u.Moved(), errors.Join(err, derr)
	}
	s.installed(row.Digest, row.Size, u.Fresh())
	return u.Moved(), nil
}

// describe signs the list of a blob that was verified here and puts the record
// into its row. In plain-digest mode there is neither.
func (s *Store) describe(row *catalog.BlobRow, list func() (*units.List, error)) (*units.List, error) {
	l, err := list()
	if errors.Is(err, units.ErrUnavailable) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rec, err := units.Sign(l, s.node.ID, s.node)
	if err != nil {
		return nil, err
	}
	row.Record, err = rec.MarshalBinary()
	return l, err
}

// present says whether the blob is here: as a row with its bytes (also a small
// manifest), or as a file or object that is whole by its size.
func (s *Store) present(ctx context.Context, d digest.Digest) (bool, error) {
	row, err := s.cat.Blob(d)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("blob %s: %w", d, mapCatalogError(err))
	case row.State != catalog.Present:
		return false, nil
	}
	if row.Inline {
		return true, nil
	}
	if !s.files.Remote() {
		return s.files.Has(ctx, d, row.Size)
	}
	// Not into a bucket that is no longer this store's.
	err = s.files.Confirm(ctx, d, row.Size)
	if errors.Is(err, ErrCorrupt) {
		return false, nil
	}
	return err == nil, err
}

func (s *Store) putInline(ctx context.Context, row catalog.BlobRow, b []byte, lease *catalog.Lease) error {
	if b == nil {
		b = []byte{} // the empty blob is inline, too
	}
	return s.commitRow(ctx, row, b, lease)
}

// commitRow is the last step. Promise: from here on the blob is visible, also
// after a power cut; the catalogue's commit is synced. The caller has the
// digest's lock, and for a file has made it durable.
func (s *Store) commitRow(ctx context.Context, row catalog.BlobRow, inline []byte, lease *catalog.Lease) error {
	// A client that leaves now must not make the outcome unknown: a row that is
	// committed after its file was given up would promise what is not there.
	ctx = context.WithoutCancel(ctx)
	err := s.cat.PutBlob(ctx, row, inline, lease)
	if errors.Is(err, catalog.ErrDeleting) {
		// Collect holds the same lock, so this is what a crash left of one. The
		// file, if any, has been replaced by the one that is to be committed.
		if err = s.cat.RemoveBlob(ctx, row.Digest); err == nil {
			err = s.cat.PutBlob(ctx, row, inline, lease)
		}
	}
	if err != nil {
		return fmt.Errorf("commit blob %s: %w", row.Digest, mapCatalogError(err))
	}
	return nil
}

// dropOrphan removes what was installed of a blob whose row was not committed.
// With an error it is still there, and so must be the note that leads the sweep
// to it. The caller has d's lock.
func (s *Store) dropOrphan(ctx context.Context, d digest.Digest) error {
	return s.ifOrphan(context.WithoutCancel(ctx), d, s.files.Drop)
}

func (s *Store) ifOrphan(ctx context.Context, d digest.Digest, remove func(context.Context, digest.Digest) error) error {
	if err := s.cat.Sound(ctx); err != nil {
		// A row that is seen may go with the restart, and one that is not may come.
		return fmt.Errorf("whether blob %s is here is not known yet: %w", d, err)
	}
	_, err := s.cat.Blob(d)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return remove(ctx, d)
	case err != nil:
		return fmt.Errorf("blob %s: %w", d, mapCatalogError(err))
	}
	return nil // another one committed it
}

// PutBytes stores content that is in memory under its sha256 digest, leased to
// link's repository: what the node itself makes.
func (s *Store) PutBytes(ctx context.Context, b []byte, link Link) (Descriptor, error) {
	return s.PutContent(ctx, digest.FromBytes(b), b, link)
}

// PutContent stores content that is in memory under the digest d, which it must
// have, leased to link's repository: a manifest too large for the catalogue.
func (s *Store) PutContent(ctx context.Context, d digest.Digest, b []byte, link Link) (Descriptor, error) {
	if err := units.CheckDigest(d); err != nil {
		return Descriptor{}, err
	}
	if len(b) <= InlineMax {
		if got := d.Algorithm().FromBytes(b); got != d {
			return Descriptor{}, fmt.Errorf("%w: expected %s, got %d bytes of %s", ErrDigestMismatch, d, len(b), got)
		}
		desc := Descriptor{Digest: d, Size: int64(len(b))}
		unlock := s.locks.lock(d)
		defer unlock()
		return desc, s.putInline(ctx, catalog.BlobRow{Digest: d, Size: desc.Size, Class: catalog.Home}, b, s.lease(&link))
	}
	return s.putWhole(ctx, d, b, catalog.Home, &link)
}

// putWhole stores content of more than InlineMax bytes that is in memory.
func (s *Store) putWhole(ctx context.Context, d digest.Digest, b []byte, class Class, link *Link) (Descriptor, error) {
	u, err := s.BeginUpload(ctx, "")
	if err != nil {
		return Descriptor{}, err
	}
	desc, err := u.finish(ctx, bytes.NewReader(b), d, class, link)
	if err != nil {
		if cerr := u.Cancel(); cerr != nil && !errors.Is(cerr, ErrNotFound) {
			err = errors.Join(err, cerr)
		}
		return Descriptor{}, err
	}
	return desc, nil
}

// lease is what a push gives a blob in its repository. It begins with the commit,
// however long the bytes were under way.
func (s *Store) lease(link *Link) *catalog.Lease {
	if link == nil {
		return nil
	}
	return &catalog.Lease{PID: link.PID, Repo: link.Repo, Until: s.now().Add(LeaseFor)}
}
