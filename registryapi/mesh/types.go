package mesh

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// Status is the mesh as this node sees it.
type Status struct {
	Mesh    identity.MeshID `json:"mesh" doc:"Id of the mesh"`
	Level   uint32          `json:"level" doc:"Commands up to this level are in use"`
	Node    identity.NodeID `json:"node" doc:"The node that answers"`
	Site    string          `json:"site" doc:"Its site"`
	Version string          `json:"version" doc:"Its binary's version"`
	Role    string          `json:"role" doc:"voter, learner or none" enum:"voter,learner,none"`
	// Removed is set at a node that was taken out of the mesh.
	Removed *Removed `json:"removed,omitempty" doc:"The answering node was removed; all else is what it knew last"`
	Consensus
	Sites []SiteStatus `json:"sites" doc:"All sites, by name"`
	// Behind, Suspects and Disputes are empty at a witness.
	Behind   []Behind  `json:"behind" doc:"How far the answering node's site is behind each other one, by name"`
	Suspects []Suspect `json:"suspects" doc:"Nodes that sent the answering one wrong bytes since it started"`
	Disputes []Dispute `json:"disputes" doc:"Signed records of blobs that contradict each other, as the answering node saw them since it started"`
}

// Consensus is the control plane's part of a status.
type Consensus struct {
	Leader     identity.NodeID   `json:"leader" doc:"The leader; empty: none is known here"`
	LeaderSite string            `json:"leader_site" doc:"Its site"`
	Term       uint64            `json:"term" doc:"Raft term"`
	Index      uint64            `json:"index" doc:"Last raft index known here"`
	Applied    uint64            `json:"applied" doc:"Last raft index applied here"`
	Voters     []identity.NodeID `json:"voters" doc:"Nodes that vote"`
	Learners   []identity.NodeID `json:"learners" doc:"Nodes that follow"`
	Profile    string            `json:"profile" doc:"Raft timings that this node runs with: lan, wan or far"`
	// VotersWanted is how many sites vote where there are as many.
	VotersWanted int         `json:"voters_wanted" doc:"How many sites vote, where there are as many: 3 or 5"`
	RoundTrips   []RoundTrip `json:"round_trips" doc:"Between the sites, as far as they are known here; the voters are chosen by them"`
	// Suggested and RoundTrip are the leader's to know; see Profile.
	Suggested string  `json:"-"`
	RoundTrip float64 `json:"-"`
}

// RoundTrip is how long a message takes from one site to another and back, over
// the control port.
type RoundTrip struct {
	From string  `json:"from" doc:"The site that measured it"`
	To   string  `json:"to"`
	RTT  float64 `json:"rtt_ms" doc:"Median of the last measurements, in milliseconds"`
}

// SiteStatus is one site in a status.
type SiteStatus struct {
	Name     string       `json:"name"`
	Draining bool         `json:"draining" doc:"It asks to be left in peace"`
	Nodes    []NodeStatus `json:"nodes"`
}

// NodeStatus is one node as the answering node sees it.
type NodeStatus struct {
	ID          identity.NodeID `json:"id"`
	Self        bool            `json:"self" doc:"This is the node that answers"`
	Alive       bool            `json:"alive" doc:"Answers gossip"`
	RTT         float64         `json:"rtt_ms" doc:"Round trip in milliseconds; 0: not measured"`
	Voter       bool            `json:"voter"`
	Leader      bool            `json:"leader"`
	Witness     bool            `json:"witness" doc:"Votes and holds no content"`
	Version     string          `json:"version" doc:"Its binary's version"`
	RegistryURL string          `json:"registry_url" doc:"Where its registry is reached"`
	Host        string          `json:"host" doc:"What other sites dial"`
	JoinedAt    time.Time       `json:"joined_at"`
}

