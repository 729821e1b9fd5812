package harbor

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// maxCounted bounds how many repositories are counted for a project's
// repo_count: the catalogue keeps no counter for it, and a list of a hundred
// projects must not scan millions of rows.
const maxCounted = 10_000

// Project is the unit of access.
type Project struct {
	ID           int64           `json:"project_id"`
	Name         string          `json:"name"`
	OwnerID      int64           `json:"owner_id"`
	OwnerName    string          `json:"owner_name"`
	CreationTime time.Time       `json:"creation_time"`
	UpdateTime   time.Time       `json:"update_time"`
	Deleted      bool            `json:"deleted"`
	RepoCount    int             `json:"repo_count" doc:"Repositories; counted up to 10000"`
	CurrentRole  int             `json:"current_user_role_id" doc:"Your role: 1 project admin, 2 developer, 3 guest, 4 maintainer, 5 limited guest, 0 none"`
	CurrentRoles []int           `json:"current_user_role_ids"`
	Metadata     ProjectMetadata `json:"metadata"`
	Sites        []string        `json:"sites,omitempty" doc:"Sites that the project may rest at; missing: all"`
	PortolanID   string          `json:"portolan_id" doc:"The project's identity in the catalogue"`
	Version      uint64          `json:"resource_version" doc:"Goes up with every edit"`
}

// ProjectMetadata has strings for values, as Harbor's.
type ProjectMetadata struct {
	Public string `json:"public,omitempty" enum:"true,false,"`
}

// ProjectRequest makes or edits a Project.
type ProjectRequest struct {
	Name     string          `json:"project_name,omitempty" maxLength:"255"`
	Public   *bool           `json:"public,omitempty" doc:"Deprecated by Harbor: metadata.public counts"`
	Metadata ProjectMetadata `json:"metadata,omitempty"`
	Sites    []string        `json:"sites,omitempty" doc:"Sites that the project may rest at; none: all"`

	Tags       string `json:"tags,omitempty" enum:"eventual,strong," doc:"Of a new project: who decides what tags say, see the mesh's API"`
	Durability uint32 `json:"durability,omitempty" doc:"Of a new project: sites that must have a push before it is answered"`

	IfVersion uint64 `json:"resource_version,omitempty" doc:"Of a change: refuse with 409 if the project has another version; 0: any"`
}

// public gives what the request says, ok is false if it says nothing.
func (r ProjectRequest) public() (public, ok bool) {
	if r.Metadata.Public != "" {
		return r.Metadata.Public == "true", true
	}
	if r.Public != nil {
		return *r.Public, true
	}
	return false, false
}

// ProjectSummary is what a project's first page shows.
type ProjectSummary struct {
	RepoCount         int `json:"repo_count"`
	ProjectAdminCount int `json:"project_admin_count"`
	MaintainerCount   int `json:"maintainer_count"`
	DeveloperCount    int `json:"developer_count"`
	GuestCount        int `json:"guest_count"`
	LimitedGuestCount int `json:"limited_guest_count"`
}

type listProjectsIn struct {
	rest.Page
	Name   string `query:"name" maxLength:"255" doc:"Part of the name"`
	Public string `query:"public" enum:"true,false,1,0," doc:"Only public, or only private ones"`
	Owner  string `query:"owner" maxLength:"255" doc:"Name of the owner"`
}

type createProjectIn struct {
	NameInLocation bool `header:"X-Resource-Name-In-Location" doc:"Answer with the name in Location, not the id"`
	Body           ProjectRequest
}

type updateProjectIn struct {
	ProjectPath
	rest.Condition
	Body ProjectRequest
}

type deleteProjectIn struct {
	ProjectPath
	rest.Condition
	Force bool `query:"force" doc:"Delete its repositories too"`
}

