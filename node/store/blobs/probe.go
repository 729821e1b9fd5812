package blobs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

const (
	// ProbeBytes is what a probe writes: more than what is kept in the catalogue, so
	// that it takes the way of a file, and no work for any disk.
	ProbeBytes = 64 << 10
	// probeStem names the files of a probe. No upload has it as its id, and no blob as
	// its digest.
	probeStem = "probe"
)

// errOtherBytes: what was written is not what is read.
var errOtherBytes = errors.New("it gives back other bytes than were written")

// Probe tries whether a blob would be kept now: it writes a few bytes of chance
// where blobs are staged, syncs them, moves them to where blobs are (an object, in
// a bucket), reads them back, compares, and removes them. One runs at a time;
// what one leaves behind that is cut short, a sweep removes.
func (s *Store) Probe(ctx context.Context) error {
	select {
	case s.probing <- struct{}{}:
		defer func() { <-s.probing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := s.cfg.Space(ProbeBytes); err != nil {
		return err
	}
	// One that left an object behind, and was not swept yet: its note stays until that is
	// known to be gone.
	_, err := os.Lstat(s.probeStaged())
	noted := err == nil && s.objects != nil
	want := make([]byte, ProbeBytes)
	_, _ = rand.Read(want) // never fails; nothing of an earlier probe is taken for this one
	if err := s.stageProbe(want, noted); err != nil {
		return fmt.Errorf("write to the store in %s: %w", s.cfg.Dir, err)
	}
	if s.objects != nil {
		left, err := s.objects.probe(ctx, want)
		if left || noted && err != nil {
			return err // the staged file is the note by which a sweep removes the object
		}
		return errors.Join(err, s.removeProbe())
	}
	_, err = s.disk.moveInto(s.probeStaged(), s.probeFinal())
	if err == nil {
		err = readsBack(s.probeFinal(), want)
	}
	if err = errors.Join(err, s.removeProbe()); err != nil {
		return fmt.Errorf("keep a file in the store in %s: %w", s.cfg.Dir, err)
	}
	return nil
}

func (s *Store) probeStaged() string { return s.path("uploads", probeStem+extTmp) }
func (s *Store) probeFinal() string  { return s.path("blobs", digest.Canonical.String(), probeStem) }

// stageProbe writes the file, durably. On an error nothing is left, unless it is the note
// of an earlier probe.
func (s *Store) stageProbe(b []byte, noted bool) error {
	path := s.probeStaged()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, filePerm)
	if err != nil {
		return mapError(err)
	}
	_, err = f.Write(b)
	if err == nil {
		// As for a blob: a disk that takes bytes and does not keep them is found here.
		err = s.sync(f)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		// Promise: no object of a probe is in the bucket that no file knows of.
		err = syncDir(filepath.Dir(path))
	}
	if err == nil {
		err = readsBack(path, b)
	}
	if err != nil && !noted {
		_ = os.Remove(path)
	}
	return mapError(err)
}

// readsBack compares a file with what was written to it.
func readsBack(path string, want []byte) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	Forget(f, 0, int64(len(want)))
	got, err := io.ReadAll(io.LimitReader(f, int64(len(want))+1))
	if err == nil && !bytes.Equal(got, want) {
		err = errOtherBytes
	}
	return err
}

// removeProbe removes what is on the disk.
func (s *Store) removeProbe() error {
	paths := []string{s.probeStaged()}
	if s.objects == nil {
		paths = append(paths, s.probeFinal())
	}
	var errs []error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sweepProbe removes what was left of a probe, unless one runs.
func (s *Store) sweepProbe(ctx context.Context) error {
	select {
	case s.probing <- struct{}{}:
		defer func() { <-s.probing }()
	default:
		return nil
	}
	if s.objects != nil {
		if _, err := os.Lstat(s.probeStaged()); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		// Another store's bucket is not asked to delete anything.
		if err := s.objects.ours(ctx); err != nil {
			return err
		}
		if err := s.objects.unprobe(ctx); err != nil && !errors.Is(err, errNoObject) {
			return err
		}
	}
	return s.removeProbe()
}

// probeKey is below no directory of blobs or lists.
func (o *objects) probeKey() string { return "/probe-" + o.id }

// probe makes sure that the bucket is this store's now, and tries it.
func (o *objects) probe(ctx context.Context, text []byte) (left bool, err error) {
	if err := o.owned(ctx); err != nil {
		return false, err
	}
	return o.tryOut(ctx, text)
}

// tryOut puts an object, reads it back and deletes it. left: it may still be there.
func (o *objects) tryOut(ctx context.Context, text []byte) (left bool, err error) {
	err = o.call(ctx, callWrite, "write to it", o.stall, func(ctx context.Context) error {
		return o.Driver.PutContent(ctx, o.probeKey(), text)
	})
	if err != nil {
		u, ok := errors.AsType[*Unavailable](err)
		return !ok || !u.Refused, err
	}
	b, err := o.content(ctx, o.probeKey())
	if errors.Is(err, errNoObject) || err == nil && !bytes.Equal(b, text) {
		err = o.unavailable("read what was written", errors.New("it gives back something else"))
	}
	gone := o.unprobe(ctx)
	if err != nil {
		return gone != nil, err
	}
	if errors.Is(gone, errNoObject) {
		return false, o.unavailable("delete from it", gone)
	}
	return gone != nil, gone
}

// unprobe deletes the object. Its error is errNoObject if there is none.
func (o *objects) unprobe(ctx context.Context) error {
	return o.call(ctx, callDelete, "delete from it", o.stall, func(ctx context.Context) error { return o.Driver.Delete(ctx, o.probeKey()) })
}
