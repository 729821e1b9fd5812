package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/blobs"
)

// sweepEvery is how often leftovers are looked for: they are kept for hours, so
// minutes late do not matter.
const sweepEvery = 10 * time.Minute

// Run keeps the store tidy until ctx ends: at once and then every few minutes it
// removes uploads and partial blobs that nobody goes on with, and finishes what
// crashes have cut short. Beside that it scrubs: slowly, it reads all blobs again.
func (s *Store) Run(ctx context.Context) error {
	var scrub sync.WaitGroup
	defer scrub.Wait()
	scrub.Go(func() { s.runScrub(ctx) })
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		s.Sweep(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// Sweep does once what Run does. Errors are logged: the next one tries again.
func (s *Store) Sweep(ctx context.Context) {
	did, err := s.files.Sweep(ctx, s.keep, func(d digest.Digest, also func() error) error {
		unlock := s.locks.lock(d)
		defer unlock()
		if err := s.ifOrphan(ctx, d, s.files.Remove); err != nil || also == nil {
			return err
		}
		return also()
	})
	if err != nil {
		s.log.Warn("leftovers of the store are still there", "error", err)
	}
	if err := s.finishCollections(ctx); err != nil {
		s.log.Warn("collections that were cut short are not finished", "error", err)
	}
	if did != (blobs.Swept{}) {
		s.log.Info("removed leftovers of the store", "uploads", did.Uploads, "partials", did.Partials,
			"interrupted_commits", did.Orphans, "quarantined", did.Quarantined)
	}
}

// Collect removes a blob that nothing here needs: the catalogue refuses one that
// is referenced, leased or pinned (catalog.ErrInUse), and from its mark on the
// blob is absent to everyone. Which blobs to collect is the caller's question.
func (s *Store) Collect(ctx context.Context, d digest.Digest) error {
	unlock := s.locks.lock(d)
	defer unlock()
	if err := s.cat.MarkDeleting(ctx, d); err != nil {
		return fmt.Errorf("collect blob %s: %w", d, mapCatalogError(err))
	}
	return s.finishCollection(ctx, d)
}

// finishCollection removes what is marked. Promise: the row goes last, so that
// a file without one is never left. The caller has d's lock.
func (s *Store) finishCollection(ctx context.Context, d digest.Digest) error {
	if err := s.files.Remove(ctx, d); err != nil {
		return err
	}
	// A caller that leaves now must not keep the row.
	if err := s.cat.RemoveBlob(context.WithoutCancel(ctx), d); err != nil {
		return fmt.Errorf("collect blob %s: %w", d, mapCatalogError(err))
	}
	return nil
}

// maxFinished bounds the collections that one sweep finishes: as many as can have
// been under way at a crash, many times over.
const maxFinished = 1000

// finishCollections ends the collections that a crash or an error cut short.
func (s *Store) finishCollections(ctx context.Context) error {
	left, err := s.cat.Deletings(maxFinished)
	errs := []error{err}
	rand.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
	var patience blobs.Patience
	for _, d := range left {
		if ctx.Err() != nil {
			break
		}
		err := s.finishIfDeleting(ctx, d)
		errs = append(errs, err)
		if patience.Over(err) {
			break
		}
	}
	return errors.Join(errs...)
}

func (s *Store) finishIfDeleting(ctx context.Context, d digest.Digest) error {
	unlock := s.locks.lock(d)
	defer unlock()
	// It may have ended, or the blob come again, before we had the lock.
	if is, err := s.cat.IsDeleting(d); err != nil || !is {
		return err
	}
	return s.finishCollection(ctx, d)
}
