package state

import (
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/portolan/portolan/node/identity"
)

// Mesh is what holds for all sites together.
type Mesh struct {
	ID         identity.MeshID
	Generation [16]byte   // raft generation: random, new after a recovery
	Recoveries []Recovery // oldest first, the last ones
	Level      uint32     // commands up to this level may be proposed
	Profile    string     // raft timings: "lan", "wan" or "far"
	Voters     int        // how many sites vote, as a command said; 0: none did. See WantsVoters
	Version    uint64     // of the settings: goes up with every edit of level, profile or voters
	CreatedAt  time.Time
}

// WantsVoters gives how many sites vote where there are as many: 3 or 5.
func (m Mesh) WantsVoters() int {
	if m.Voters == 0 {
		return fewVoters
	}
	return m.Voters
}

// Site is one datacenter. Its version goes up with those of its nodes, too.
type Site struct {
	ID        int64
	Name      string
	CreatedAt time.Time
	Version   uint64
	DrainedAt time.Time // since when it drains; zero: it does not
	DrainedBy string    // actor
	// Labels choose sites for rules. Never changed in place.
	Labels map[string]string
	// Removals of the site that were announced and not called off, the one that was
	// said last at the end. Never changed in place.
	Removals []Removal

	AwayAt time.Time // since when rules that want a number of copies do not count on it; zero: they do
}

// Away reports whether the site has not been heard of for so long that others
// keep copies in its place.
func (s Site) Away() bool { return !s.AwayAt.IsZero() }

// Draining reports whether the site asks to be left in peace.
func (s Site) Draining() bool { return !s.DrainedAt.IsZero() }

// Removal is the word that a site is about to be removed. Each removal has its own,
// so that one which is refused takes nothing from another one that is under way.
type Removal struct {
	Index uint64    // raft index of the command that announced it
	At    time.Time // when it was last said
	By    string    // actor
}

// counts reports whether the removal may still come. It ends by itself: who gave up
// need not remember to take it back.
func (l Removal) counts(now time.Time) bool { return now.Sub(l.At).Abs() < LeavingFor }

// Leaving gives the removal that was announced last, of those that count at a time.
func (s Site) Leaving(now time.Time) (last Removal, announced bool) {
	for _, l := range slices.Backward(s.Removals) {
		if l.counts(now) {
			return l, true
		}
	}
	return Removal{}, false
}

// Announced finds a removal that was announced and not called off, whether or not it
// counts any more.
func (s Site) Announced(index uint64) (l Removal, found bool) {
	i := slices.IndexFunc(s.Removals, func(l Removal) bool { return l.Index == index })
	if i < 0 {
		return Removal{}, false
	}
	return s.Removals[i], true
}

// Announces reports whether a removal is announced at a time.
func (s Site) Announces(index uint64, now time.Time) bool {
	l, found := s.Announced(index)
	return found && l.counts(now)
}

const (
	// LeavingFor is how long a removal that was announced, and not announced again, may
	// still come: a call looks for seconds at what only the site holds, and each may
	// announce it again.
	LeavingFor = 15 * time.Minute
	// MaxRemovals bounds the removals of one site that are announced together: more are
	// a mistake. The one that was not said for longest gives way, and is refused.
	MaxRemovals = 8
)

// Node is one member process.
type Node struct {
	ID           identity.NodeID
	SiteID       int64
	Site         string           // its site's name
	Store        identity.StoreID // zero for a witness
	BoxKey       [32]byte
	BoxSignature []byte
	Host         string // what other sites dial: a name or an address
	GossipPort   int
	ControlPort  int
	DataPort     int
	RegistryURL  string
	Level        uint32 // highest command level its binary understands
	Version      string // of its binary, for people
	Witness      bool   // votes, holds no content
	JoinedAt     time.Time
	Record       uint64 // version of this record
}

