package mesh

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// Residency says where a project may rest, and how far each site is with it.
type Residency struct {
	Project string      `json:"project"`
	Sites   []string    `json:"sites" doc:"Sites that the project may rest at, as they were named; none: all"`
	States  []SiteState `json:"states" doc:"Every site that stores content"`
	Version uint64      `json:"resource_version" doc:"Of the project; goes up with every edit, and when a site is done with a step"`
}

// SiteState is what a site is to a project.
type SiteState struct {
	Site string `json:"site"`
	// State is one of consensus/state's.
	State  string `json:"state" enum:"member,syncing,leaving,out" doc:"member: it holds the project; syncing: it takes it in, and answers 503 for it meanwhile; leaving: it serves what it holds, takes no pushes, and is out once others hold it; out: it answers 403, and has nothing of it unless a reason says that it has not let go yet"`
	Reason string `json:"reason,omitempty" doc:"What its step waits for, asked just now; for people"`
}

// ResidencyRequest changes where a project may rest.
type ResidencyRequest struct {
	Sites     []string `json:"sites" maxItems:"1000" doc:"All sites that the project may rest at from now on; none: all sites"`
	Force     bool     `json:"force,omitempty" doc:"Sites that are not named let go of the project at once, with what only they hold: ask for that before, with last-copies"`
	IfVersion uint64   `json:"resource_version,omitempty" doc:"Refuse if the project has another version; 0: any"`
}

// ProjectLosses is a part of what a site alone holds of a project.
type ProjectLosses struct {
	Project    string     `json:"project"`
	Site       string     `json:"site"`
	LastCopies []LastCopy `json:"last_copies" doc:"What no other site durably holds, as far as is known"`
	Unseen     []Unseen   `json:"unseen,omitempty" doc:"Set if the project may not rest at the site that answers: ask another"`
	Silent     bool       `json:"silent,omitempty" doc:"The site does not answer: this is what the others know of it"`
	LookedAt   int        `json:"looked_at" doc:"Manifests that were looked at for this part"`
	After      string     `json:"after,omitempty" doc:"Ask for the next part with it; missing: this was the last"`
}

type setResidencyIn struct {
	GuaranteesPath
	rest.Condition
	Body ResidencyRequest
}

type restoreProjectIn struct {
	GuaranteesPath
	rest.Condition
}

type projectLossesIn struct {
	GuaranteesPath
	Site  string `path:"site" maxLength:"255" doc:"A site that holds the project"`
	After string `query:"after" maxLength:"2048" doc:"The last answer's after"`
}

type projectLossesOut struct{ Body ProjectLosses }

func (a *API) registerResidency() {
	const path = "/projects/{project}/sites"
	rest.Register(a.rest, rest.Op{ID: "get-residency", Method: http.MethodGet, Path: path, Tag: "projects", Who: rest.SignedIn,
		Summary: "Where a project may rest, and how far each site is with it"}, func(ctx context.Context, in *GuaranteesPath) (*rest.Object[Residency], error) {
		p, err := a.openProject(ctx, in.Project, access.Pull)
		if err != nil {
			return nil, err
		}
		return a.residency(ctx, p.ID)
	})
	rest.Register(a.rest, rest.Op{ID: "set-residency", Method: http.MethodPut, Path: path, Tag: "projects", Who: rest.SignedIn,
		Summary: "Change where a project may rest; sites come in and leave after the answer"}, a.setResidency)
	rest.Register(a.rest, rest.Op{ID: "get-project-last-copies", Method: http.MethodGet, Path: path + "/{site}/last-copies", Tag: "projects", Who: rest.SignedIn,
		Summary: "What of a project one site alone holds, in parts"}, a.projectLosses)
	rest.Register(a.rest, rest.Op{ID: "restore-project", Method: http.MethodPost, Path: "/projects/{project}/restore", Tag: "projects", Who: rest.SignedIn,
		Summary: "Take a deletion back; the content of a deleted project is kept for 7 days"}, a.restoreProject)
}

