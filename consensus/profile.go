package consensus

import (
	"fmt"
	"time"
)

// Profile is a set of raft timings. All nodes of a mesh use the same. It is a
// value of the mesh, changed by command; a node takes it when it starts: raft
// keeps the lease that it was started with, and heartbeats of one profile do not
// go with the lease of another.
type Profile struct {
	// Name is how the mesh's record and the configuration call it.
	Name string
	// RoundTrip is the 99th percentile between voters that the profile is for.
	RoundTrip time.Duration
	// Election is how long a voter goes without a leader before it stands for
	// election, and how long an edit is held without one. Heartbeats keep to it
	// with room for twenty round trips.
	Election time.Duration
	// Lease is how long a leader goes on without hearing from a majority.
	Lease time.Duration
	// Commit is how long the followers hear of a commit at the latest if the
	// leader's notice of it was lost. Less keeps a message on its way to each
	// follower nearly all the time, and an edit must wait for that one to come
	// back: at 80 ms, p50 of an edit is 183 ms with 10 ms and 168 ms with 100 ms.
	Commit time.Duration
}

// The profiles. A lease must cover two heartbeats of the worst kind: a fifth of
// the election timeout, and a round trip.
var (
	LAN = Profile{Name: "lan", RoundTrip: 50 * time.Millisecond, Election: time.Second, Lease: 500 * time.Millisecond, Commit: 100 * time.Millisecond}
	WAN = Profile{Name: "wan", RoundTrip: 150 * time.Millisecond, Election: 3 * time.Second, Lease: 1500 * time.Millisecond, Commit: 100 * time.Millisecond}
	Far = Profile{Name: "far", RoundTrip: 250 * time.Millisecond, Election: 5 * time.Second, Lease: 2500 * time.Millisecond, Commit: 100 * time.Millisecond}
)

// Profiles lists them, from near to far.
func Profiles() []Profile { return []Profile{LAN, WAN, Far} }

// ParseProfile finds a profile by its name; empty is lan.
func ParseProfile(name string) (Profile, error) {
	for _, p := range Profiles() {
		if p.Name == name || name == "" {
			return p, nil
		}
	}
	return Profile{}, fmt.Errorf("%q is not a profile: use lan, wan or far", name)
}

// ProfileFor gives the nearest profile that a round trip fits; the farthest one
// for what is beyond it, too.
func ProfileFor(roundTrip time.Duration) Profile {
	for _, p := range Profiles() {
		if roundTrip <= p.RoundTrip {
			return p
		}
	}
	return Far
}

// check refuses timings that raft would flap or not start with.
func (p Profile) check() error {
	if p.Lease > p.Election || p.Lease <= 0 || p.Commit <= 0 || p.Commit > p.Lease {
		return fmt.Errorf("consensus: profile %s: the commit timeout may not be longer than the lease, and the lease not than the election timeout", p.Name)
	}
	return nil
}

// useProfile takes the mesh's profile, as far as this node knows it: from its
// state, from its join, or from whoever makes the mesh.
func (n *Node) useProfile() error {
	if mesh := n.state.View().Mesh(); !mesh.ID.IsZero() {
		n.joined = mesh.Profile
	}
	if n.joined != "" && n.joined != n.cfg.Profile.Name {
		p, err := ParseProfile(n.joined)
		if err != nil {
			return fmt.Errorf("consensus: the mesh's %w; or start a newer version", err)
		}
		n.cfg.Profile = p
	}
	return n.cfg.Profile.check()
}

// Profile gives the timings that this node runs with. The mesh's own may be
// another since a command changed it: a restart takes it.
func (n *Node) Profile() Profile { return n.cfg.Profile }
