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

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/rest"
)

// progress is what a removal's after holds. It is the caller's word: whoever
// makes one up could have said force as well.
type progress struct {
	After string `json:"a,omitempty"`
	Found int    `json:"f,omitempty"` // last copies
	Blind int    `json:"b,omitempty"` // projects that cannot be judged here
	Ended bool   `json:"e,omitempty"`
	// Announced is of the announcement under which all of it was looked at.
	Announced uint64 `json:"i,omitempty"`
	// Waited counts calls in a row that waited for pushes in vain.
	Waited int `json:"w,omitempty"`
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

// hear waits until this node has heard of the announcement that a removal goes on
// under: a call may reach another node than the one before did. One that does not hear of
// it judges nothing, and calls nothing off: it is unavailable.
func (a *API) hear(ctx context.Context, in RemovalRequest) error {
	at, err := parseProgress(in.After)
	if err != nil || at.Announced <= a.cfg.View().Index() {
		return err
	}
	if a.cfg.Replica == nil {
		return &command.Unavailable{Reason: fmt.Sprintf("the control state of site %s is behind", a.cfg.Site), Sites: []string{a.cfg.Site}, Read: true}
	}
	_, err = a.cfg.Replica.CatchUp(ctx)
	return err
}

// remove goes one step on, and calls the removal off if that fails: nobody comes back
// for it, and the site would take no pushes for minutes. It does so, too, when the site
// stays with other nodes.
func (a *API) remove(ctx context.Context, v *state.View, s state.Site, nodes []state.Node, cond rest.Condition, in RemovalRequest) (*removalOut, error) {
	at, err := parseProgress(in.After)
	if err != nil {
		return nil, err
	}
	r := &removing{API: a, view: v, site: s, nodes: nodes, in: in, at: at}
	out, err := r.step(ctx, cond)
	if err == nil {
		err = ctx.Err() // who asked is gone, and hears nothing of where to go on
	}
	if done := out != nil && out.Body.Done; err != nil && !done || done && !out.Body.SiteGone {
		r.withdraw(ctx)
	}
	return out, err
}

// removing is one call that removes nodes of a site.
type removing struct {
	*API
	view  *state.View
	site  state.Site
	nodes []state.Node
	in    RemovalRequest
	want  rest.Expect
	at    progress
}

// step looks for last copies for a while, and removes the nodes once that is
// done and nothing stands against it.
func (r *removing) step(ctx context.Context, cond rest.Condition) (_ *removalOut, err error) {
	if r.want, err = cond.Expect(r.site.ID, r.in.IfVersion); err != nil {
		return nil, err
	}
	for _, n := range r.nodes {
		if err := r.view.CheckRemove(n.ID); err != nil {
			return nil, err
		}
	}
	in, s := r.in, r.site
	if in.Lost && !in.Force && r.anyAlive(r.nodes) {
		return nil, rest.Conflict("site %s is not lost, it answers: remove it without lost, so that it is asked what only it holds, or with force", s.Name)
	}
	out := &removalOut{Body: Removal{Site: s.Name, LastCopies: []LastCopy{}, Unseen: []Unseen{}, Nodes: []identity.NodeID{},
		Rules: []string{}, Projects: []string{}, Tokens: []int64{}, ToChange: []string{}}}
	if !r.at.Ended && slices.ContainsFunc(r.nodes, func(n state.Node) bool { return !n.Witness }) {
		if !in.Lost {
			if err := r.announce(ctx); err != nil {
				return nil, err
			}
		}
		if err := r.look(ctx, &out.Body); err != nil || out.Body.After != "" {
			return out, err
		}
	}
	if r.at.Found+r.at.Blind > 0 && !in.Lost && !in.Force {
		return nil, r.holdsLast(s, r.at)
	}
	how := &command.NodeRemove{Lost: in.Lost, Announced: r.at.Announced}
	if in.Lost || in.Force {
		how.Announced = 0 // whatever it took meanwhile
	}
	return out, r.commitRemoval(ctx, how, &out.Body)
}

// look goes on looking for last copies. With an after in out there is more to see, or
// to show, before anything is done.
func (r *removing) look(ctx context.Context, out *Removal) error {
	found, err := r.awaitPushes(ctx)
	var pushing *PushingSite
	if errors.As(err, &pushing) && !r.in.Force && r.at.Waited < maxPushWaits {
		r.at.Waited++
		out.Pushing, out.After = pushing.UnderWay, r.at.String()
		return nil
	}
	if err != nil && (!r.in.Force || ctx.Err() != nil) {
		return r.notJudged(err)
	}
	if found.Anew {
		r.at.Found, r.at.Blind, out.Anew = 0, 0, true
	}
	out.LookedAt, out.NeverLeft = found.Manifests, found.NeverLeft
	out.LastCopies, out.Unseen = append(out.LastCopies, found.Copies...), append(out.Unseen, found.Unseen...)
	r.at.Found, r.at.Blind, r.at.Waited = r.at.Found+len(found.Copies), r.at.Blind+len(found.Unseen), 0
	r.at.After, r.at.Ended = found.Next, found.Next == ""
	if !r.at.Ended || len(found.Copies)+len(found.Unseen) > 0 {
		out.After = r.at.String() // the lists are shown before anything is done
	}
	return nil
}

const (
	// pushPoll spaces the questions whether pushes are still under way: the site waits
	// for those that clients send, but not for what other sites fetch from it.
	pushPoll = 500 * time.Millisecond
	// pushPolls are so many that they are a call's leaveSlice in all.
	pushPolls = int(leaveSlice / pushPoll)
	// maxPushWaits is how many calls in a row wait for pushes, each for leaveSlice and
	// a question's time: about a minute in all. A removal that gave up at the first
	// would find others under way the next time.
	maxPushWaits = 15
)

// awaitPushes asks until no push is under way, or a call's time is over.
func (r *removing) awaitPushes(ctx context.Context) (LastCopies, error) {
	begun := time.Now()
	for poll := 1; ; poll++ {
		found, err := r.cfg.LastCopies(ctx, LastCopyQuestion{Site: r.site.Name, Lost: r.in.Lost, After: r.at.After, For: leaveSlice, Announced: r.at.Announced})
		if !errors.As(err, new(*PushingSite)) || r.in.Force || poll == pushPolls || time.Since(begun) >= leaveSlice {
			return found, err
		}
		select {
		case <-time.After(min(pushPoll, r.cfg.Poll)):
		case <-ctx.Done():
			return found, ctx.Err()
		}
	}
}

// announce says in the control state that the site is about to be removed, and again
// when that was a while ago. The site takes no pushes by that word alone.
func (r *removing) announce(ctx context.Context) error {
	said, found := r.site.Announced(r.at.Announced)
	switch {
	case found && r.cfg.Now().Sub(said.At).Abs() < state.LeavingFor/2:
		return nil
	case r.at.Announced != 0 && !found:
		return rest.Conflict("the removal of site %s was called off meanwhile: begin anew", r.site.Name)
	}
	res, err := r.propose(ctx, &command.SiteLeave{Id: r.site.ID, Announced: r.at.Announced, IfVersion: r.want.Version})
	if err := r.want.Lost(err); err != nil {
		return err
	}
	if r.at.Announced == 0 {
		r.at.Announced = res.Index
	}
	name := r.site.Name
	s, there := r.cfg.View().SiteByID(r.site.ID)
	said, found = s.Announced(r.at.Announced)
	switch {
	case !there:
		return rest.Conflict("site %s was removed at the moment its removal was announced", name)
	case !found:
		return rest.Conflict("the removal of site %s was called off at the moment it was announced: begin anew", name)
	case !s.Announces(r.at.Announced, r.cfg.Now()):
		return rest.Conflict("the clock here is about %s off that of the mesh, so the removal of site %s cannot be announced from here: set it right, or ask another site", r.cfg.Now().Sub(said.At).Abs().Round(time.Second), name)
	}
	return nil
}

// withdrawWithin bounds calling a removal off: who asked for it may be gone, or waits
// for the answer why it failed. Without a majority it does not come to pass, and the
// site takes pushes again by itself.
const withdrawWithin = 5 * time.Second

// withdraw calls this removal off, and no other one of the site.
func (r *removing) withdraw(ctx context.Context) {
	if r.at.Announced == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawWithin)
	defer cancel()
	_, err := r.propose(ctx, &command.SiteLeave{Id: r.site.ID, Withdraw: true, Announced: r.at.Announced})
	var refused *command.Error
	if err != nil && !(errors.As(err, &refused) && refused.Code == command.CodeNotFound) { // it may be removed after all
		r.cfg.Logger.Warn("a removal that failed could not be called off: the site takes no pushes for some minutes", "site", r.site.Name, "error", err)
	}
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

// notJudged answers why nobody can say what only the site holds. Only of a site that
// nobody hears of it says that it may be lost.
func (r *removing) notJudged(err error) error {
	later := func(format string, args ...any) error {
		return &rest.Error{Status: http.StatusServiceUnavailable, Code: rest.CodeUnavailable, Sites: []string{r.site.Name}, RetryAfter: 5 * time.Second, Message: fmt.Sprintf(format, args...)}
	}
	var silent *SilentSite
	var unwilling *UnwillingSite
	switch {
	case errors.As(err, &silent) && r.anyAlive(r.nodes):
		return later("%s, though gossip hears of it: repeat this in a moment; if it stays so, see its path with: portolan site check %s", silent, r.site.Name)
	case errors.As(err, &silent):
		return later("%s: bring it back, or, if it is gone for good: portolan site remove %s --lost", silent, r.site.Name)
	case errors.As(err, &unwilling) && !unwilling.Later:
		return rest.Conflict("%s", unwilling)
	case errors.As(err, &unwilling), errors.As(err, new(*PushingSite)):
		return later("%s", err)
	case errors.Is(err, ErrCursor):
		return rest.Invalid("after: %s", ErrCursor)
	case errors.Is(err, ErrNotAnnounced):
		return rest.Conflict("%s", ErrNotAnnounced)
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
func (r *removing) commitRemoval(ctx context.Context, how *command.NodeRemove, out *Removal) error {
	v, s, nodes, want := r.view, r.site, r.nodes, r.want
	// This node last: it may hear no more of it.
	slices.SortStableFunc(nodes, func(x, y state.Node) int {
		switch r.cfg.Self {
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
		if _, err := r.edit(ctx, want, body); err != nil {
			return err
		}
		out.Nodes = append(out.Nodes, n.ID)
	}
	if len(nodes) == 0 {
		if _, err := r.edit(ctx, want, &command.SiteRemove{Id: s.ID, IfVersion: want.Version}); err != nil {
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
