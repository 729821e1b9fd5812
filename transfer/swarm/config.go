package swarm

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/transfer/places"
)

// Config is what a Swarm needs. All functions answer from memory.
type Config struct {
	Store   *store.Store
	Host    Host
	Holders Holders
	// Pacer holds back what is sent and taken; nil: nothing is.
	Pacer Pacer
	// Signer signs records anew whose signer is no longer known.
	Signer units.Signer
	// Access says whether a peer may have a blob of a project: the project may
	// be held at the peer's site, and names the blob. Whether what is here is the
	// project's is asked besides (invariant T15).
	Access func(ctx context.Context, from identity.NodeID, d digest.Digest, pid identity.ProjectID) bool
	// Prove asks sites of a project to show that they have a blob, which is here for
	// another one, and notes in the catalogue that they did. Its errors are those of
	// Fetch. Nil: nobody can.
	Prove func(ctx context.Context, d digest.Digest, pid identity.ProjectID) error
	// Small gives a small blob to a peer that Access lets have it, in one look where
	// Access and the store take several. false, or nil: they are asked.
	Small func(from identity.NodeID, d digest.Digest, pid identity.ProjectID) ([]byte, bool)
	// KnownSigner says whether records signed by a node are accepted: members,
	// and removed ones as long as the mesh remembers them as honest.
	KnownSigner func(identity.NodeID) bool
	// SiteOf names a node's site in errors.
	SiteOf func(identity.NodeID) string
	// Logger takes blame, failovers and ends of transfers.
	Logger *slog.Logger
	// Registerer takes the metrics; nil: none.
	Registerer prometheus.Registerer
	// Stall is how long a holder may send nothing before the next one takes over;
	// 0: DefaultStall.
	Stall time.Duration
	// Answer bounds OpenBlob's wait for the first unit from holders that show
	// signs of life; 0: DefaultAnswer.
	Answer time.Duration

	// Of tests. Zero: the constants.
	requestIdle, watchFor time.Duration
}

// Want is a blob that is wanted here.
type Want struct {
	Digest digest.Digest
	Size   int64              // as the manifest says; 0: not known
	PID    identity.ProjectID // the project on whose behalf
	Class  catalog.Class      // catalog.Placed or catalog.Cached
	// Limit holds a Fetch back, together with all others that name it; nil: none
	// does. One blob that several want comes at the widest of theirs, and unheld
	// while a client reads it. OpenBlob looks not at it.
	Limit *Limit
	// Hurry: it is a manifest, or a push waits for it, here or at another site. A Fetch
	// then takes no turn behind others, and its bytes go before those that rules want,
	// and after those that clients read.
	Hurry bool
	// Order is where it stands among others that are hurried as it is, or are not; with
	// At zero it is of the time when it was first wanted. Of several wants of one blob
	// the first one's counts. OpenBlob looks not at it.
	Order places.Order
	// Ahead: nobody asked for it yet, and somebody may soon. A Fetch then asks for
	// nothing while clients or pushes could use the link, see ahead.go; it goes before
	// what rules want. Of no account once another Fetch, or a client, wants the blob.
	Ahead bool
	// Subject is on whose behalf a client reads, or would: what nobody waits for any
	// more is bounded for each.
	Subject string
}

// Blob is a blob that is read: from the store or as it arrives.
type Blob interface {
	io.ReadSeekCloser
	Size() int64
}
