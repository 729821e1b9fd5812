package state

import (
	"encoding/binary"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/portolan/portolan/consensus/state/table"
	"github.com/portolan/portolan/node/identity"
)

// request is what a request id was answered with.
type request struct {
	id      string
	index   uint64
	result  int64
	code    uint32
	message string
}

// View is the state at one index. It never changes. Its zero value is not
// usable; get one from [State.View].
type View struct {
	index  uint64
	mesh   Mesh
	lastID int64
	clock  int64 // unix nanoseconds, the latest time seen

	keys     []Key // by kind and version; see keys.go
	keyState KeyState
	secrets  *table.Tree[Secret] // by object, field

	sites     *table.Tree[Site]  // by id
	siteNames *table.Tree[int64] // by name
	nodes     *table.Tree[Node]  // by node id
	stores    *table.Tree[identity.NodeID]
	projects  *table.Tree[Project]
	projNames *table.Tree[int64] // deleted ones too: their names are taken
	pids      *table.Tree[int64]
	users     *table.Tree[User]
	userNames *table.Tree[int64]  // by name in lower case
	members   *table.Tree[Member] // by project id, user id
	memberIDs *table.Tree[int64]  // by project id, member id -> user id

	// Derived, see visible.go:
	paths       *table.Tree[int64] // by path
	publicPaths *table.Tree[int64] // by path
	memberPaths *table.Tree[int64] // by user id, path

	rules     *table.Tree[Rule]
	ruleNames *table.Tree[int64]
	tokens    *table.Tree[Token]
	requests  []request // by index; see State.remember

	removals
	tagRows
	traffic
	holds
	changes
}

func newView() *View {
	return &View{
		sites: table.New[Site](), siteNames: table.New[int64](),
		nodes: table.New[Node](), stores: table.New[identity.NodeID](),
		projects: table.New[Project](), projNames: table.New[int64](), pids: table.New[int64](),
		users: table.New[User](), userNames: table.New[int64](),
		members: table.New[Member](), memberIDs: table.New[int64](),
		paths: table.New[int64](), publicPaths: table.New[int64](), memberPaths: table.New[int64](),
		rules: table.New[Rule](), ruleNames: table.New[int64](),
		tokens: table.New[Token](), secrets: table.New[Secret](),
		removals: newRemovals(), tagRows: newTagRows(), traffic: newTraffic(), holds: newHolds(), changes: newChanges(),
	}
}

// building is a tree that may be filled in place.
type building interface{ Build(on bool) }

// trees lists all of the view's.
func (v *View) trees() []building {
	rows := append([]building{v.secrets, v.sites, v.siteNames, v.nodes, v.stores, v.projects, v.projNames, v.pids, v.users, v.userNames,
		v.members, v.memberIDs, v.paths, v.publicPaths, v.memberPaths, v.rules, v.ruleNames, v.tokens, v.removed}, v.tagRows.trees()...)
	return slices.Concat(rows, v.traffic.trees(), v.holds.trees(), v.changes.trees())
}

// build lets a view that nobody has yet be filled without a copy for each row.
func (v *View) build(on bool) {
	for _, t := range v.trees() {
		t.Build(on)
	}
}

// idKey orders rows by their ids; all ids are positive.
func idKey(id int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func pairKey(a, b int64) []byte { return binary.BigEndian.AppendUint64(idKey(a), uint64(b)) }

// fold makes user names equal whatever their case. ASCII only: Unicode's tables
// differ between toolchains, and with them the state would.
func fold(s string) []byte {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return b
}

// get follows a name to its row.
func get[T any](names *table.Tree[int64], rows *table.Tree[T], name []byte) (T, bool) {
	id, ok := names.Get(name)
	if !ok {
		var zero T
		return zero, false
	}
	return rows.Get(idKey(id))
}

// all yields a tree's rows in key order.
func all[T any](t *table.Tree[T], prefix []byte) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, row := range t.Prefix(prefix) {
			if !yield(row) {
				return
			}
		}
	}
}

// byName yields rows in the order of their names.
func byName[T any](names *table.Tree[int64], rows *table.Tree[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		for id := range all(names, nil) {
			if row, ok := rows.Get(idKey(id)); ok && !yield(row) {
				return
			}
		}
	}
}

// Index is the raft index of the last command that the view contains.
func (v *View) Index() uint64 { return v.index }

// Clock is the latest time that any command carried; it never runs back.
func (v *View) Clock() time.Time { return fromNanos(v.clock) }

// Mesh gives the mesh's record; its ID is zero before the mesh was made.
func (v *View) Mesh() Mesh { return v.mesh }

// Sites gives all sites, by name.
func (v *View) Sites() []Site { return slices.Collect(byName(v.siteNames, v.sites)) }

// Site finds a site by its name.
func (v *View) Site(name string) (Site, bool) { return get(v.siteNames, v.sites, []byte(name)) }

