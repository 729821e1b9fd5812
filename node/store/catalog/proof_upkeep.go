package catalog

import (
	"context"
	"fmt"

	"github.com/portolan/portolan/node/identity"
)

const (
	// proofChunk is how many proofs upkeep looks at in one snapshot.
	proofChunk = 2000
	// maxProofs bounds the proofs that one transaction removes: the committer looks at
	// each once more, and other writes wait for it.
	maxProofs = 200
)

// dropOldProofs removes proofs of which nobody has any use: the blob is not here, and
// nothing of the project names it. While something does, the proof stays, for bytes
// that were lost come back (LostBlob). What the project names later it has to show
// anew, as it has for what was collected (invariant 23).
//
// Each transaction stands for itself: after a crash the next round finds the rest.
func (c *Catalog) dropOldProofs(ctx context.Context) (dropped int, err error) {
	for start := []byte{tabProof}; start != nil; {
		if err := ctx.Err(); err != nil {
			return dropped, err
		}
		var old [][]byte
		if old, start, err = c.oldProofs(start); err != nil {
			return dropped, err
		}
		if len(old) == 0 {
			continue
		}
		n := 0
		err = c.submitAs(ctx, jobFreeing, func(b *batch) error {
			n = 0
			for _, key := range old {
				// The blob may have come, or a name of it, since then.
				unused, err := b.oldProof(key)
				if err != nil {
					return err
				}
				if unused {
					b.del(key)
					n++
				}
			}
			return nil
		})
		if err != nil {
			return dropped, fmt.Errorf("catalog: remove proofs of blobs that are not here: %w", err)
		}
		dropped += n
	}
	return dropped, nil
}

// oldProofs gives proofs that can go, from a key on, and the key at which to go on;
// nil: it has seen all.
func (c *Catalog) oldProofs(start []byte) (old [][]byte, next []byte, err error) {
	err = c.view(func(r reader) error {
		seen := 0
		return r.scan([]byte{tabProof}, start, false, func(key, _ []byte) (bool, error) {
			if seen++; seen > proofChunk || len(old) == maxProofs {
				next = key
				return false, nil
			}
			unused, err := r.oldProof(key)
			if unused {
				old = append(old, key)
			}
			return true, err
		})
	})
	return old, next, err
}

// oldProof reports whether a proof's blob is not here and nothing of its project names
// it: no manifest, no lease and no promise to another store.
func (r reader) oldProof(key []byte) (bool, error) {
	d, pid, ok := parseProof(key)
	if !ok {
		return false, damaged(key)
	}
	raw, err := rawDigest(d)
	if err != nil {
		return false, damaged(key)
	}
	here, err := r.get(prefixDigest(tabBlob, raw))
	if err != nil || here != nil {
		return false, err
	}
	named, err := r.namedBy(raw, pid)
	return !named, err
}

func (r reader) namedBy(raw []byte, pid identity.ProjectID) (bool, error) {
	for _, prefix := range [][]byte{prefixRefPID(raw, pid), prefixLease(raw, pid)} {
		if named, err := r.any(prefix); err != nil || named {
			return named, err
		}
	}
	named := false
	err := r.scan(prefixDigest(tabPin, raw), nil, false, func(key, _ []byte) (bool, error) {
		p, ok := parsePin(key)
		if !ok {
			return false, damaged(key)
		}
		named = p.PID == pid
		return !named, nil
	})
	return named, err
}
