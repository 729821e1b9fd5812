package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// Profile is a set of raft timings. All nodes of a mesh use the same.
type Profile struct {
	// Name is how the mesh's record and the configuration call it.
	Name string
	// Election is how long a voter goes without a leader before it stands for
	// election, and how long an edit is held without one. Heartbeats keep to it
	// with room for twenty round trips.
	Election time.Duration
	// Lease is how long a leader goes on without hearing from a majority.
	Lease time.Duration
	// Commit is how long a commit waits for the next message that tells the
	// followers about it; measured: more adds its whole length to every edit.
	Commit time.Duration
}

// The profiles, by the 99th percentile of the round trips between voters.
var (
	LAN = Profile{Name: "lan", Election: time.Second, Lease: 500 * time.Millisecond, Commit: 10 * time.Millisecond}      // <= 50 ms
	WAN = Profile{Name: "wan", Election: 3 * time.Second, Lease: 1500 * time.Millisecond, Commit: 10 * time.Millisecond} // <= 150 ms
	Far = Profile{Name: "far", Election: 5 * time.Second, Lease: 2500 * time.Millisecond, Commit: 20 * time.Millisecond} // <= 250 ms
)

// ParseProfile finds a profile by its name; empty is lan.
func ParseProfile(name string) (Profile, error) {
	switch name {
	case "", LAN.Name:
		return LAN, nil
	case WAN.Name:
		return WAN, nil
	case Far.Name:
		return Far, nil
	}
	return Profile{}, fmt.Errorf("%q is not a profile: use lan, wan or far", name)
}

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
	// Profile is the timings; zero is LAN.
	Profile Profile
	// RaftListener gives the members' raft connections (wire.Listener.Raft).
	RaftListener net.Listener
	// DialRaft connects to a member's raft side; nil is wire.DialRaft.
	DialRaft func(ctx context.Context, addr string, want identity.NodeID) (net.Conn, error)
	// DialControl opens the TCP connection for calls to another node; TLS is put
	// on it here. nil is a net.Dialer.
	DialControl func(ctx context.Context, addr string) (net.Conn, error)
	// Seeds are the members that the join named. They are kept in Dir until the
	// node has a state of its own; nil reads what was kept.
	Seeds []*command.Node
	// Logger; nil is slog.Default.
	Logger *slog.Logger
	// Now is the clock that stamps commands and judges joiners'; nil is time.Now.
	Now func() time.Time
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
	maxAppendEntries  = 64
	transportTimeout  = 10 * time.Second
	transportPool     = 3

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