// Project is the unit of access and policy. Its name is the first component of
// a repository's.
type Project struct {
	ID        int64
	PID       identity.ProjectID // its identity in the catalogue, for ever
	Name      string
	Public    bool
	OwnerID   int64    // 0: nobody
	Sites     []string // residency, sorted; empty: everywhere
	Leaving   []string // sites that are named no more and hand over what they hold; sorted, as the next two
	Syncing   []string // sites that were named and take the project in
	Expelled  []string // sites that are to let go of it at once
	CreatedAt time.Time
	UpdatedAt time.Time
	DeletedAt time.Time // zero: it is there
	PurgedAt  time.Time // zero: its content is kept; else it is gone for ever, and the record stands for its identity alone
	Version   uint64

	Tags       TagState
	Durability int // sites that must have a push before it is answered; 0 and 1: the one that takes it
}

// Deleted reports whether the project was deleted and waits for its content to go.
func (p Project) Deleted() bool { return !p.DeletedAt.IsZero() }

// Purged reports whether the content of a deleted project is let go for ever.
func (p Project) Purged() bool { return !p.PurgedAt.IsZero() }

// User is a local account.
type User struct {
	ID           int64
	Name         string
	PasswordHash string // PHC string, argon2id
	Email        string
	RealName     string
	Comment      string
	Admin        bool
	CreatedAt    time.Time
	UpdatedAt    time.Time
	Version      uint64
}

// LogValue implements slog.LogValuer: never the hash.
func (u User) LogValue() slog.Value {
	return slog.GroupValue(slog.Int64("id", u.ID), slog.String("name", u.Name))
}

// Role is what a member may do in a project. Numbers are Harbor's.
type Role int

// The roles; more rights first: admin, maintainer, developer, guest, limited guest.
const (
	ProjectAdmin Role = 1
	Developer    Role = 2
	Guest        Role = 3
	Maintainer   Role = 4
	LimitedGuest Role = 5
)

var roleNames = map[Role]string{ProjectAdmin: "projectAdmin", Developer: "developer", Guest: "guest", Maintainer: "maintainer", LimitedGuest: "limitedGuest"}

// String gives the role's name.
func (r Role) String() string {
	if s, ok := roleNames[r]; ok {
		return s
	}
	return fmt.Sprintf("role %d", int(r))
}

// ParseRole reads what String gives.
func ParseRole(s string) (Role, error) {
	for r, name := range roleNames {
		if name == s {
			return r, nil
		}
	}
	return 0, fmt.Errorf("%q is not a role: use projectAdmin, maintainer, developer, guest or limitedGuest", s)
}

// Member gives a user a role in a project.
type Member struct {
	ID        int64
	ProjectID int64
	UserID    int64
	UserName  string
	Role      Role
	Version   uint64
}

// Rule says which artifacts must be at which sites.
type Rule struct {
	ID           int64
	Name         string
	Projects     []string // globs on the project's name
	Repositories []string // globs below the project; empty: all
	Tags         []string // globs; empty: all, the untagged too
	Types        []string // artifact types, globs or words; empty: all
	Labels       []string // KEY or KEY=GLOB on the manifest's annotations, all of them
	// One of three says which sites: all, names (sorted), an expression on labels.
	AllSites        bool
	Sites           []string
	SiteLabels      string
	Copies          int      // at how many of the sites; 0: all of them
	Priority        int      // higher goes first
	Windows         []string // when bytes may move; empty: always
	Bandwidth       uint64   // bits per second into each site; 0: no limit
	FollowDeletions bool     // what was deleted is not kept at the sites
	Disabled        bool
	Version         uint64
	CreatedAt       time.Time
}

// Token is an invitation to join, without its secret.
type Token struct {
	ID         int64
	Site       string
	SecretHash [32]byte
	CreatedAt  time.Time
	ExpiresAt  time.Time
	UsedBy     identity.NodeID // zero: unused
	UsedAt     time.Time
	CreatedBy  string    // actor
	RevokedAt  time.Time // zero: it was not
	RevokedBy  string    // actor
	Version    uint64
}

// Revoked reports whether the token was taken back before anybody used it.
func (t Token) Revoked() bool { return !t.RevokedAt.IsZero() }