// SiteByID finds a site by its id.
func (v *View) SiteByID(id int64) (Site, bool) { return v.sites.Get(idKey(id)) }

// ContentSites gives the sites that hold content: those with a node that is not
// a witness. By name.
func (v *View) ContentSites() []Site {
	content := make(map[int64]bool)
	for n := range all(v.nodes, nil) {
		if !n.Witness {
			content[n.SiteID] = true
		}
	}
	out := make([]Site, 0, len(content))
	for s := range byName(v.siteNames, v.sites) {
		if content[s.ID] {
			out = append(out, s)
		}
	}
	return out
}

// Nodes gives all nodes, in the order of their ids.
func (v *View) Nodes() []Node { return slices.Collect(all(v.nodes, nil)) }

// Node finds a member by its id.
func (v *View) Node(id identity.NodeID) (Node, bool) { return v.nodes.Get(id[:]) }

// NodesOf gives the nodes of a site.
func (v *View) NodesOf(site string) []Node {
	var out []Node
	for n := range all(v.nodes, nil) {
		if n.Site == site {
			out = append(out, n)
		}
	}
	return out
}

// NodeOfStore finds the node that serves a store.
func (v *View) NodeOfStore(id identity.StoreID) (Node, bool) {
	n, ok := v.stores.Get(id[:])
	if !ok {
		return Node{}, false
	}
	return v.Node(n)
}

// Project finds a project by its name. Deleted ones are not found.
func (v *View) Project(name string) (Project, bool) {
	p, ok := get(v.projNames, v.projects, []byte(name))
	if !ok || p.Deleted() {
		return Project{}, false
	}
	return p, true
}

// ProjectByID finds a project by its id. Deleted ones are not found.
func (v *View) ProjectByID(id int64) (Project, bool) {
	p, ok := v.projects.Get(idKey(id))
	if !ok || p.Deleted() {
		return Project{}, false
	}
	return p, true
}

// ProjectByPID finds a project by its identity in the catalogue. Deleted ones
// are found too, with DeletedAt set.
func (v *View) ProjectByPID(pid identity.ProjectID) (Project, bool) {
	return get(v.pids, v.projects, pid[:])
}

// Projects yields the projects by name, without the deleted ones.
func (v *View) Projects() iter.Seq[Project] {
	return func(yield func(Project) bool) {
		for p := range byName(v.projNames, v.projects) {
			if !p.Deleted() && !yield(p) {
				return
			}
		}
	}
}

// DeletedProjects yields the projects whose content waits to go.
func (v *View) DeletedProjects() iter.Seq[Project] {
	return func(yield func(Project) bool) {
		for p := range byName(v.projNames, v.projects) {
			if p.Deleted() && !yield(p) {
				return
			}
		}
	}
}

// MayRest reports whether a project's content may be stored at a site. It says
// so of each name, whether there is a site of it or not.
func (v *View) MayRest(p Project, site string) bool { return p.Residence(site).MayRest() }

// User finds an account by its name, whatever the case.
func (v *View) User(name string) (User, bool) { return get(v.userNames, v.users, fold(name)) }

// UserByID finds an account by its id.
func (v *View) UserByID(id int64) (User, bool) { return v.users.Get(idKey(id)) }

// Users yields the accounts by name.
func (v *View) Users() iter.Seq[User] { return byName(v.userNames, v.users) }

// Member finds a user's role in a project.
func (v *View) Member(projectID, userID int64) (Member, bool) {
	return v.members.Get(pairKey(projectID, userID))
}

// MemberByID finds a member of a project by the member's own id.
func (v *View) MemberByID(projectID, memberID int64) (Member, bool) {
	user, ok := v.memberIDs.Get(pairKey(projectID, memberID))
	if !ok {
		return Member{}, false
	}
	return v.Member(projectID, user)
}

// Members gives a project's members, in the order of their users' ids.
func (v *View) Members(projectID int64) []Member {
	return slices.Collect(all(v.members, idKey(projectID)))
}

// Rule finds a rule by its name or by its id in decimal; a name goes first.
func (v *View) Rule(nameOrID string) (Rule, bool) {
	if r, ok := get(v.ruleNames, v.rules, []byte(nameOrID)); ok {
		return r, true
	}
	id, err := strconv.ParseInt(nameOrID, 10, 64)
	if err != nil || id <= 0 {
		return Rule{}, false
	}
	return v.RuleByID(id)
}

// RuleByID finds a rule by its id.
func (v *View) RuleByID(id int64) (Rule, bool) { return v.rules.Get(idKey(id)) }

// Rules gives all rules, by name.
func (v *View) Rules() []Rule { return slices.Collect(byName(v.ruleNames, v.rules)) }

// Token finds a join token by its id.
func (v *View) Token(id int64) (Token, bool) { return v.tokens.Get(idKey(id)) }

// Tokens gives all join tokens, oldest first.
func (v *View) Tokens() []Token { return slices.Collect(all(v.tokens, nil)) }