// Site is a datacenter of the mesh.
type Site struct {
	ID        int64     `json:"id"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	Draining  bool      `json:"draining" doc:"It asks to be left in peace"`
	DrainedAt time.Time `json:"drained_at,omitzero" doc:"Since when"`
	DrainedBy string    `json:"drained_by,omitempty"`
	LeavingAt time.Time `json:"leaving_at,omitzero" doc:"When its removal was last announced, if that counts still; it takes no pushes while that is looked into, and the announcement ends by itself"`
	LeavingBy string    `json:"leaving_by,omitempty"`
	// Labels choose sites for rules.
	Labels map[string]string `json:"labels" doc:"By which rules choose sites"`
	AwayAt time.Time         `json:"away_at,omitzero" doc:"Since when rules that want a number of copies do not count on it: nobody hears of it"`
	Nodes  []Node            `json:"nodes"`
	// RoundTrips are those that the site measured.
	RoundTrips []RoundTrip `json:"round_trips" doc:"What it measured to the other sites, as far as the answering node knows"`
	Version    uint64      `json:"resource_version" doc:"Goes up with every edit of the site and its nodes"`
}

// Node is a member's record.
type Node struct {
	ID          identity.NodeID `json:"id"`
	Site        string          `json:"site"`
	Host        string          `json:"host" doc:"What other sites dial"`
	GossipPort  int             `json:"gossip_port"`
	ControlPort int             `json:"control_port"`
	DataPort    int             `json:"data_port"`
	RegistryURL string          `json:"registry_url"`
	Witness     bool            `json:"witness"`
	Version     string          `json:"version"`
	JoinedAt    time.Time       `json:"joined_at"`
}

// Token is an invitation to join.
type Token struct {
	ID        int64     `json:"id"`
	Site      string    `json:"site" doc:"The one site that may join by it"`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
	CreatedBy string    `json:"created_by"`
	State     string    `json:"state" enum:"open,used,expired,revoked"`
	UsedBy    string    `json:"used_by,omitempty" doc:"The node that joined by it"`
	UsedAt    time.Time `json:"used_at,omitzero"`
	RevokedBy string    `json:"revoked_by,omitempty"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	Token     string    `json:"token,omitempty" doc:"The secret text for portolan join; only in the answer that made it"`
}

// TokenRequest asks for a Token.
type TokenRequest struct {
	Site      string `json:"site" minLength:"1" maxLength:"63" doc:"Name of the site that shall join"`
	ExpiresIn string `json:"expires_in,omitempty" doc:"How long it may be used, as 90m or 24h; 24h if not said" example:"24h"`
}

// Rule says which artifacts must be at which sites.
type Rule struct {
	ID           int64    `json:"id"`
	Name         string   `json:"name"`
	Projects     []string `json:"projects" doc:"Globs on the project's name"`
	Repositories []string `json:"repositories" doc:"Globs on the path below the project; none: all"`
	Tags         []string `json:"tags" doc:"Globs; none: everything, the untagged too"`
	Types        []string `json:"types" doc:"Artifact types: globs, image or chart; none: all"`
	Labels       []string `json:"labels" doc:"KEY or KEY=GLOB on the manifest's annotations, all of them; none: any"`
	Sites        []string `json:"sites" doc:"Names of sites, or all; none: site_labels says which"`
	SiteLabels   string   `json:"site_labels,omitempty" doc:"An expression on the sites' labels, as region in (eu,us),!gpu"`
	Gone         []string `json:"gone_sites,omitempty" doc:"Sites that it names and that are not there any more"`
	Copies       int      `json:"copies" doc:"At how many of the sites; 0: at all of them"`
	Priority     int      `json:"priority" doc:"Of two artifacts that wait the one of the higher priority goes first"`
	Windows      []string `json:"windows" doc:"When bytes may move, as Mon-Fri 22:00-06:00 Europe/Berlin; none: always"`
	Bandwidth    uint64   `json:"bandwidth" doc:"Into each site, in bits per second; 0: no limit"`
	// FollowDeletions and Disabled are as in the request.
	FollowDeletions bool      `json:"follow_deletions" doc:"What was deleted, or lost the tag, is not kept at the sites"`
	Disabled        bool      `json:"disabled"`
	Version         uint64    `json:"resource_version" doc:"Goes up with every edit"`
	CreatedAt       time.Time `json:"created_at"`
}