// restoreProject is for those who could delete it.
func (a *API) restoreProject(ctx context.Context, in *restoreProjectIn) (*rest.Empty, error) {
	p, ok := a.cfg.View().DeletedProject(in.Project)
	if !ok || !a.cfg.Access.Can(rest.Subject(ctx), p, access.ManageProject) {
		return nil, rest.NotFound("there is no deleted project %q whose content is still there, or you have no role in it that may restore it", in.Project)
	}
	want, err := in.Expect(p.ID, 0)
	if err != nil {
		return nil, err
	}
	return a.edit(ctx, want, &command.ProjectRestore{Id: p.ID, IfVersion: want.Version})
}

func (a *API) setResidency(ctx context.Context, in *setResidencyIn) (*rest.Object[Residency], error) {
	p, err := a.openProject(ctx, in.Project, access.ManageProject)
	if err != nil {
		return nil, err
	}
	want, err := in.Expect(p.ID, in.Body.IfVersion)
	if err != nil {
		return nil, err
	}
	if _, err := a.edit(ctx, want, &command.ProjectSites{Id: p.ID, Sites: in.Body.Sites, Force: in.Body.Force, IfVersion: want.Version}); err != nil {
		return nil, err
	}
	return a.residency(ctx, p.ID)
}

func (a *API) residency(ctx context.Context, id int64) (*rest.Object[Residency], error) {
	v := a.cfg.View()
	p, ok := v.ProjectByID(id)
	if !ok {
		return nil, rest.NotFound("the project was deleted")
	}
	out := Residency{Project: p.Name, Sites: append([]string{}, p.Sites...), States: []SiteState{}, Version: p.Version}
	for _, s := range v.ContentSites() {
		out.States = append(out.States, SiteState{Site: s.Name, State: p.Residence(s.Name).String()})
	}
	a.askSteps(ctx, p, out.States)
	return rest.ObjectOf(p.ID, p.Version, out), nil
}

// askSteps asks the sites that are on their way what they wait for.
func (a *API) askSteps(ctx context.Context, p state.Project, states []SiteState) {
	if a.cfg.StepWaits == nil {
		return
	}
	var wg sync.WaitGroup
	for i := range states {
		s := &states[i]
		if slices.Contains(p.Expelled, s.Site) {
			s.Reason = "it has not said yet that it let go of what it has"
		}
		if r := p.Residence(s.Site); r != state.Syncing && r != state.Leaving {
			continue
		}
		wg.Go(func() { s.Reason = a.cfg.StepWaits(ctx, p.PID, s.Site) })
	}
	wg.Wait()
}

func (a *API) projectLosses(ctx context.Context, in *projectLossesIn) (*projectLossesOut, error) {
	p, err := a.openProject(ctx, in.Project, access.ManageProject)
	if err != nil {
		return nil, err
	}
	v := a.cfg.View()
	if _, ok := v.Site(in.Site); !ok {
		return nil, noSite(v, in.Site)
	}
	out := ProjectLosses{Project: p.Name, Site: in.Site, LastCopies: []LastCopy{}}
	if !p.Residence(in.Site).Holds() {
		return &projectLossesOut{Body: out}, nil
	}
	q := LastCopyQuestion{Site: in.Site, Project: p.Name, After: in.After, For: leaveSlice}
	got, err := a.cfg.LastCopies(ctx, q)
	if errors.As(err, new(*SilentSite)) || errors.As(err, new(*UnwillingSite)) {
		out.Silent, q.Lost = true, true
		got, err = a.cfg.LastCopies(ctx, q)
	}
	if errors.Is(err, ErrCursor) {
		return nil, rest.Invalid("%s", err)
	}
	if err != nil {
		return nil, err
	}
	out.LastCopies = append(out.LastCopies, got.Copies...)
	out.Unseen, out.LookedAt, out.After = got.Unseen, got.Manifests, got.Next
	return &projectLossesOut{Body: out}, nil
}

// Leaves gives the sites that hold the project and would not under other sites
// named; none named: all may.
func (r Residency) Leaves(sites []string) []string {
	var out []string
	for _, s := range r.States {
		if s.State != state.Out.String() && len(sites) > 0 && !slices.Contains(sites, s.Site) {
			out = append(out, s.Site)
		}
	}
	return out
}
