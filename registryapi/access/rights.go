package access

import "github.com/portolan/portolan/consensus/state"

// Action is something done to a project or to what is in it.
type Action int

// Actions. ManageProject is everything that changes the project itself: its
// members, its settings, its end.
const (
	Pull Action = iota + 1
	Push
	Delete
	ReadProject
	ListMembers
	ManageProject
)

// String gives the word of the token protocol where it has one.
func (a Action) String() string {
	switch a {
	case Pull:
		return "pull"
	case Push:
		return "push"
	case Delete:
		return "delete"
	case ReadProject:
		return "read project"
	case ListMembers:
		return "list members"
	case ManageProject:
		return "manage project"
	}
	return "unknown"
}

// byRole is Harbor's table, as far as there is something to decide here.
var byRole = map[state.Role][]Action{
	state.LimitedGuest: {Pull, ReadProject},
	state.Guest:        {Pull, ReadProject, ListMembers},
	state.Developer:    {Pull, ReadProject, ListMembers, Push},
	state.Maintainer:   {Pull, ReadProject, ListMembers, Push, Delete},
	state.ProjectAdmin: {Pull, ReadProject, ListMembers, Push, Delete, ManageProject},
}

// Can decides for a subject that came without a token, by the state as it is
// now. One that came with a registry token may nothing here: tokens are for
// repositories, see CanRepository.
func (a *Access) Can(s Subject, p state.Project, action Action) bool {
	if s.Scope != nil {
		return false
	}
	return can(a.cfg.View(), s, p, action)
}

// CanRepository decides about a repository of a project: the role must allow
// it, and so must the scope of the token, if there is one. repo is the path
// below the project.
func (a *Access) CanRepository(s Subject, p state.Project, repo string, action Action) bool {
	if s.Scope != nil && !s.Scope.Allows(p.Name+"/"+repo, action) {
		return false
	}
	return can(a.cfg.View(), s, p, action)
}

func can(v *state.View, s Subject, p state.Project, action Action) bool {
	if s.Kind == User && s.Admin {
		return true
	}
	if p.Public && (action == Pull || action == ReadProject) {
		return true
	}
	if s.Kind != User {
		return false
	}
	m, ok := v.Member(p.ID, s.UserID)
	if !ok {
		return false
	}
	for _, allowed := range byRole[m.Role] {
		if allowed == action {
			return true
		}
	}
	return false
}
