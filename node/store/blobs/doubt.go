package blobs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// dirDoubtful has a note for each digest whose object may be in the bucket
// without a row: <alg>-<hex>, empty. A note is made, durably, before the first
// byte is sent, and goes when the row is committed. The sweep looks at those that
// stay.
const dirDoubtful = "doubtful"

// doubtFor is how old a note is before the sweep takes it up: the client or peer
// of a commit that failed will most likely try again.
const doubtFor = time.Hour

type doubts struct {
	dir string
	now func() time.Time

	mu *sync.Mutex
	// dirty are those of this process whose attempt failed: an upload may be left in
	// the bucket even if a later attempt succeeds.
	dirty map[digest.Digest]bool
}

func newDoubts(dir string, now func() time.Time) doubts {
	return doubts{dir: dir, now: now, mu: new(sync.Mutex), dirty: make(map[digest.Digest]bool)}
}

func (n *doubts) path(d digest.Digest) string {
	return filepath.Join(n.dir, dirDoubtful, stem(d))
}

// begin makes the note. One that is there already, of an earlier attempt, stays
// for the sweep.
func (n *doubts) begin(d digest.Digest) error {
	if _, err := os.Stat(n.path(d)); err == nil {
		n.keep(d)
	} else if err := writeFileSync(n.path(d), nil); err != nil {
		return fmt.Errorf("note blob %s: %w", d, err)
	}
	// Also for one that is there: the attempt that made it may have failed here.
	return syncDir(filepath.Dir(n.path(d)))
}

// keep leaves the note to the sweep. The set is bounded by the notes, which the
// sweep removes.
func (n *doubts) keep(d digest.Digest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dirty[d] = true
}

// settle removes the note of a blob whose row is there. It is not synced: a note
// that comes back costs the sweep one question.
func (n *doubts) settle(d digest.Digest) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.dirty[d] {
		_ = os.Remove(n.path(d)) // the sweep takes what is left
	}
}

func (n *doubts) done(d digest.Digest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.dirty, d)
	if err := os.Remove(n.path(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// aside notes a damaged object, for the sweep that ends its quarantine.
func (n *doubts) aside(d digest.Digest) error {
	name := fmt.Sprintf("%s.%d", stem(d), n.now().UnixNano())
	path := filepath.Join(n.dir, "quarantine", name)
	if err := os.WriteFile(path, nil, filePerm); err != nil {
		return fmt.Errorf("put blob %s aside: %w", d, mapError(err))
	}
	return syncDir(filepath.Dir(path))
}

// sweepDoubts has a look at what interrupted commits left in the bucket.
func (s *Store) sweepDoubts(ctx context.Context, orphan Orphan, did *Swept) error {
	if s.objects == nil {
		return nil
	}
	o := s.objects
	names, err := readNames(s.path(dirDoubtful))
	if err != nil || len(names) == 0 {
		return err
	}
	// A bucket that is away is asked once, not once a note.
	if err := o.ours(ctx); err != nil {
		return err
	}
	shuffle(names)
	var errs []error
	var patience Patience
	for _, name := range names {
		d, ok := partialOf(name)
		if !ok {
			errs = append(errs, fmt.Errorf("%s/%s is no file of Portolan's: move it away", dirDoubtful, name))
			continue
		}
		st, err := os.Stat(o.notes.path(d))
		if err != nil || o.notes.now().Sub(st.ModTime()) <= doubtFor {
			continue // settled meanwhile, or still to be
		}
		err = orphan(d, func() error {
			if err := o.endUploads(ctx, d); err != nil {
				return err
			}
			return o.notes.done(d)
		})
		if patience.Over(err) || ctx.Err() != nil {
			return errors.Join(append(errs, err)...)
		}
		if err == nil {
			did.Orphans++
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
