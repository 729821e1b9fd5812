package swarm

import (
	"context"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/plane"
)

// Host is what a Swarm needs of a data plane (plane.Of makes one of a *peer.Host);
// what it promises is in package plane. Nothing here knows another part of it, so
// another one can be put in its place: a test runs on one in memory.
type Host interface {
	ID() identity.NodeID
	Handle(protocol string, handle plane.Handler)
	Open(ctx context.Context, to identity.NodeID, protocol string) (plane.Stream, error)
	OpenBulk(ctx context.Context, to identity.NodeID, protocol string) (plane.Stream, error)
	StreamsEach() int
	Responds(ctx context.Context, id identity.NodeID) bool
	Filled(to identity.NodeID, bytes int64)
}
