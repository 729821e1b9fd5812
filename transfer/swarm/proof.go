package swarm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

// What is here is given to a project's readers and peers only if it is the
// project's: its bytes came from where the project may be read, or a site of it
// has shown that it has them (catalogue, invariant 23). So a flight asks on behalf
// of one project alone, and what came for one is nobody else's until that is
// proven. Invariant T15.

// openIn opens a blob of the store that is a project's.
func (s *Swarm) openIn(ctx context.Context, d digest.Digest, pid identity.ProjectID) (store.Blob, error) {
	if _, err := s.statIn(d, pid); err != nil {
		return nil, err
	}
	return s.cfg.Store.Open(ctx, d)
}

// statIn gives the size of a blob of the store that is a project's.
func (s *Swarm) statIn(d digest.Digest, pid identity.ProjectID) (int64, error) {
	row, err := s.cfg.Store.Catalog().BlobIn(pid, d)
	if errors.Is(err, catalog.ErrNotFound) {
		err = store.ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("blob %s: %w", d, err)
	}
	return row.Size, nil
}

// serves says whether what a flight has may be given to others for a project.
func (f *flight) serves(pid identity.ProjectID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pid == pid && !f.foreign
}

// prove makes a blob that is stored the project's, unless it is already: a site of
// it is asked to show that it has it.
func (f *flight) prove() error {
	known, err := f.s.cfg.Store.Catalog().Proven(f.pid, f.digest)
	if err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	if known {
		return nil
	}
	if f.s.cfg.Prove == nil {
		return &unproven{fmt.Errorf("blob %s: it is here for another project: %w", f.digest, store.ErrNotFound)}
	}
	// Who waits for it may give up before a large blob is shown: that is not lost.
	f.proving.Store(true)
	defer f.proving.Store(false)
	if err := f.s.cfg.Prove(f.ctx, f.digest, f.pid); err != nil {
		return &unproven{err}
	}
	return nil
}

// unproven ends a flight whose blob is stored, and not its project's. To others it
// is what it wraps.
type unproven struct{ error }

func (e *unproven) Is(err error) bool { return err == errLocal } // no holder would help
func (e *unproven) Unwrap() error     { return e.error }

// outlast waits until a flight for another project is over: then the blob is here
// and only has to be proven, or a flight for the caller's may begin. The caller
// has joined it, so that it hurries.
func (s *Swarm) outlast(ctx context.Context, f *flight, w Want) error {
	defer s.leave(f, true, w.Subject)
	patience := time.NewTimer(s.cfg.Answer)
	defer patience.Stop()
	select {
	case <-f.done:
		return nil
	case <-patience.C:
		return s.unreachable(f.holders())
	case <-ctx.Done():
		return ctx.Err()
	}
}