func (a *API) registerProjects() {
	rest.Register(a.rest, rest.Op{ID: "listProjects", Method: http.MethodGet, Path: "/projects", Tag: "project",
		Summary: "Projects that you can see, by name"}, a.listProjects)
	rest.Register(a.rest, rest.Op{ID: "headProject", Method: http.MethodHead, Path: "/projects", Tag: "project", Who: rest.SignedIn,
		Summary: "Is there a project of this name?"}, func(ctx context.Context, in *struct {
		Name string `query:"project_name" required:"true" maxLength:"255"`
	}) (*rest.Empty, error) {
		_, err := a.open(ctx, ProjectPath{Project: in.Name, IsName: true}, access.ReadProject)
		return &rest.Empty{}, err
	})
	rest.Register(a.rest, rest.Op{ID: "createProject", Method: http.MethodPost, Path: "/projects", Tag: "project", Who: rest.SignedIn,
		Status: http.StatusCreated, Summary: "Make a project; you become its administrator"}, a.createProject)
	rest.Register(a.rest, rest.Op{ID: "getProject", Method: http.MethodGet, Path: "/projects/{project_name_or_id}", Tag: "project",
		Summary: "One project"}, func(ctx context.Context, in *ProjectPath) (*rest.Object[Project], error) {
		p, err := a.open(ctx, *in, access.ReadProject)
		if err != nil {
			return nil, err
		}
		out, err := a.project(ctx, p)
		return rest.ObjectOf(p.ID, p.Version, out), err
	})
	rest.Register(a.rest, rest.Op{ID: "getProjectSummary", Method: http.MethodGet, Path: "/projects/{project_name_or_id}/summary", Tag: "project",
		Summary: "A project's members and repositories, counted"}, a.summary)
	rest.Register(a.rest, rest.Op{ID: "updateProject", Method: http.MethodPut, Path: "/projects/{project_name_or_id}", Tag: "project", Who: rest.SignedIn,
		Summary: "Make a project public or private"}, a.updateProject)
	rest.Register(a.rest, rest.Op{ID: "deleteProject", Method: http.MethodDelete, Path: "/projects/{project_name_or_id}", Tag: "project", Who: rest.SignedIn,
		Summary: "Delete a project; with repositories in it only by force=true"}, a.deleteProject)
}

func (a *API) listProjects(ctx context.Context, in *listProjectsIn) (*rest.List[Project], error) {
	f, err := rest.ParseFilter(in.Q, "name", "public", "owner")
	if err != nil {
		return nil, err
	}
	v := a.cfg.View()
	var found []state.Project
	for p := range v.Projects() {
		owner := ""
		if f["owner"].Value != "" || in.Owner != "" {
			u, _ := v.UserByID(p.OwnerID)
			owner = u.Name
		}
		public := strconv.FormatBool(p.Public)
		if !f.OK("name", p.Name) || !f.OK("public", public) || !f.OK("owner", owner) ||
			(in.Owner != "" && in.Owner != owner) || !rest.Contains(p.Name, in.Name) ||
			(in.Public != "" && (in.Public == "true" || in.Public == "1") != p.Public) || !a.can(ctx, p, access.ReadProject) {
			continue
		}
		found = append(found, p)
	}
	// Cut first: only what is shown is worth its counts.
	page := rest.PageOf(&in.Page, found)
	out := make([]Project, 0, len(page.Body))
	for _, p := range page.Body {
		shown, err := a.project(ctx, p)
		if err != nil {
			return nil, err
		}
		out = append(out, shown)
	}
	return rest.ListOf(&in.Page, out, len(found)), nil
}

func (a *API) createProject(ctx context.Context, in *createProjectIn) (*rest.CreatedEmpty, error) {
	pid := identity.NewProjectID()
	public, _ := in.Body.public() // private unless it says otherwise
	mode := state.EventualTags
	if in.Body.Tags != "" {
		var err error
		if mode, err = state.ParseTagMode(in.Body.Tags); err != nil {
			return nil, rest.Invalid("%s", err)
		}
	}
	res, err := a.propose(ctx, &command.ProjectCreate{ProjectId: pid[:], Name: in.Body.Name, Public: public,
		OwnerId: rest.Subject(ctx).UserID, Sites: in.Body.Sites, Tags: command.TagMode(mode), Durability: in.Body.Durability})
	if err != nil {
		return nil, err
	}
	where := strconv.FormatInt(res.ID, 10)
	if in.NameInLocation {
		where = in.Body.Name
	}
	return &rest.CreatedEmpty{Status: http.StatusCreated, Location: Prefix + "/projects/" + where}, nil
}

func (a *API) updateProject(ctx context.Context, in *updateProjectIn) (*rest.Empty, error) {
	p, err := a.open(ctx, in.ProjectPath, access.ManageProject)
	if err != nil {
		return nil, err
	}
	switch {
	case in.Body.Name != "" && in.Body.Name != p.Name:
		return nil, rest.Invalid("project %s cannot be renamed: leave out project_name", p.Name)
	case in.Body.Tags != "" || in.Body.Durability != 0:
		return nil, rest.Invalid("tags and durability of project %s are changed by the mesh's API: PUT /api/mesh/v1/projects/%s/guarantees", p.Name, p.Name)
	case in.Body.Sites != nil && !slices.Equal(slices.Sorted(slices.Values(in.Body.Sites)), slices.Sorted(slices.Values(p.Sites))):
		return nil, rest.Invalid("the sites of project %s are changed by the mesh's API: PUT /api/mesh/v1/projects/%s/sites", p.Name, p.Name)
	}
	public, ok := in.Body.public()
	if !ok {
		return &rest.Empty{}, nil // nothing that can be changed was named
	}
	want, err := in.Expect(p.ID, in.Body.IfVersion)
	if err != nil {
		return nil, err
	}
	return a.edit(ctx, want, &command.ProjectUpdate{Id: p.ID, Public: &public, IfVersion: want.Version})
}

