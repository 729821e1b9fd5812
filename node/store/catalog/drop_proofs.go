package catalog

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// dropContent ends that content of this store is a dropped project's, also what
// nothing of it names any more: images that were deleted before. Else it would be the
// project's again, unshown, for whoever names it when the site has come back; and it would
// rest for ever where the project may not. What is here is noted (LetGos).
//
// The rows are by digest, as those of references are, so it reads all of them: a second
// for a million blobs.
func (c *Catalog) dropContent(ctx context.Context, pid identity.ProjectID) error {
	var raws [][]byte
	flush := func() error {
		if len(raws) == 0 {
			return nil
		}
		defer func() { raws = nil }()
		return c.submitAs(ctx, jobFreeing, func(b *batch) error {
			for _, raw := range raws {
				if err := b.dropContent(raw, pid); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, tab := range []byte{tabProof, tabBlob} {
		err := c.walk([]byte{tab}, tab == tabBlob, func(_ reader, key, value []byte) (func() error, error) {
			raw, of, err := provenIn(key, value)
			return func() error {
				if of != pid {
					return nil
				}
				if raws = append(raws, raw); len(raws) < maxProofs {
					return nil
				}
				return flush()
			}, err
		})
		if err == nil {
			err = flush()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// provenIn gives what a row of a proof or of a blob says: whose content a digest is.
func provenIn(key, value []byte) (raw []byte, pid identity.ProjectID, err error) {
	if key[0] == tabProof {
		d, pid, ok := parseProof(key)
		if !ok {
			return nil, pid, damaged(key)
		}
		raw, err = rawDigest(d)
		return raw, pid, err
	}
	pb := &rowpb.Blob{}
	if err := proto.Unmarshal(value, pb); err != nil || !isDigest(key[1:]) {
		return nil, pid, damaged(key)
	}
	return key[1:], projectFromPB(pb.ProvenFor), nil
}

// dropContent ends that one digest is a project's, and notes it if it is here.
func (b *batch) dropContent(raw []byte, pid identity.ProjectID) error {
	row, found, err := b.blob(raw)
	if err != nil {
		return err
	}
	if !found || row.State != Present {
		return b.unprove(raw, pid)
	}
	d, ok := parseDigest(raw)
	if !ok {
		return damaged(prefixDigest(tabBlob, raw))
	}
	return b.letGo(pid, d)
}
