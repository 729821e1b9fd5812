package mesh

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/rest"
)

// CodeLastCopy is the failure of a removal that would take the only copy of
// something with it.
const CodeLastCopy = "LAST_COPY"

// leaveSlice is how long one call looks for last copies: short enough for people
// to see how far it is.
const leaveSlice = 3 * time.Second

// Removed says that the answering node is no member any more.
type Removed struct {
	Site    string    `json:"site" doc:"The site that it was"`
	At      time.Time `json:"at"`
	By      string    `json:"by" doc:"Who removed it"`
	Message string    `json:"message" doc:"One sentence for people"`
}

// closed says why a removed node makes no changes.
func closed(removed func() *Removed) func() string {
	if removed == nil {
		return nil
	}
	return func() string {
		if r := removed(); r != nil {
			return r.Message
		}
		return ""
	}
}

// LastCopyQuestion is what Config.LastCopies is asked. It converts to
// transfer.LeaveQuestion.
type LastCopyQuestion struct {
	Site  string
	Lost  bool
	After string
	For   time.Duration
	// Project is the only one to look at; empty: all, and the site takes no pushes
	// meanwhile.
	Project string
}

// LastCopy is an image of which one site holds something that no other does. Its
// fields are those of transfer.LastCopy, in their order.
type LastCopy struct {
	Repository string          `json:"repository"`
	Digest     digest.Digest   `json:"digest"`
	Tags       []string        `json:"tags,omitempty" doc:"Some of its tags"`
	Content    []digest.Digest `json:"content" doc:"Manifest and blobs that no other site durably holds"`
	Bytes      int64           `json:"bytes" doc:"Their size"`
	Cached     []string        `json:"cached,omitempty" doc:"Sites that hold some of it only because it was pulled there, and may drop it"`
	Silent     []string        `json:"silent,omitempty" doc:"Sites that may hold some of it and do not answer"`
	Deleted    bool            `json:"deleted,omitempty" doc:"Its project is deleted and can be restored until its content goes: restore it to bring this elsewhere"`
}

// Unseen is a project whose content at the leaving site the answering site
// cannot judge: it may not rest here.
type Unseen struct {
	Project string   `json:"project"`
	Sites   []string `json:"sites,omitempty" doc:"Other sites where it may rest: ask there; none: the leaving site is the only one"`
}

// NeverLeft counts what a lost site wrote and no other has. Its fields are those of
// transfer.NeverLeft.
type NeverLeft struct {
	Requests uint64 `json:"requests" doc:"Pushes and deletes, at most, that the site told of and that no site has"`
	Projects int    `json:"projects" doc:"In how many projects"`
}

// LastCopies is one part of the answer to a LastCopyQuestion.
type LastCopies struct {
	Copies    []LastCopy
	Manifests int
	NeverLeft *NeverLeft // with the last part of a lost site; nil: nothing was heard of what it wrote
	Unseen    []Unseen
	Next      string // empty: this was the last part
	Anew      bool   // the site took pushes since the part before: this is a first part again
}

// ErrCursor is Config.LastCopies' answer to an After that it did not give out.
var ErrCursor = errors.New("this is not where an answer ended: begin anew")

// ErrNotAnnounced is Config.LastCopies' answer when the removal was called off
// after it was announced.
var ErrNotAnnounced = errors.New("the removal of the site was called off meanwhile: begin anew")

// SilentSite is Config.LastCopies' answer when the site does not say what it
// holds.
type SilentSite struct {
	Site string
	Err  error
}

func (e *SilentSite) Error() string {
	return fmt.Sprintf("site %s does not answer, so nobody can say what only it holds", e.Site)
}

// Unwrap gives why.
func (e *SilentSite) Unwrap() error { return e.Err }

// PushingSite is Config.LastCopies' answer while pushes that began before are
// under way at the site; it takes no new ones. Its text says what to do.
type PushingSite struct{ Err error }

func (e *PushingSite) Error() string { return e.Err.Error() }

// Unwrap gives why.
func (e *PushingSite) Unwrap() error { return e.Err }

