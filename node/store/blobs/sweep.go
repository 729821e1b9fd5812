package blobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/units"
)

// Keep says for how long things are kept that nobody goes on with.
type Keep struct {
	Uploads, Partials, Quarantine time.Duration
}

// Swept says what a sweep removed.
type Swept struct {
	Uploads, Partials, Orphans, Quarantined int
}

// Orphan removes a blob that has no row, then calls also, which may be nil. Both
// happen under the digest's lock.
type Orphan func(d digest.Digest, also func() error) error

// Sweep removes what was left behind: old uploads, old partial blobs, old
// quarantined files, and the notes of commits that a crash cut short. For each of
// the latter it calls orphan with the digest, which removes the blob's file if
// it has no row. Its cost is that of four directory listings, none of which
// grows with the number of blobs.
func (s *Store) Sweep(ctx context.Context, keep Keep, orphan Orphan) (Swept, error) {
	var did Swept
	err := errors.Join(
		s.sweepUploads(ctx, keep.Uploads, orphan, &did),
		s.sweepPartials(ctx, keep.Partials, orphan, &did),
		s.sweepQuarantine(keep.Quarantine, orphan, &did),
		s.sweepProbe(ctx),
		s.sweepDoubts(ctx, orphan, &did),
	)
	return did, err
}

// byStem groups the names of a directory by what is before their extension.
func byStem(dir string) (map[string]map[string]bool, error) {
	names, err := readNames(dir)
	if err != nil {
		return nil, err
	}
	out := make(map[string]map[string]bool)
	for _, n := range names {
		ext := filepath.Ext(n)
		stem := strings.TrimSuffix(n, ext)
		if out[stem] == nil {
			out[stem] = make(map[string]bool)
		}
		out[stem][ext] = true
	}
	return out, nil
}

func (s *Store) sweepUploads(ctx context.Context, keepFor time.Duration, orphan Orphan, did *Swept) error {
	left, err := byStem(s.path("uploads"))
	if err != nil {
		return err
	}
	var errs []error
	s.mu.Lock()
	for id := range s.uploads {
		if left[id] == nil {
			left[id] = nil // without a file: of a request that was cut short
		}
	}
	s.mu.Unlock()
	delete(left, probeStem) // see sweepProbe
	for id, exts := range left {
		if ctx.Err() != nil {
			break
		}
		s.mu.Lock()
		_, live := s.uploads[id]
		s.mu.Unlock()
		switch {
		case live || exts[extData]:
			gone, err := s.expire(id, keepFor, orphan)
			if gone {
				did.Uploads++
			}
			errs = append(errs, err)
		default:
			// A crash between the rename and the end of Discard.
			if exts[extCommit] {
				did.Orphans++
				if err := s.dropNoted(id, orphan); err != nil {
					errs = append(errs, err)
					continue // looked at again by the next sweep
				}
			}
			for ext := range exts {
				// Gone: its commit has ended since the directory was listed.
				if err := os.Remove(s.path("uploads", id+ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}

// dropNoted lets go of what the commit of an upload left, if one began. A note
// without a digest is from before its sync, and so before any other file.
func (s *Store) dropNoted(id string, orphan Orphan) error {
	b, err := os.ReadFile(s.path("uploads", id+extCommit))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if d := digest.Digest(b); units.CheckDigest(d) == nil {
		return orphan(d, nil)
	}
	return nil
}

// expire discards an upload that nobody touched for a while. Without orphan one
// whose commit was cut short stays for the sweep.
func (s *Store) expire(id string, keepFor time.Duration, orphan Orphan) (bool, error) {
	now := s.cfg.Now()
	s.mu.Lock()
	u := s.uploads[id]
	s.mu.Unlock()
	if u == nil {
		// From before the restart: the file's time, without reading the file.
		st, err := os.Stat(s.path("uploads", id+extData))
		if err == nil && st.Size() == 0 {
			keepFor = min(keepFor, idleSession)
		}
		if err != nil || now.Sub(st.ModTime()) <= keepFor {
			return false, nil
		}
		if u, err = s.Upload(id); err != nil {
			if errors.Is(err, ErrNotFound) {
				err = nil
			}
			return false, err
		}
	}
	if u.durable.Load() == 0 {
		keepFor = min(keepFor, idleSession)
	}
	if u.age(now) <= keepFor || !u.busy.TryLock() {
		return false, nil
	}
	defer u.busy.Unlock()
	if u.gone || u.age(now) <= keepFor {
		return false, nil
	}
	// The unit list of a commit that a crash cut short, before the note that
	// names it.
	if orphan == nil {
		if _, err := os.Stat(u.path(extCommit)); !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	} else if err := s.dropNoted(id, orphan); err != nil {
		return false, err
	}
	return true, u.Discard()
}

func (s *Store) sweepPartials(ctx context.Context, keepFor time.Duration, orphan Orphan, did *Swept) error {
	left, err := byStem(s.path("partial"))
	if err != nil {
		return err
	}
	var errs []error
	for stem, exts := range left {
		if ctx.Err() != nil {
			break
		}
		d, ok := partialOf(stem)
		if !ok {
			errs = append(errs, fmt.Errorf("partial/%s is no file of Portolan's: move it away", stem))
			continue
		}
		p := &Partial{s: s}
		p.rec.Digest = d
		s.mu.Lock()
		_, open := s.partials[d]
		if !open {
			s.partials[d] = p // keeps BeginFetch out meanwhile
		}
		s.mu.Unlock()
		if open {
			continue
		}
		errs = append(errs, s.sweepPartial(p, exts, keepFor, orphan, did))
		p.forget()
	}
	return errors.Join(errs...)
}

func (s *Store) sweepPartial(p *Partial, exts map[string]bool, keepFor time.Duration, orphan Orphan, did *Swept) error {
	st, err := os.Stat(p.path(extData))
	switch {
	case err == nil:
		if s.cfg.Now().Sub(st.ModTime()) <= keepFor {
			return nil
		}
		did.Partials++
		if _, err := os.Stat(s.disk.listPath(p.rec.Digest)); err == nil {
			// Of a commit that a crash cut short, perhaps: before the files that name it.
			if err := orphan(p.rec.Digest, nil); err != nil {
				return err
			}
		}
	case errors.Is(err, fs.ErrNotExist) && exts[extUnits]:
		// A crash between the rename and Close.
		did.Orphans++
		if err := orphan(p.rec.Digest, nil); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	errs := []error{p.remove()}
	for ext := range exts {
		if err := os.Remove(p.path(ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Store) sweepQuarantine(keepFor time.Duration, orphan Orphan, did *Swept) error {
	names, err := readNames(s.path("quarantine"))
	if err != nil {
		return err
	}
	shuffle(names)
	var errs []error
	var patience Patience
	for _, n := range names {
		at, err := strconv.ParseInt(strings.TrimPrefix(filepath.Ext(n), "."), 10, 64)
		if err != nil || s.cfg.Now().Sub(time.Unix(0, at)) <= keepFor {
			continue
		}
		if d, ok := partialOf(strings.TrimSuffix(n, filepath.Ext(n))); ok && s.objects != nil {
			// Only the note is here. A good copy may have taken the object's place.
			if err := orphan(d, nil); err != nil {
				errs = append(errs, err)
				if patience.Over(err) {
					break
				}
				continue
			}
		}
		did.Quarantined++
		errs = append(errs, os.Remove(s.path("quarantine", n)))
	}
	return errors.Join(errs...)
}
