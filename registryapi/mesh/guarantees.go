package mesh

import (
	"context"
	"net/http"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// Guarantees is what a project's pushes promise.
type Guarantees struct {
	Project    string     `json:"project"`
	Tags       string     `json:"tags" enum:"eventual,strong" doc:"eventual: each site sets tags for itself, and all sites merge; strong: the mesh decides, so that nobody overwrites what he has not seen, and without a majority tags are not set or deleted"`
	Durability int        `json:"durability" doc:"Sites that must have all of a push before it is answered, as it was set; 0 and 1: the one that takes it"`
	Copies     int        `json:"copies" doc:"Sites that a push by tag waits for: strong tags make it two where two may hold the project"`
	StrongTags int        `json:"strong_tags" doc:"Tags that the control state has of the project"`
	Switch     *TagSwitch `json:"switch,omitempty" doc:"A switch of the tags' mode that is under way: until it ends tags are neither set nor deleted"`
	Late       []string   `json:"late,omitempty" doc:"Sites that the last switch did not wait for"`
	Note       string     `json:"note,omitempty" doc:"Why the last switch was called off"`
	Version    uint64     `json:"resource_version" doc:"Of the project; goes up with every edit"`
}

// TagSwitch is a project on its way to the other mode of its tags.
type TagSwitch struct {
	To      string    `json:"to" enum:"eventual,strong"`
	Since   time.Time `json:"since"`
	By      string    `json:"by"`
	Force   bool      `json:"force" doc:"Sites that do not answer are not waited for"`
	Waiting []TagWait `json:"waiting" doc:"Sites that it waits for, asked just now"`
}

// TagWait is a site that has not done its part in a switch.
type TagWait struct {
	Site   string `json:"site"`
	Reason string `json:"reason"`
}

// GuaranteesRequest changes what it names.
type GuaranteesRequest struct {
	Tags       string `json:"tags,omitempty" enum:"eventual,strong," doc:"The mode that is switched to; while a switch is under way, the mode before calls it off"`
	Force      bool   `json:"force,omitempty" doc:"With tags: do not wait for sites that do not answer; what they wrote unseen loses when it is heard of, and is kept for 30 days by its digest"`
	Durability *int   `json:"durability,omitempty" minimum:"0" maximum:"5"`
	IfVersion  uint64 `json:"resource_version,omitempty" doc:"Refuse if the project has another version; 0: any"`
}

type setGuaranteesIn struct {
	GuaranteesPath
	rest.Condition
	Body GuaranteesRequest
}

// GuaranteesPath names the project. It is exported because huma fills embedded
// structs only if they are.
type GuaranteesPath struct {
	Project string `path:"project" maxLength:"255" doc:"Name"`
}

func (a *API) registerGuarantees() {
	const path = "/projects/{project}/guarantees"
	rest.Register(a.rest, rest.Op{ID: "get-guarantees", Method: http.MethodGet, Path: path, Tag: "projects", Who: rest.SignedIn,
		Summary: "What a project's pushes promise"}, func(ctx context.Context, in *GuaranteesPath) (*rest.Object[Guarantees], error) {
		p, err := a.openProject(ctx, in.Project, access.Pull)
		if err != nil {
			return nil, err
		}
		return a.guarantees(ctx, p.ID)
	})
	rest.Register(a.rest, rest.Op{ID: "set-guarantees", Method: http.MethodPut, Path: path, Tag: "projects", Who: rest.SignedIn,
		Summary: "Change what a project's pushes promise; a switch of the tags' mode goes on after the answer"}, a.setGuarantees)
}

// openProject finds a project, if who asks may do action to it.
func (a *API) openProject(ctx context.Context, name string, action access.Action) (state.Project, error) {
	p, ok := a.cfg.View().Project(name)
	if !ok || !a.cfg.Access.Can(rest.Subject(ctx), p, access.Pull) {
		return p, rest.NotFound("there is no project %q, or you have no role in it: see yours with: portolan project list", name)
	}
	if !a.cfg.Access.Can(rest.Subject(ctx), p, action) {
		return p, rest.Forbidden("your role in project %q does not allow to %s: ask its administrator", name, action)
	}
	return p, nil
}

func (a *API) setGuarantees(ctx context.Context, in *setGuaranteesIn) (*rest.Object[Guarantees], error) {
	p, err := a.openProject(ctx, in.Project, access.ManageProject)
	if err != nil {
		return nil, err
	}
	want, err := in.Expect(p.ID, in.Body.IfVersion)
	if err != nil {
		return nil, err
	}
	version := want.Version
	if n := in.Body.Durability; n != nil && *n != p.Durability {
		durability := uint32(*n)
		if _, err := a.edit(ctx, want, &command.ProjectUpdate{Id: p.ID, Durability: &durability, IfVersion: version}); err != nil {
			return nil, err
		}
		if version != 0 {
			version++ // of two edits the second sees the first
		}
	}
	if in.Body.Tags != "" {
		to, err := state.ParseTagMode(in.Body.Tags)
		if err != nil {
			return nil, rest.Invalid("%s", err)
		}
		body := &command.TagsMode{Id: p.ID, Step: command.TagsMode_STEP_BEGIN, To: command.TagMode(to), Force: in.Body.Force, IfVersion: version}
		if _, err := a.edit(ctx, want, body); err != nil {
			return nil, err
		}
	}
	return a.guarantees(ctx, p.ID)
}

func (a *API) guarantees(ctx context.Context, id int64) (*rest.Object[Guarantees], error) {
	v := a.cfg.View()
	p, ok := v.ProjectByID(id)
	if !ok {
		return nil, rest.NotFound("the project was deleted")
	}
	out := Guarantees{Project: p.Name, Tags: p.Tags.Mode.String(), Durability: p.Durability, Copies: v.PushCopies(p, true), StrongTags: v.StrongTagsOf(p.PID),
		Late: p.Tags.Late, Note: p.Tags.Note, Version: p.Version}
	if p.Tags.Switching() {
		out.Switch = &TagSwitch{To: p.Tags.To.String(), Since: p.Tags.SwitchAt, By: p.Tags.SwitchBy, Force: p.Tags.Force, Waiting: []TagWait{}}
		if a.cfg.TagsWait != nil {
			out.Switch.Waiting = append(out.Switch.Waiting, a.cfg.TagsWait(ctx, p.PID)...)
		}
	}
	return rest.ObjectOf(p.ID, p.Version, out), nil
}