// RemovalRequest removes a site or a node, in as many calls as it takes to look
// for last copies.
type RemovalRequest struct {
	Lost      bool   `json:"lost,omitempty" doc:"It is gone for good: do not ask it, and remove it whatever it held"`
	Force     bool   `json:"force,omitempty" doc:"Remove it although it holds last copies, or although nobody can say"`
	After     string `json:"after,omitempty" maxLength:"2048" doc:"The last answer's after: go on from there"`
	IfVersion uint64 `json:"resource_version,omitempty" doc:"Refuse if the site's record has another version; 0: any"`
}

// Removal is how far a removal is, or, with done, what it did.
type Removal struct {
	Done       bool       `json:"done" doc:"It is removed; otherwise repeat the call with after"`
	After      string     `json:"after,omitempty" doc:"Where to go on"`
	Anew       bool       `json:"anew,omitempty" doc:"The site took pushes since the call before, so the look began again: what earlier calls found is void"`
	LookedAt   int        `json:"looked_at" doc:"Manifests that this call looked at"`
	LastCopies []LastCopy `json:"last_copies" doc:"Images of which only this site holds something, found by this call"`
	NeverLeft  *NeverLeft `json:"never_left,omitempty" doc:"What a lost site wrote and nobody has, as far as it told others before it was lost; not there: it told the answering site nothing since that was started"`
	Unseen     []Unseen   `json:"unseen" doc:"Projects that the answering site cannot judge, found by this call"`

	Site     string            `json:"site" doc:"The site"`
	SiteGone bool              `json:"site_gone" doc:"No node is left there: its name is free"`
	Nodes    []identity.NodeID `json:"nodes" doc:"Nodes that were removed: their keys never come back"`
	Rules    []string          `json:"rules" doc:"Replication rules that go on naming the site"`
	Projects []string          `json:"projects" doc:"Projects whose residency goes on naming the site"`
	Tokens   []int64           `json:"tokens" doc:"Join tokens that were revoked: they were for this site's name"`
	// ToChange are sentences.
	ToChange []string `json:"to_change" doc:"What it knew and only people can change, in sentences"`
}

// SitePath names a site in a path.
type SitePath struct {
	Name string `path:"name" maxLength:"63"`
}

type siteEditIn struct {
	SitePath
	rest.Condition
}

type removeSiteIn struct {
	SitePath
	rest.Condition
	Body RemovalRequest
}

// NodePath names a node in a path.
type NodePath struct {
	Node string `path:"node" maxLength:"128" doc:"Id"`
}

type removeNodeIn struct {
	NodePath
	rest.Condition
	Body RemovalRequest
}

type removalOut struct{ Body Removal }

