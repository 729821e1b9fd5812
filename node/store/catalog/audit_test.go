package catalog

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog/internal/rowpb"
)

// auditDerived derives all rows of a project anew from its entries and holds
// them against those that are stored.
func auditDerived(c *Catalog, pid identity.ProjectID) error {
	want := map[string][]byte{}
	repos := map[string]*rowpb.Repository{}
	digests := map[string]bool{}
	return c.view(func(r reader) error {
		err := r.scan(prefixPID(tabEntry, pid), nil, true, func(key, value []byte) (bool, error) {
			_, k, ok := parsePIDEntry(key)
			if !ok {
				return false, damaged(key)
			}
			e, err := decodeEntry(k, value)
			if err != nil {
				return false, err
			}
			for inc, seq := range e.ctx {
				want[string(keyIndex(pid, Dot{inc, seq}, k))] = []byte{}
			}
			rows, err := derive(pid, k, e)
			for _, row := range rows {
				want[string(row.key)] = row.value
				if d, _, _, _, ok := parseRef(row.key); ok && row.key[0] == tabRef {
					raw, _ := rawDigest(d)
					digests[string(raw)] = true
				}
			}
			if k.kind == kindManifest {
				digests[k.name] = true
			}
			if e.live() {
				if repos[k.repo] == nil {
					repos[k.repo] = &rowpb.Repository{}
				}
				if k.kind == kindTag {
					repos[k.repo].Tags++
				} else {
					repos[k.repo].Manifests++
				}
			}
			return true, err
		})
		if err != nil {
			return err
		}
		for repo, pb := range repos {
			v, err := deterministic.Marshal(pb)
			if err != nil {
				return err
			}
			want[string(keyRepo(pid, repo))] = v
		}
		prefixes := [][]byte{
			prefixPID(tabIndex, pid), prefixPID(tabLive, pid), prefixPID(tabTomb, pid), prefixPID(tabRepo, pid), prefixPID(tabReferrer, pid), prefixPID(tabTagOf, pid),
		}
		for raw := range digests {
			prefixes = append(prefixes, prefixRefPID([]byte(raw), pid))
		}
		for _, p := range prefixes {
			err := r.scan(p, nil, true, func(key, value []byte) (bool, error) {
				v, ok := want[string(key)]
				if !ok {
					return false, fmt.Errorf("row %x follows from no entry", key)
				}
				if !bytes.Equal(v, value) && !(key[0] == tabRepo && sameRepo(v, value)) {
					return false, fmt.Errorf("row %x is %x, want %x", key, value, v)
				}
				delete(want, string(key))
				return true, nil
			})
			if err != nil {
				return err
			}
		}
		for key := range want {
			return fmt.Errorf("row %x is not there", key)
		}
		return auditContent(r)
	})
}

// auditContent holds the bytes that are rows against the blob rows: they are
// there if a blob is present and inline, and only then.
func auditContent(r reader) error {
	want := map[string]bool{}
	err := r.scan([]byte{tabBlob}, nil, true, func(key, value []byte) (bool, error) {
		pb := &rowpb.Blob{}
		err := proto.Unmarshal(value, pb)
		if BlobState(pb.State) == Present && pb.Inline {
			want[string(key[1:])] = true
		}
		return true, err
	})
	if err != nil {
		return err
	}
	err = r.scan([]byte{tabContent}, nil, false, func(key, _ []byte) (bool, error) {
		if !want[string(key[1:])] {
			return false, fmt.Errorf("content %x is of no present blob", key)
		}
		delete(want, string(key[1:]))
		return true, nil
	})
	if err == nil && len(want) > 0 {
		err = fmt.Errorf("%d inline blobs have no content", len(want))
	}
	return err
}

func sameRepo(a, b []byte) bool {
	x, y := &rowpb.Repository{}, &rowpb.Repository{}
	return proto.Unmarshal(a, x) == nil && proto.Unmarshal(b, y) == nil && proto.Equal(x, y)
}
