package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
	// Announced is the raft index of the announcement of this removal, for which the
	// site takes none.
	Announced uint64
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
	Requests uint64   `json:"requests" doc:"Pushes and deletes, at most, that the site told another one of and that no site in reach has"`
	Projects int      `json:"projects" doc:"In how many projects"`
	Heard    []string `json:"heard,omitempty" doc:"Sites that it told of any, since those were started; none: whether something is lost is not known"`
	Silent   []string `json:"silent,omitempty" doc:"Sites that do not answer: it may have told them of more"`
}

// Complete reports whether all sites were asked, and the lost one told of its writes.
func (n *NeverLeft) Complete() bool { return n != nil && len(n.Heard) > 0 && len(n.Silent) == 0 }

// LastCopies is one part of the answer to a LastCopyQuestion.
type LastCopies struct {
	Copies    []LastCopy
	Manifests int
	NeverLeft *NeverLeft // with the last part of a lost site
	Unseen    []Unseen
	Next      string // empty: this was the last part
	Anew      bool   // the site took pushes since the part before: this is a first part again
}

// ErrCursor is Config.LastCopies' answer to an After that it did not give out.
var ErrCursor = errors.New("this is not where an answer ended: begin anew")

// ErrNotAnnounced is Config.LastCopies' answer when the removal was called off
// after it was announced.
var ErrNotAnnounced = errors.New("the removal of the site was called off meanwhile: begin anew")

// SilentSite is Config.LastCopies' answer when the site does not answer.
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
type PushingSite struct {
	UnderWay int
	Err      error
}

func (e *PushingSite) Error() string { return e.Err.Error() }

// Unwrap gives why.
func (e *PushingSite) Unwrap() error { return e.Err }

// UnwillingSite is Config.LastCopies' answer when the site answers, and does not say
// what it holds. Its text says what to do.
type UnwillingSite struct {
	Err error
	// Later: it may say so in a moment. Otherwise people have to do something first.
	Later bool
}

func (e *UnwillingSite) Error() string { return e.Err.Error() }

// Unwrap gives why.
func (e *UnwillingSite) Unwrap() error { return e.Err }

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
	Pushing    int        `json:"pushing,omitempty" doc:"Pushes and deletes that began before and are under way at the site, with blobs that other sites still fetch from it for pushes there: the call waited for them in vain, and the next goes on waiting"`
	LookedAt   int        `json:"looked_at" doc:"Manifests that this call looked at"`
	LastCopies []LastCopy `json:"last_copies" doc:"Images of which only this site holds something, found by this call"`
	NeverLeft  *NeverLeft `json:"never_left,omitempty" doc:"What a lost site wrote and nobody has, as far as it told others before it was lost; with the call that found the last of the last copies"`
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

func (a *API) removeSite(ctx context.Context, in *removeSiteIn) (*removalOut, error) {
	if err := a.hear(ctx, in.Body); err != nil {
		return nil, err
	}
	v := a.cfg.View()
	s, ok := v.Site(in.Name)
	if !ok {
		return nil, noSite(v, in.Name)
	}
	return a.remove(ctx, v, s, v.NodesOf(s.Name), in.Condition, in.Body)
}

func (a *API) removeNode(ctx context.Context, in *removeNodeIn) (*removalOut, error) {
	if err := a.hear(ctx, in.Body); err != nil {
		return nil, err
	}
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
	return a.remove(ctx, v, s, []state.Node{n}, in.Condition, in.Body)
}