func (a *API) registerRemoval() {
	rest.Register(a.rest, rest.Op{ID: "drain-site", Method: http.MethodPost, Path: "/sites/{name}/drain", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Ask a site to be left in peace: it leads nothing, gets no vote anew and is the last choice as a source; it still serves"},
		func(ctx context.Context, in *siteEditIn) (*rest.Object[Site], error) { return a.drain(ctx, in, true) })
	rest.Register(a.rest, rest.Op{ID: "undrain-site", Method: http.MethodPost, Path: "/sites/{name}/undrain", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Take a drain back"},
		func(ctx context.Context, in *siteEditIn) (*rest.Object[Site], error) { return a.drain(ctx, in, false) })
	rest.Register(a.rest, rest.Op{ID: "keep-site", Method: http.MethodPost, Path: "/sites/{name}/keep", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Call off a removal that was begun: the site takes pushes again at once, and not only when the announcement has expired"}, a.keepSite)
	rest.Register(a.rest, rest.Op{ID: "remove-site", Method: http.MethodPost, Path: "/sites/{name}/remove", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Remove a site for good, unless it holds the last copy of something; repeat the call until done"}, a.removeSite)
	rest.Register(a.rest, rest.Op{ID: "remove-node", Method: http.MethodPost, Path: "/nodes/{node}/remove", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Remove a node for good, and its site with its last node; repeat the call until done"}, a.removeNode)
}

func (a *API) drain(ctx context.Context, in *siteEditIn, drain bool) (*rest.Object[Site], error) {
	return a.editSite(ctx, in, "it was changed", func(id int64, version uint64) proto.Message {
		return &command.SiteDrain{Id: id, Drain: drain, IfVersion: version}
	})
}

func (a *API) keepSite(ctx context.Context, in *siteEditIn) (*rest.Object[Site], error) {
	return a.editSite(ctx, in, "its removal was called off", func(id int64, version uint64) proto.Message {
		return &command.SiteLeave{Id: id, Withdraw: true, IfVersion: version}
	})
}

// editSite makes one change of a site, and gives the site as it is then.
func (a *API) editSite(ctx context.Context, in *siteEditIn, what string, change func(id int64, version uint64) proto.Message) (*rest.Object[Site], error) {
	v := a.cfg.View()
	s, ok := v.Site(in.Name)
	if !ok {
		return nil, noSite(v, in.Name)
	}
	want, err := in.Expect(s.ID, 0)
	if err != nil {
		return nil, err
	}
	if _, err := a.edit(ctx, want, change(s.ID, want.Version)); err != nil {
		return nil, err
	}
	v = a.cfg.View()
	if s, ok = v.SiteByID(s.ID); !ok {
		return nil, rest.Conflict("site %s was removed at the moment %s", in.Name, what)
	}
	return rest.ObjectOf(s.ID, s.Version, a.site(v, s)), nil
}

// announce says in the control state that a site is about to be removed, unless
// that was said a while ago. The site takes no pushes by that word alone. It
// returns what tells this announcement from another one.
func (a *API) announce(ctx context.Context, s state.Site, want rest.Expect) (uint64, error) {
	now := a.cfg.Now()
	if index, ok := s.Leaving(now); ok && now.Sub(s.LeavingAt) < state.LeavingFor/2 {
		return index, nil
	}
	if _, err := a.edit(ctx, want, &command.SiteLeave{Id: s.ID, IfVersion: want.Version}); err != nil {
		return 0, err
	}
	name := s.Name
	s, ok := a.cfg.View().SiteByID(s.ID)
	if !ok {
		return 0, rest.Conflict("site %s was removed at the moment its removal was announced", name)
	}
	index, ok := s.Leaving(now)
	if !ok {
		return 0, rest.Conflict("the removal of site %s could not be announced: it was called off meanwhile, or the clock here is more than %d minutes off that of the mesh", s.Name, int(state.LeavingFor.Minutes()))
	}
	return index, nil
}

func (a *API) removeSite(ctx context.Context, in *removeSiteIn) (*removalOut, error) {
	v := a.cfg.View()
	s, ok := v.Site(in.Name)
	if !ok {
		return nil, noSite(v, in.Name)
	}
	want, err := in.Expect(s.ID, in.Body.IfVersion)
	if err != nil {
		return nil, err
	}
	return a.remove(ctx, s, v.NodesOf(s.Name), want, in.Body)
}

func (a *API) removeNode(ctx context.Context, in *removeNodeIn) (*removalOut, error) {
	v := a.cfg.View()
	id, err := identity.ParseNodeID(in.Node)
	if err != nil {
		return nil, rest.Invalid("%q is not a node's id: see the ids with: portolan node list", in.Node)
	}
	n, ok := v.Node(id)
	if !ok {
		return nil, v.CheckRemove(id)
	}
	s, _ := v.SiteByID(n.SiteID)
	want, err := in.Expect(s.ID, in.Body.IfVersion)
	if err != nil {
		return nil, err
	}
	return a.remove(ctx, s, []state.Node{n}, want, in.Body)
}

// progress is what a removal's after holds. It is the caller's word: whoever
// makes one up could have said force as well.
type progress struct {
	After string `json:"a,omitempty"`
	Found int    `json:"f,omitempty"` // last copies
	Blind int    `json:"b,omitempty"` // projects that cannot be judged here
	Ended bool   `json:"e,omitempty"`
	// Announced is of the announcement under which all of it was looked at.
	Announced uint64     `json:"i,omitempty"`
	NeverLeft *NeverLeft `json:"n,omitempty"`
}

func (p progress) String() string {
	b, err := json.Marshal(p)
	if err != nil {
		return "" // strings and numbers always encode
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseProgress(s string) (p progress, err error) {
	if s == "" {
		return p, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || json.Unmarshal(b, &p) != nil {
		return p, rest.Invalid("after: %s", ErrCursor)
	}
	return p, nil
}

// remove looks for last copies for a while, and removes the nodes once that is
// done and nothing stands against it.
func (a *API) remove(ctx context.Context, s state.Site, nodes []state.Node, want rest.Expect, in RemovalRequest) (*removalOut, error) {
	v := a.cfg.View()
	at, err := parseProgress(in.After)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if err := v.CheckRemove(n.ID); err != nil {
			return nil, err
		}
	}
	if alive := a.anyAlive(nodes); in.Lost && alive && !in.Force {
		return nil, rest.Conflict("site %s is not lost, it answers: remove it without lost, so that it is asked what only it holds, or with force", s.Name)
	}
	out := &removalOut{Body: Removal{Site: s.Name, LastCopies: []LastCopy{}, Unseen: []Unseen{}, Nodes: []identity.NodeID{},
		Rules: []string{}, Projects: []string{}, Tokens: []int64{}, ToChange: []string{}}}
	if !at.Ended && slices.ContainsFunc(nodes, func(n state.Node) bool { return !n.Witness }) {
		if !in.Lost {
			if at.Announced, err = a.announce(ctx, s, want); err != nil {
				return nil, err
			}
		}
		found, err := a.cfg.LastCopies(ctx, LastCopyQuestion{Site: s.Name, Lost: in.Lost, After: at.After, For: leaveSlice})
		if err != nil && !in.Force {
			return nil, a.notJudged(s, err)
		}
		b := &out.Body
		if found.Anew {
			at.Found, at.Blind, b.Anew = 0, 0, true
		}
		b.LookedAt, b.NeverLeft = found.Manifests, found.NeverLeft
		if b.NeverLeft != nil {
			at.NeverLeft = b.NeverLeft
		}
		b.LastCopies, b.Unseen = append(b.LastCopies, found.Copies...), append(b.Unseen, found.Unseen...)
		at.Found, at.Blind = at.Found+len(found.Copies), at.Blind+len(found.Unseen)
		at.After, at.Ended = found.Next, found.Next == ""
		if !at.Ended || len(found.Copies)+len(found.Unseen) > 0 {
			b.After = at.String() // the lists are shown before anything is done
			return out, nil
		}
	}
	if at.Found+at.Blind > 0 && !in.Lost && !in.Force {
		// It goes no further, so the site need not wait for the announcement to expire.
		if _, err := a.propose(ctx, &command.SiteLeave{Id: s.ID, Withdraw: true}); err != nil {
			a.cfg.Logger.Warn("a removal that was refused could not be called off: the site takes no pushes for some minutes", "site", s.Name, "error", err)
		}
		return nil, a.holdsLast(s, at)
	}
	out.Body.NeverLeft = at.NeverLeft
	if in.Lost || in.Force {
		at.Announced = 0 // whatever it took meanwhile
	}
	return out, a.commitRemoval(ctx, v, s, nodes, want, &command.NodeRemove{Lost: in.Lost, Announced: at.Announced}, &out.Body)
}

func (a *API) anyAlive(nodes []state.Node) bool {
	return slices.ContainsFunc(nodes, func(n state.Node) bool {
		if n.ID == a.cfg.Self {
			return true
		}
		alive, _ := a.cfg.Peer(n.ID)
		return alive
	})
}

func (a *API) notJudged(s state.Site, err error) error {
	var silent *SilentSite
	var pushing *PushingSite
	switch {
	case errors.As(err, &pushing):
		return &rest.Error{Status: http.StatusServiceUnavailable, Code: rest.CodeUnavailable, Sites: []string{s.Name}, RetryAfter: 5 * time.Second, Message: pushing.Error()}
	case errors.As(err, &silent):
		return &rest.Error{Status: http.StatusServiceUnavailable, Code: rest.CodeUnavailable, Sites: []string{s.Name}, RetryAfter: 5 * time.Second,
			Message: silent.Error() + fmt.Sprintf(": bring it back, or, if it is gone for good: portolan site remove %s --lost", s.Name)}
	case errors.Is(err, ErrCursor):
		return rest.Invalid("after: %s", err)
	case errors.Is(err, ErrNotAnnounced):
		return rest.Conflict("%s", err)
	}
	return err
}

func (a *API) holdsLast(s state.Site, at progress) error {
	var why []string
	if at.Found > 0 {
		why = append(why, fmt.Sprintf("holds what no other site durably has, of %d images: bring them elsewhere by a rule, and wait for it (portolan wait)", at.Found))
	}
	if at.Blind > 0 {
		why = append(why, fmt.Sprintf("may hold content of %d projects that may not rest at site %s, which therefore cannot judge it: ask a node of site %s itself", at.Blind, a.cfg.Site, s.Name))
	}
	return &rest.Error{Status: http.StatusConflict, Code: CodeLastCopy,
		Message: fmt.Sprintf("site %s %s; or remove it with force, and lose them", s.Name, strings.Join(why, ", and "))}
}

// commitRemoval makes the edits and tells what they leave to people.
func (a *API) commitRemoval(ctx context.Context, v *state.View, s state.Site, nodes []state.Node, want rest.Expect, how *command.NodeRemove, out *Removal) error {
	// This node last: it may hear no more of it.
	slices.SortStableFunc(nodes, func(x, y state.Node) int {
		switch a.cfg.Self {
		case x.ID:
			return 1
		case y.ID:
			return -1
		}
		return 0
	})
	for i, n := range nodes {
		body := &command.NodeRemove{NodeId: n.ID[:], Lost: how.GetLost(), Announced: how.GetAnnounced()}
		if i == 0 {
			body.IfVersion = want.Version // the next are edits of our own
		}
		if _, err := a.edit(ctx, want, body); err != nil {
			return err
		}
		out.Nodes = append(out.Nodes, n.ID)
	}
	if len(nodes) == 0 {
		if _, err := a.edit(ctx, want, &command.SiteRemove{Id: s.ID, IfVersion: want.Version}); err != nil {
			return err
		}
	}
	out.Done = true
	out.SiteGone = len(nodes) == len(v.NodesOf(s.Name))
	out.ToChange = toChange(v, s, nodes)
	if !out.SiteGone {
		return nil
	}
	for _, r := range v.Rules() {
		if slices.Contains(r.Sites, s.Name) {
			out.Rules = append(out.Rules, r.Name)
		}
	}
	for p := range v.Projects() {
		if slices.Contains(p.Sites, s.Name) {
			out.Projects = append(out.Projects, p.Name)
		}
	}
	for _, t := range v.Tokens() {
		if t.Site == s.Name && t.UsedBy.IsZero() && !t.Revoked() {
			out.Tokens = append(out.Tokens, t.ID)
		}
	}
	return nil
}

// toChange says what a removed site knew that no command takes back: it matters
// if the machine or its disk may be in other hands.
func toChange(v *state.View, s state.Site, nodes []state.Node) []string {
	users := 0
	for range v.Users() {
		users++
	}
	if len(nodes) == 0 {
		return []string{}
	}
	out := []string{
		fmt.Sprintf("it has the password hashes (argon2id) of all local users (%d): change passwords that could be guessed, the administrators' first", users),
	}
	for _, n := range nodes {
		if n.Witness {
			continue
		}
		out = append(out, fmt.Sprintf("it saw the passwords that clients sent to %s in clear: change those of users and machines that logged in there", n.RegistryURL))
		if u, err := url.Parse(n.RegistryURL); err == nil && u.Scheme == "https" {
			out = append(out, fmt.Sprintf("it has the private key of the certificate for %s: have that revoked", u.Host))
		}
		out = append(out, fmt.Sprintf("if site %s kept its blobs in a bucket, it has the credentials for that: withdraw them at the provider", s.Name),
			"it has the images that it held: change secrets that are inside of them")
	}
	return out
}