// RuleRequest makes or replaces a Rule.
type RuleRequest struct {
	Name         string   `json:"name" minLength:"1" maxLength:"255"`
	Projects     []string `json:"projects" minItems:"1" doc:"Globs on the project's name"`
	Repositories []string `json:"repositories,omitempty" doc:"Globs on the path below the project; none: all"`
	Tags         []string `json:"tags,omitempty" doc:"Globs; none: everything, the untagged too"`
	Types        []string `json:"types,omitempty" doc:"Artifact types: globs, image or chart; none: all"`
	Labels       []string `json:"labels,omitempty" doc:"KEY or KEY=GLOB on the manifest's annotations, all of them; none: any"`
	Sites        []string `json:"sites,omitempty" doc:"Names of sites, or all; or else site_labels"`
	SiteLabels   string   `json:"site_labels,omitempty" maxLength:"1024" doc:"An expression on the sites' labels: key, !key, key=value, key!=value, key in (a,b), key notin (a,b), separated by commas"`
	Copies       uint32   `json:"copies,omitempty" maximum:"1000" doc:"At how many of the sites; 0: at all of them"`
	Priority     int32    `json:"priority,omitempty" minimum:"-1000" maximum:"1000" doc:"Of two artifacts that wait the one of the higher priority goes first"`
	Windows      []string `json:"windows,omitempty" maxItems:"20" doc:"When bytes may move, as Mon-Fri 22:00-06:00 Europe/Berlin; none: always"`
	Bandwidth    uint64   `json:"bandwidth,omitempty" doc:"Into each site, in bits per second; 0: no limit"`
	// FollowDeletions is about what rules placed: home copies are the project's.
	FollowDeletions bool   `json:"follow_deletions,omitempty" doc:"What was deleted, or lost the tag, is not kept at the sites"`
	Disabled        bool   `json:"disabled,omitempty"`
	IfVersion       uint64 `json:"resource_version,omitempty" doc:"Of a change: refuse with 409 if the rule has another version; 0: any"`
}

// Tag is a name for a manifest.
type Tag struct {
	Name      string          `json:"name"`
	Digest    digest.Digest   `json:"digest"`
	PushedAt  time.Time       `json:"pushed_at"`
	Actor     string          `json:"pushed_by"`
	Conflicts []digest.Digest `json:"conflicts,omitempty" doc:"What other sites pushed under this name at the same time"`
}

// Question is what Placement is asked. It converts to transfer.Question.
type Question struct {
	PID        identity.ProjectID
	Repository string // below the project
	Digest     digest.Digest
	// Tag that must give Digest at each site; empty: only content is asked for.
	Tag string
	// Sites to ask; never empty.
	Sites []string
}

// Presence is what one site has of an artifact. Its fields are those of
// transfer.SiteStatus, in their order: one converts to the other.
type Presence struct {
	Site      string          `json:"site"`
	Reachable bool            `json:"reachable" doc:"The site answered"`
	Error     string          `json:"error,omitempty" doc:"Why there is no or no full answer"`
	TagDigest digest.Digest   `json:"tag_digest,omitempty" doc:"What the tag gives there; empty: it is not known there"`
	Total     int             `json:"total" doc:"Blobs and manifests that belong to the artifact"`
	Missing   []digest.Digest `json:"missing,omitempty" doc:"Those of them that the site does not durably hold"`
	Evictable bool            `json:"evictable,omitempty" doc:"It holds some of it only because somebody pulled it there, and may drop that when room is needed"`
	Complete  bool            `json:"complete" doc:"It durably holds all of them, and the tag gives the digest"`
	Covered   bool            `json:"covered" doc:"A rule wants the artifact there, or it was pushed there"`
	Spare     bool            `json:"spare,omitempty" doc:"A rule that wants a number of copies could have chosen the site, and chose others"`
	Reason    string          `json:"reason,omitempty" doc:"Why the site's last attempt to get it ended early"`
}

// Where says which sites have an image.
type Where struct {
	Image      string        `json:"image" doc:"As it was asked for, in full"`
	Repository string        `json:"repository"`
	Tag        string        `json:"tag,omitempty"`
	Digest     digest.Digest `json:"digest" doc:"What the tag gives at the asked node"`
	Sites      []Presence    `json:"sites"`
}

// Wait is Where with an answer: is it where it was wanted?
type Wait struct {
	Where
	Done      bool     `json:"done" doc:"All sites that were asked for have it, and will keep it"`
	Uncovered []string `json:"uncovered,omitempty" doc:"Sites that no rule will ever bring it to"`
}
