package tags

import (
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
)

// maxPieces bounds what one push has other sites keep, and with it the memory and
// the questions of a push: an index of 1,900 images with 50 layers each fits.
const maxPieces = 100_000

// pieces are the blobs that a manifest needs: its own, and those of all manifests
// below it. These were pushed before, at this site alone if the project wanted no
// more of them, or at other sites than the ones that hold the index.
func (d *Door) pieces(put catalog.Put) ([]syncer.Piece, error) {
	var (
		out  []syncer.Piece
		seen = map[digest.Digest]bool{put.Digest: true}
		todo []catalog.Ref
	)
	piece := func(of digest.Digest, size int64) { out = append(out, syncer.Piece{Digest: of, Size: size}) }
	name := func(refs []catalog.Ref) error {
		for _, r := range refs {
			if seen[r.Digest] {
				continue
			}
			if len(seen) >= maxPieces {
				return &command.Error{Code: command.CodeInvalid,
					Message: fmt.Sprintf("manifest %s names more than %d manifests and blobs in all, which is more than can be held at several sites at once: split it into several", put.Digest, maxPieces)}
			}
			seen[r.Digest] = true
			if r.Kind == catalog.RefManifest {
				todo = append(todo, r)
			} else {
				piece(r.Digest, r.Size)
			}
		}
		return nil
	}
	if put.Bytes == nil {
		piece(put.Digest, put.Size)
	}
	if err := name(put.Refs); err != nil {
		return nil, err
	}
	for len(todo) > 0 {
		below := todo[0]
		todo = todo[1:]
		info, refs, err := d.child(put.PID, put.Repo, below.Digest)
		if errors.Is(err, catalog.ErrNotFound) {
			continue // deleted meanwhile, or a child's child that nobody pushed
		}
		if err != nil {
			return nil, err
		}
		if info.Size > catalog.MaxInlineManifest {
			piece(info.Digest, info.Size) // its entry does not bring its bytes
		}
		if err := name(refs); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d *Door) child(pid identity.ProjectID, repo string, m digest.Digest) (catalog.ManifestInfo, []catalog.Ref, error) {
	info, err := d.cat.Manifest(pid, repo, m)
	if err != nil {
		return info, nil, fmt.Errorf("manifest %s: %w", m, err)
	}
	refs, err := d.cat.Refs(pid, repo, m)
	if err != nil {
		return info, nil, fmt.Errorf("manifest %s: %w", m, err)
	}
	return info, refs, nil
}
