package peer

import (
	"fmt"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/libp2p/go-libp2p/core/crypto"
	corepeer "github.com/libp2p/go-libp2p/core/peer"

	"github.com/portolan/portolan/node/identity"
)

// maxIDs bounds the peer IDs that are remembered: more nodes than a mesh has.
const maxIDs = 4096

// ids are peer IDs by node ID. They are asked for with each blob that is looked
// for, and cost as much as a read of the catalogue to make.
var ids = func() *lru.Cache[identity.NodeID, corepeer.ID] {
	c, err := lru.New[identity.NodeID, corepeer.ID](maxIDs)
	if err != nil {
		panic(err) // only for a size below one
	}
	return c
}()

func peerID(id identity.NodeID) (corepeer.ID, error) {
	if p, ok := ids.Get(id); ok {
		return p, nil
	}
	pub, err := crypto.UnmarshalEd25519PublicKey(id.PublicKey())
	if err != nil {
		return "", fmt.Errorf("node ID %s: %w", id, err)
	}
	p, err := corepeer.IDFromPublicKey(pub)
	if err == nil {
		ids.Add(id, p)
	}
	return p, err
}
