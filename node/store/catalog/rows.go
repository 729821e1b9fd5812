package catalog

import (
	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// BlobsIn gives the rows of several blobs, in their order and from one snapshot. One
// that this store does not hold, or for other projects alone, is the zero BlobRow.
func (c *Catalog) BlobsIn(pid identity.ProjectID, ds []digest.Digest) ([]BlobRow, error) {
	rows := make([]BlobRow, len(ds))
	err := c.view(func(r reader) error {
		pb := &rowpb.Blob{}
		for i, d := range ds {
			raw, err := rawDigest(d)
			if err != nil {
				return err
			}
			pb.Reset()
			ok, err := r.message(prefixDigest(tabBlob, raw), pb)
			if err != nil {
				return err
			}
			row := blobFromPB(d, pb)
			if !ok || row.State != Present {
				continue
			}
			if ok, err = r.proven(pid, raw, row); err != nil {
				return err
			}
			if ok {
				rows[i] = row
			}
		}
		return nil
	})
	return rows, err
}

// LinkedContent is LinkedIn, BlobIn and ContentIn from one snapshot: what a peer may
// have of a blob on behalf of a project. content is nil if the blob is not linked,
// not here, here for other projects alone, or no row.
func (c *Catalog) LinkedContent(pid identity.ProjectID, d digest.Digest) (content []byte, linked bool, err error) {
	raw, err := rawDigest(d)
	if err != nil {
		return nil, false, err
	}
	err = c.view(func(r reader) error {
		if _, _, linked, err = c.linkedIn(r, raw, pid); err != nil || !linked {
			return err
		}
		content, err = r.contentIn(pid, raw)
		return err
	})
	return content, linked, err
}

// storesKnown are the stores of which hints speak, with their numbers, by ID. A
// number is never given again and few are ever given, so they are remembered, and
// found anew when one was given or dropped.
type storesKnown struct {
	gen  uint64
	list []numberedStore
}

type numberedStore struct {
	number uint32
	id     identity.StoreID
}

// stores gives them as a snapshot has them that was taken after gen was read.
func (c *Catalog) stores(r reader, gen uint64) ([]numberedStore, error) {
	if known := c.known.Load(); known != nil && known.gen == gen {
		return known.list, nil
	}
	var list []numberedStore
	err := r.scan([]byte{tabStore}, nil, true, func(key, value []byte) (bool, error) {
		id, ok := parseStore(key)
		row := &rowpb.StoreRow{}
		if err := proto.Unmarshal(value, row); err != nil || !ok {
			return false, damaged(key)
		}
		list = append(list, numberedStore{row.Number, id})
		return true, nil
	})
	if err == nil {
		c.known.Store(&storesKnown{gen, list})
	}
	return list, err
}
