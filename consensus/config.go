package consensus

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// Config is what [Open] needs.
type Config struct {
	// Dir is the directory of raft's log and snapshots; made if it is not there.
	Dir string
	// Identity is this node's key.
	Identity *identity.Identity
	// Self is this node's record as it should be: where it is and its store;
	// [Record] fills in the rest. A member whose record in the
	// mesh says otherwise (another port, another version) proposes this one.
	Self *command.Node
	// Profile is the timings of a mesh that this node makes, zero is LAN. In a
	// mesh that is there its own profile is used, and this one's numbers only if
	// it has the same name.
	Profile Profile
	// Draining says which nodes want to be left in peace: they are given no vote,
	// and give theirs to others. Hearsay is enough; nil: none does.
	Draining func(identity.NodeID) bool
	// RaftListener gives the members' raft connections (wire.Listener.Raft).
	RaftListener net.Listener
	// DialRaft connects to a member's raft side; nil is wire.DialRaft.
	DialRaft func(ctx context.Context, addr string, want identity.NodeID) (net.Conn, error)
	// DialControl opens the TCP connection for calls to another node; TLS is put
	// on it here. nil is a net.Dialer.
	DialControl func(ctx context.Context, addr string) (net.Conn, error)
	// Seeds are the members that the join named. They are kept in Dir until the
	// node has a state of its own; nil reads what was kept, with the profile.
	Seeds []*command.Node
	// Logger; nil is slog.Default.
	Logger *slog.Logger
	// Now is the clock that stamps commands and judges joiners'; nil is time.Now.
	Now func() time.Time

	// lasting is for how long nearer voters must be in sight before votes move to
	// them, but for tests.
	lasting                  time.Duration
	keyAwayFor, keyBehindFor time.Duration // the constants of these names, but for tests
}

// Limits and periods that do not follow the profile.
const (
	protocolVersion   = 3     // raft's
	trailingLogs      = 20480 // entries kept behind a snapshot: more than an hour's cut
	snapshotThreshold = 4096
	snapshotInterval  = 2 * time.Minute
	snapshotsKept     = 2
	logCacheEntries   = 512
	walSegmentBytes   = 8 << 20 // the default of 64 MiB is preallocated
	// maxAppendEntries go to a follower in a round trip, and into the log with one
	// fsync. A site that joins, or was away, has up to snapshotThreshold and more of
	// them to come: 64 at a time are 20 s at 300 ms.
	maxAppendEntries = 512
	// maxAppendBytes bounds what is in one message: it must be through within
	// transportTimeout, or it would be sent again for ever. 64 of the largest
	// commands; usual ones are 200 bytes long.
	maxAppendBytes   = 64 * command.MaxBytes
	transportTimeout = 10 * time.Second
	transportPool    = 3

	maxProposeFor  = 30 * time.Second // an edit with a leader at hand that never answers
	pollLost       = 25 * time.Millisecond
	retryPause     = 20 * time.Millisecond
	maxInFlight    = 1024 // edits under way at one node; beyond it callers are told to come back
	maxJoins       = 8    // joins under way at one node: strangers may try
	maxClockSkew   = time.Minute
	shutdownFor    = 10 * time.Second
	minTokenFor    = time.Minute
	maxTokenAddrs  = 3
	minimumLevel   = 1 // the lowest mesh level that this binary can live in
	maxPeekedNodes = 1000
)