func (a *API) deleteProject(ctx context.Context, in *deleteProjectIn) (*rest.Empty, error) {
	p, err := a.open(ctx, in.ProjectPath, access.ManageProject)
	if err != nil {
		return nil, err
	}
	if !in.Force {
		if err := a.seeAll(ctx, p); err != nil {
			return nil, err
		}
		repos, err := a.cfg.Catalog.Repositories(p.PID, "", 1)
		if err != nil {
			return nil, err
		}
		if len(repos) > 0 {
			return nil, rest.Precondition("project %s has repositories, %s/%s among them: delete them first, or the project with force", p.Name, p.Name, repos[0])
		}
	}
	want, err := in.Expect(p.ID, 0)
	if err != nil {
		return nil, err
	}
	return a.edit(ctx, want, &command.ProjectDelete{Id: p.ID, IfVersion: want.Version})
}

// seeAll brings what other sites have of a project here, or says why that cannot
// be: an empty catalogue here says nothing of what was pushed elsewhere.
func (a *API) seeAll(ctx context.Context, p state.Project) error {
	if a.cfg.Refresh == nil {
		return nil
	}
	why := func(sites []string, format string, args ...any) error {
		return &rest.Error{Status: http.StatusServiceUnavailable, Code: rest.CodeUnavailable, Sites: sites, RetryAfter: seeAllAgain,
			Message: fmt.Sprintf(format, args...) + ": try again, or delete the project with force"}
	}
	if as := p.Residence(a.cfg.Site); as != state.Resident {
		var sites []string
		for _, s := range a.cfg.View().ContentSites() {
			if p.Residence(s.Name) == state.Resident {
				sites = append(sites, s.Name)
			}
		}
		return why(sites, "site %s is %s of project %s and cannot say whether it has repositories: ask at another of its sites (%s)", a.cfg.Site, as, p.Name, strings.Join(sites, ", "))
	}
	silent, err := a.cfg.Refresh(ctx, p.PID)
	if err != nil {
		return fmt.Errorf("repositories of %s elsewhere: %w", p.Name, err)
	}
	if len(silent) > 0 {
		return why(silent, "project %s may have repositories at site %s, which does not answer", p.Name, strings.Join(silent, ", "))
	}
	return nil
}

// seeAllAgain is when a site may answer that did not.
const seeAllAgain = 5 * time.Second

func (a *API) summary(ctx context.Context, in *ProjectPath) (*struct{ Body ProjectSummary }, error) {
	p, err := a.open(ctx, *in, access.ReadProject)
	if err != nil {
		return nil, err
	}
	var s ProjectSummary
	if s.RepoCount, err = a.countRepositories(p); err != nil {
		return nil, err
	}
	for _, m := range a.cfg.View().Members(p.ID) {
		switch m.Role {
		case state.ProjectAdmin:
			s.ProjectAdminCount++
		case state.Maintainer:
			s.MaintainerCount++
		case state.Developer:
			s.DeveloperCount++
		case state.Guest:
			s.GuestCount++
		case state.LimitedGuest:
			s.LimitedGuestCount++
		}
	}
	return &struct{ Body ProjectSummary }{s}, nil
}

func (a *API) project(ctx context.Context, p state.Project) (Project, error) {
	v := a.cfg.View()
	owner, _ := v.UserByID(p.OwnerID)
	out := Project{ID: p.ID, Name: p.Name, OwnerID: p.OwnerID, OwnerName: owner.Name, CreationTime: p.CreatedAt, UpdateTime: p.UpdatedAt,
		CurrentRoles: []int{}, Metadata: ProjectMetadata{Public: strconv.FormatBool(p.Public)}, Sites: p.Sites,
		PortolanID: p.PID.String(), Version: p.Version}
	if s := rest.Subject(ctx); s.Kind == access.User {
		if m, ok := v.Member(p.ID, s.UserID); ok {
			out.CurrentRole = int(m.Role)
		} else if s.Admin {
			out.CurrentRole = int(state.ProjectAdmin)
		}
		if out.CurrentRole != 0 {
			out.CurrentRoles = append(out.CurrentRoles, out.CurrentRole)
		}
	}
	var err error
	out.RepoCount, err = a.countRepositories(p)
	return out, err
}

// countRepositories counts up to maxCounted.
func (a *API) countRepositories(p state.Project) (int, error) {
	repos, err := a.cfg.Catalog.Repositories(p.PID, "", maxCounted)
	if err != nil {
		return 0, fmt.Errorf("harbor: count the repositories of %s: %w", p.Name, err)
	}
	return len(repos), nil
}
