package harbor

import (
	"context"
	"fmt"
	"net/http"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// Member is a user's role in a project.
type Member struct {
	ID         int64  `json:"id"`
	ProjectID  int64  `json:"project_id"`
	EntityName string `json:"entity_name" doc:"The user's name"`
	EntityType string `json:"entity_type" doc:"u: a user"`
	EntityID   int64  `json:"entity_id" doc:"The user's id"`
	RoleID     int    `json:"role_id" doc:"1 project admin, 2 developer, 3 guest, 4 maintainer, 5 limited guest"`
	RoleName   string `json:"role_name"`
	Version    uint64 `json:"resource_version" doc:"Goes up with every edit"`
}

// MemberRequest gives a user a role.
type MemberRequest struct {
	RoleID    int        `json:"role_id,omitempty"`
	User      MemberUser `json:"member_user,omitempty"`
	IfVersion uint64     `json:"resource_version,omitempty" doc:"Of a change: refuse with 409 if the member has another version; 0: any"`
}

// MemberUser names a user by one of both.
type MemberUser struct {
	ID   int64  `json:"user_id,omitempty"`
	Name string `json:"username,omitempty" maxLength:"255"`
}

type listMembersIn struct {
	ProjectPath
	rest.Page
	EntityName string `query:"entityname" maxLength:"255" doc:"Part of the user's name"`
}

type createMemberIn struct {
	ProjectPath
	Body MemberRequest
}

// MemberPath names a member in a path.
type MemberPath struct {
	ProjectPath
	ID int64 `path:"mid" minimum:"1"`
}

type updateMemberIn struct {
	MemberPath
	rest.Condition
	Body MemberRequest
}

type deleteMemberIn struct {
	MemberPath
	rest.Condition
}

func (a *API) registerMembers() {
	const path = "/projects/{project_name_or_id}/members"
	rest.Register(a.rest, rest.Op{ID: "listProjectMembers", Method: http.MethodGet, Path: path, Tag: "member", Who: rest.SignedIn,
		Summary: "A project's members"}, func(ctx context.Context, in *listMembersIn) (*rest.List[Member], error) {
		p, err := a.open(ctx, in.ProjectPath, access.ListMembers)
		if err != nil {
			return nil, err
		}
		var out []Member
		for _, m := range a.cfg.View().Members(p.ID) {
			if rest.Contains(m.UserName, in.EntityName) {
				out = append(out, member(m))
			}
		}
		return rest.PageOf(&in.Page, out), nil
	})
	rest.Register(a.rest, rest.Op{ID: "createProjectMember", Method: http.MethodPost, Path: path, Tag: "member", Who: rest.SignedIn,
		Status: http.StatusCreated, Summary: "Give a user a role in a project"}, a.createMember)
	rest.Register(a.rest, rest.Op{ID: "getProjectMember", Method: http.MethodGet, Path: path + "/{mid}", Tag: "member", Who: rest.SignedIn,
		Summary: "One member"}, func(ctx context.Context, in *MemberPath) (*rest.Object[Member], error) {
		m, err := a.findMember(ctx, in, access.ListMembers)
		return rest.ObjectOf(m.ID, m.Version, member(m)), err
	})
	rest.Register(a.rest, rest.Op{ID: "updateProjectMember", Method: http.MethodPut, Path: path + "/{mid}", Tag: "member", Who: rest.SignedIn,
		Summary: "Change a member's role"}, func(ctx context.Context, in *updateMemberIn) (*rest.Empty, error) {
		m, err := a.findMember(ctx, &in.MemberPath, access.ManageProject)
		if err != nil {
			return nil, err
		}
		want, err := in.Expect(m.ID, in.Body.IfVersion)
		if err != nil {
			return nil, err
		}
		return a.edit(ctx, want, &command.MemberSet{ProjectId: m.ProjectID, UserId: m.UserID, Role: int32(in.Body.RoleID), IfVersion: want.Version})
	})
	rest.Register(a.rest, rest.Op{ID: "deleteProjectMember", Method: http.MethodDelete, Path: path + "/{mid}", Tag: "member", Who: rest.SignedIn,
		Summary: "Take a user's role in a project away"}, func(ctx context.Context, in *deleteMemberIn) (*rest.Empty, error) {
		m, err := a.findMember(ctx, &in.MemberPath, access.ManageProject)
		if err != nil {
			return nil, err
		}
		want, err := in.Expect(m.ID, 0)
		if err != nil {
			return nil, err
		}
		return a.edit(ctx, want, &command.MemberDelete{ProjectId: m.ProjectID, MemberId: m.ID, IfVersion: want.Version})
	})
}

func (a *API) findMember(ctx context.Context, in *MemberPath, action access.Action) (state.Member, error) {
	p, err := a.open(ctx, in.ProjectPath, action)
	if err != nil {
		return state.Member{}, err
	}
	m, ok := a.cfg.View().MemberByID(p.ID, in.ID)
	if !ok {
		return m, rest.NotFound("project %s has no member %d", p.Name, in.ID)
	}
	return m, nil
}

func (a *API) createMember(ctx context.Context, in *createMemberIn) (*rest.CreatedEmpty, error) {
	p, err := a.open(ctx, in.ProjectPath, access.ManageProject)
	if err != nil {
		return nil, err
	}
	v := a.cfg.View()
	u, ok := v.User(in.Body.User.Name)
	if !ok && in.Body.User.ID != 0 {
		u, ok = v.UserByID(in.Body.User.ID)
	}
	if !ok {
		return nil, rest.NotFound("there is no user %q: a system administrator can make one", in.Body.User.Name)
	}
	if _, ok := v.Member(p.ID, u.ID); ok {
		return nil, rest.Conflict("%s is a member of project %s already: change the role instead", u.Name, p.Name)
	}
	res, err := a.propose(ctx, &command.MemberSet{ProjectId: p.ID, UserId: u.ID, Role: int32(in.Body.RoleID), Create: true})
	if err != nil {
		return nil, err
	}
	return &rest.CreatedEmpty{Status: http.StatusCreated, Location: fmt.Sprintf("%s/projects/%d/members/%d", Prefix, p.ID, res.ID)}, nil
}

func member(m state.Member) Member {
	return Member{ID: m.ID, ProjectID: m.ProjectID, EntityName: m.UserName, EntityType: "u", EntityID: m.UserID, RoleID: int(m.Role), RoleName: m.Role.String(),
		Version: m.Version}
}
