package state

import (
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

const (
	// MaxTokenFor is the longest life of a join token: a secret that lies about.
	MaxTokenFor = 90 * 24 * time.Hour
	// tokenKept is how long a dead token is listed, so that people can be told
	// "used" or "expired" and not only "unknown".
	tokenKept = 30 * 24 * time.Hour
	// maxTokens bounds the list.
	maxTokens = 1000

	// How many sites may vote: fewVoters outlive one of them, manyVoters two.
	fewVoters  = 3
	manyVoters = 5

	firstAdmin   = "admin"
	firstProject = "library"
)

func (v *View) meshCreate(m *command.MeshCreate) (int64, error) {
	if !v.mesh.ID.IsZero() {
		return 0, refuse(command.CodeExists, "the mesh %s was made already", v.mesh.ID)
	}
	id, err := identity.MeshIDFromBytes(m.GetMeshId())
	if err != nil {
		return 0, refuse(command.CodeInvalid, "%s", err)
	}
	if len(m.GetRaftGeneration()) != 16 {
		return 0, refuse(command.CodeInvalid, "a raft generation has 16 bytes, not %d", len(m.GetRaftGeneration()))
	}
	profile := m.GetProfile()
	if profile == "" {
		profile = "lan"
	}
	if err := checkProfile(profile); err != nil {
		return 0, err
	}
	if m.GetNode().GetLevel() > command.Level {
		return 0, &UnsupportedError{Index: v.index, Reason: "a mesh of a command level above its own"}
	}
	v.mesh = Mesh{ID: id, Generation: [16]byte(m.GetRaftGeneration()),
		Level: m.GetNode().GetLevel(), Profile: profile, CreatedAt: v.now(), Version: 1}
	if m.GetNode().GetWitness() {
		return 0, refuse(command.CodeInvalid, "the first node of a mesh holds content: a witness joins later")
	}
	if _, err := v.addNode(m.GetSite(), m.GetNode()); err != nil {
		return 0, err
	}
	if err := v.firstKeys(identity.NodeID(m.GetNode().GetId()), m.GetKeys()); err != nil {
		return 0, err
	}
	admin, err := v.userCreate(&command.UserCreate{Name: firstAdmin, PasswordHash: m.GetAdminPasswordHash(), Comment: "made with the mesh", Admin: true})
	if err != nil {
		return 0, err
	}
	return v.projectCreate(&command.ProjectCreate{ProjectId: m.GetLibraryProjectId(), Name: firstProject, Public: true, OwnerId: admin})
}

func (v *View) setLevel(m *command.SetLevel) (int64, error) {
	if m.GetLevel() <= v.mesh.Level {
		return 0, refuse(command.CodeConflict, "the mesh is at level %d already; it never goes down", v.mesh.Level)
	}
	for n := range all(v.nodes, nil) {
		if n.Level < m.GetLevel() {
			return 0, refuse(command.CodeConflict, "the node of site %s understands level %d only: upgrade it first", n.Site, n.Level)
		}
	}
	if m.GetLevel() > command.Level {
		return 0, &UnsupportedError{Index: v.index, Reason: "a command level above its own"}
	}
	v.mesh.Level = m.GetLevel()
	v.mesh.Version++
	return 0, nil
}

func checkProfile(name string) error {
	if !slices.Contains([]string{"lan", "wan", "far"}, name) {
		return refuse(command.CodeInvalid, "%q is not a profile: use lan, wan or far", clip(name))
	}
	return nil
}

func (v *View) profileSet(m *command.ProfileSet) (int64, error) {
	if err := checkProfile(m.GetProfile()); err != nil {
		return 0, err
	}
	if err := checkVersion("mesh's record", v.mesh.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	v.mesh.Profile = m.GetProfile()
	v.mesh.Version++
	return 0, nil
}

func (v *View) votersSet(m *command.VotersSet) (int64, error) {
	n := int(m.GetVoters())
	if n != fewVoters && n != manyVoters {
		return 0, refuse(command.CodeInvalid, "%d voters are not possible: %d, which outlive one of them, or %d, which outlive two", n, fewVoters, manyVoters)
	}
	if err := checkVersion("mesh's record", v.mesh.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	v.mesh.Voters = n
	v.mesh.Version++
	return 0, nil
}

// NodeOf reads a node record, without site and time. It checks no more than
// that the ids have their lengths: what was once accepted must load for ever.
func NodeOf(m *command.Node) (Node, error) {
	id, err := identity.NodeIDFromBytes(m.GetId())
	if err != nil {
		return Node{}, refuse(command.CodeInvalid, "%s", err)
	}
	n := Node{ID: id, Host: m.GetHost(), GossipPort: int(m.GetGossipPort()), ControlPort: int(m.GetControlPort()), DataPort: int(m.GetDataPort()),
		RegistryURL: m.GetRegistryUrl(), Level: m.GetLevel(), Version: m.GetVersion(), Witness: m.GetWitness(), BoxSignature: slices.Clone(m.GetBoxSignature())}
	if !n.Witness {
		if n.Store, err = identity.StoreIDFromBytes(m.GetStoreId()); err != nil || n.Store.IsZero() {
			return Node{}, refuse(command.CodeInvalid, "a node that holds content needs a store id of 16 bytes")
		}
	}
	if len(m.GetBoxKey()) != len(n.BoxKey) {
		return Node{}, refuse(command.CodeInvalid, "a node needs a box key of %d bytes, not %d", len(n.BoxKey), len(m.GetBoxKey()))
	}
	copy(n.BoxKey[:], m.GetBoxKey())
	return n, nil
}

// parseNode reads a node record and checks all of it.
func parseNode(m *command.Node) (Node, error) {
	n, err := NodeOf(m)
	if err != nil {
		return Node{}, err
	}
	if err := identity.VerifyBoxKey(n.ID, n.BoxKey[:], n.BoxSignature); err != nil {
		return Node{}, refuse(command.CodeInvalid, "the node's box key is not signed by the node: %s", err)
	}
	for _, text := range []string{n.Host, n.RegistryURL, n.Version} {
		if err := checkText("node record", text); err != nil {
			return Node{}, err
		}
	}
	if n.Host == "" || strings.ContainsAny(n.Host, " /") {
		return Node{}, refuse(command.CodeInvalid, "%q is not a host that other sites could dial: set it with --advertise", clip(n.Host))
	}
	ports := []int{n.GossipPort, n.ControlPort, n.DataPort}
	if n.Witness {
		if len(m.GetStoreId()) > 0 || n.DataPort != 0 {
			return Node{}, refuse(command.CodeInvalid, "a witness holds no content: it has neither a store nor a data port")
		}
		ports = ports[:2]
	}
	for _, port := range ports {
		if port < 1 || port > 65535 {
			return Node{}, refuse(command.CodeInvalid, "%d is not a port: use 1 to 65535", port)
		}
	}
	if n.Level == 0 {
		return Node{}, refuse(command.CodeInvalid, "a node must say which command level it understands")
	}
	return n, nil
}

// addNode makes the first node of a site, and the site.
func (v *View) addNode(site string, m *command.Node) (int64, error) {
	if err := CheckSiteName(site); err != nil {
		return 0, err
	}
	n, err := parseNode(m)
	if err != nil {
		return 0, err
	}
	if n.Level < v.mesh.Level {
		return 0, refuse(command.CodeConflict, "this version of portolan is too old: the mesh is at command level %d, it understands %d; install the version that the other sites run", v.mesh.Level, n.Level)
	}
	if err := v.checkKey(n.ID); err != nil {
		return 0, err
	}
	if old, ok := v.nodes.Get(n.ID[:]); ok {
		return 0, refuse(command.CodeExists, "this node's key is a member already, as site %s", old.Site)
	}
	if err := v.checkStore(n); err != nil {
		return 0, err
	}
	s, ok := v.Site(site)
	if ok && len(v.NodesOf(site)) > 0 {
		return 0, refuse(command.CodeExists, "the site name %q is taken: choose another for the new site", site)
	}
	if !ok {
		s = Site{ID: v.newID(), Name: site, CreatedAt: v.now()}
	}
	s.Version++
	v.putSite(s)
	n.SiteID, n.Site, n.JoinedAt, n.Record = s.ID, s.Name, v.now(), 1
	v.putNode(n)
	return s.ID, nil
}

func (v *View) checkStore(n Node) error {
	if owner, ok := v.stores.Get(n.Store[:]); ok && !n.Store.IsZero() && owner != n.ID {
		at := "another node"
		if o, ok := v.Node(owner); ok {
			at = "site " + o.Site
		}
		return refuse(command.CodeExists, "the store %s belongs to %s: a copied data directory cannot join; use an empty one", n.Store, at)
	}
	return nil
}

func (v *View) tokenCreate(actor string, m *command.TokenCreate) (int64, error) {
	if err := CheckSiteName(m.GetSite()); err != nil {
		return 0, err
	}
	if len(m.GetSecretHash()) != 32 {
		return 0, refuse(command.CodeInvalid, "a secret's hash has 32 bytes, not %d", len(m.GetSecretHash()))
	}
	if nodes := v.NodesOf(m.GetSite()); len(nodes) > 0 {
		return 0, refuse(command.CodeExists, "the site name %q is taken: choose another for the new site", m.GetSite())
	}
	expires := fromNanos(m.GetExpiresUnixNs())
	if !expires.After(v.now()) || expires.After(v.now().Add(MaxTokenFor)) {
		return 0, refuse(command.CodeInvalid, "a token must live longer than now and at most %d days", int(MaxTokenFor.Hours()/24))
	}
	for t := range all(v.tokens, nil) {
		if t.ExpiresAt.Add(tokenKept).Before(v.now()) {
			v.tokens, _, _ = v.tokens.Delete(idKey(t.ID))
		}
	}
	if v.tokens.Len() >= maxTokens {
		return 0, refuse(command.CodeInvalid, "there are %d tokens: delete some before you make more", v.tokens.Len())
	}
	t := Token{ID: v.newID(), Site: m.GetSite(), SecretHash: [32]byte(m.GetSecretHash()), CreatedAt: v.now(), ExpiresAt: expires, CreatedBy: clip(actor), Version: 1}
	v.putToken(t)
	return t.ID, nil
}

// seenToken finds a token for an edit.
func (v *View) seenToken(id int64, ifVersion uint64) (Token, error) {
	t, ok := v.Token(id)
	if !ok {
		return t, refuse(command.CodeNotFound, "there is no token %d", id)
	}
	return t, checkVersion(fmt.Sprintf("token %d", t.ID), t.Version, ifVersion)
}

func (v *View) tokenRevoke(actor string, m *command.TokenRevoke) (int64, error) {
	t, err := v.seenToken(m.GetId(), m.GetIfVersion())
	switch {
	case err != nil:
		return 0, err
	case !t.UsedBy.IsZero():
		return 0, refuse(command.CodeUsed, "the token %d was used already, at %s: it lets nobody else in, and site %s is a member", t.ID, t.UsedAt.Format(time.RFC3339), t.Site)
	case t.Revoked():
		return t.ID, nil // again is as good as once
	}
	t.RevokedAt, t.RevokedBy = v.now(), clip(actor)
	t.Version++
	v.putToken(t)
	return t.ID, nil
}

func (v *View) tokenDelete(m *command.TokenDelete) (int64, error) {
	if _, err := v.seenToken(m.GetId(), m.GetIfVersion()); err != nil {
		return 0, err
	}
	v.tokens, _, _ = v.tokens.Delete(idKey(m.GetId()))
	return m.GetId(), nil
}

// CheckToken says why a join with this token would be refused, nil if it would
// not be. repeat is set when this very node used it before.
func (v *View) CheckToken(id int64, secretHash []byte, site string, node identity.NodeID, now time.Time) (repeat bool, err error) {
	t, ok := v.Token(id)
	if !ok || subtle.ConstantTimeCompare(t.SecretHash[:], secretHash) != 1 {
		// One answer for both: nobody learns which tokens there are.
		return false, refuse(command.CodeDenied, "the token is not known here: it was revoked, or copied wrongly; make a new one with: portolan token create --site %s", clip(site))
	}
	if err := v.checkKey(node); err != nil {
		return false, err
	}
	if t.Site != site {
		return false, refuse(command.CodeInvalid, "the token is for site %q, not for %q", t.Site, clip(site))
	}
	if t.UsedBy == node {
		if _, member := v.Node(node); member {
			return true, nil
		}
	}
	if !t.UsedBy.IsZero() {
		return false, refuse(command.CodeUsed, "the token was used already, at %s: each token is for one join; make a new one with: portolan token create --site %s", t.UsedAt.Format(time.RFC3339), t.Site)
	}
	if t.Revoked() {
		return false, refuse(command.CodeDenied, "the token was revoked at %s: ask for another, made with: portolan token create --site %s", t.RevokedAt.Format(time.RFC3339), t.Site)
	}
	if now.After(t.ExpiresAt) {
		return false, refuse(command.CodeExpired, "the token expired at %s: make a new one with: portolan token create --site %s", t.ExpiresAt.Format(time.RFC3339), t.Site)
	}
	return false, nil
}

func (v *View) nodeJoin(m *command.NodeJoin) (int64, error) {
	node, err := identity.NodeIDFromBytes(m.GetNode().GetId())
	if err != nil {
		return 0, refuse(command.CodeInvalid, "%s", err)
	}
	repeat, err := v.CheckToken(m.GetTokenId(), m.GetSecretHash(), m.GetSite(), node, v.now())
	if err != nil {
		return 0, err
	}
	if repeat {
		// The answer was lost. What the node says of itself now holds.
		return v.replaceNode(m.GetNode())
	}
	site, err := v.addNode(m.GetSite(), m.GetNode())
	if err != nil {
		return 0, err
	}
	if err := v.takeKeys(node, m.GetKeys()); err != nil {
		return 0, err
	}
	t, _ := v.Token(m.GetTokenId())
	t.UsedBy, t.UsedAt = node, v.now()
	t.Version++
	v.putToken(t)
	return site, nil
}

func (v *View) nodeUpdate(actor string, m *command.NodeUpdate) (int64, error) {
	id, err := identity.NodeIDFromBytes(m.GetNode().GetId())
	if err != nil {
		return 0, refuse(command.CodeInvalid, "%s", err)
	}
	if who, ok := strings.CutPrefix(actor, "node:"); ok && who != id.String() {
		return 0, refuse(command.CodeDenied, "a node may change its own record only")
	}
	return v.replaceNode(m.GetNode())
}

// replaceNode takes a member's new record; its site stays.
func (v *View) replaceNode(m *command.Node) (int64, error) {
	n, err := parseNode(m)
	if err != nil {
		return 0, err
	}
	old, ok := v.Node(n.ID)
	if !ok {
		return 0, refuse(command.CodeNotFound, "the node %s is not a member", n.ID)
	}
	if n.Level < v.mesh.Level {
		return 0, refuse(command.CodeConflict, "this version of portolan is too old: the mesh is at command level %d, it understands %d; start the newer version again", v.mesh.Level, n.Level)
	}
	if n.Witness != old.Witness {
		return 0, refuse(command.CodeConflict, "the node of site %s is a member %s: a node does not change its kind; join anew, with another key and another site name", old.Site, kindOf(old))
	}
	if err := v.checkStore(n); err != nil {
		return 0, err
	}
	if old.Store != n.Store && !old.Store.IsZero() {
		v.stores, _, _ = v.stores.Delete(old.Store[:])
	}
	n.SiteID, n.Site, n.JoinedAt, n.Record = old.SiteID, old.Site, old.JoinedAt, old.Record+1
	v.putNode(n)
	v.keysFollow(old, n)
	if s, ok := v.SiteByID(n.SiteID); ok {
		s.Version++
		v.putSite(s)
	}
	return n.SiteID, nil
}

func kindOf(n Node) string {
	if n.Witness {
		return "as a witness, without content"
	}
	return "that holds content"
}

func (v *View) putSite(s Site) {
	v.sites, _, _ = v.sites.Insert(idKey(s.ID), s)
	v.siteNames, _, _ = v.siteNames.Insert([]byte(s.Name), s.ID)
}

func (v *View) putNode(n Node) {
	v.nodes, _, _ = v.nodes.Insert(n.ID[:], n)
	if !n.Store.IsZero() {
		v.stores, _, _ = v.stores.Insert(n.Store[:], n.ID)
	}
}

func (v *View) putToken(t Token) { v.tokens, _, _ = v.tokens.Insert(idKey(t.ID), t) }
