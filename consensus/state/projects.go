package state

import (
	"slices"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

func (v *View) checkSites(names []string) error {
	for _, name := range names {
		if _, ok := v.Site(name); !ok {
			return refuse(command.CodeInvalid, "there is no site %q: see the names with: portolan site list", clip(name))
		}
		if nodes := v.NodesOf(name); len(nodes) > 0 && !slices.ContainsFunc(nodes, func(n Node) bool { return !n.Witness }) {
			return refuse(command.CodeInvalid, "site %s is a witness: it votes and holds no content", name)
		}
	}
	return nil
}

// checkVersion refuses an edit whose author saw another version. want 0: any.
func checkVersion(what string, have, want uint64) error {
	if want != 0 && want != have {
		return refuse(command.CodeConflict, "the %s was changed meanwhile (it is at version %d, not %d): look again and repeat", what, have, want)
	}
	return nil
}

func (v *View) projectCreate(m *command.ProjectCreate) (int64, error) {
	if err := CheckProjectName(m.GetName()); err != nil {
		return 0, err
	}
	pid, err := identity.ProjectIDFromBytes(m.GetProjectId())
	if err != nil || pid.IsZero() {
		return 0, refuse(command.CodeInvalid, "a project needs an id of 16 random bytes")
	}
	if old, ok := get(v.projNames, v.projects, []byte(m.GetName())); ok {
		if old.Deleted() {
			return 0, refuse(command.CodeExists, "the project %q was deleted and its content has not gone yet: its name is taken until then", old.Name)
		}
		return 0, refuse(command.CodeExists, "there is a project %q already", old.Name)
	}
	if _, ok := v.ProjectByPID(pid); ok {
		return 0, refuse(command.CodeExists, "the project id %s is taken", pid)
	}
	if m.GetOwnerId() != 0 {
		if _, ok := v.UserByID(m.GetOwnerId()); !ok {
			return 0, refuse(command.CodeInvalid, "there is no user %d who could own the project", m.GetOwnerId())
		}
	}
	if err := v.checkSites(m.GetSites()); err != nil {
		return 0, err
	}
	p := Project{ID: v.newID(), PID: pid, Name: m.GetName(), Public: m.GetPublic(), OwnerID: m.GetOwnerId(), Sites: set(m.GetSites()),
		CreatedAt: v.now(), UpdatedAt: v.now(), Version: 1, Tags: TagState{Mode: TagMode(m.GetTags())}, Durability: int(m.GetDurability())}
	if m.GetTags() > command.TagMode_TAG_MODE_STRONG || m.GetTags() < 0 {
		return 0, refuse(command.CodeInvalid, "%d is not a mode of tags", m.GetTags())
	}
	if p.Tags.Mode == StrongTags {
		p.Tags.LateBefore = v.index // what sites write comes after the mode
	}
	if err := v.checkDurability(m.GetDurability(), p); err != nil {
		return 0, err
	}
	v.putProject(p)
	if p.OwnerID != 0 {
		v.putMember(Member{ID: v.newID(), ProjectID: p.ID, UserID: p.OwnerID, Role: ProjectAdmin, Version: 1})
	}
	return p.ID, nil
}

// editProject finds a project for an edit.
func (v *View) editProject(id int64, ifVersion uint64) (Project, error) {
	p, ok := v.ProjectByID(id)
	if !ok {
		return Project{}, refuse(command.CodeNotFound, "there is no project %d", id)
	}
	p.UpdatedAt = v.now()
	err := checkVersion("project "+p.Name, p.Version, ifVersion)
	p.Version++
	return p, err
}

func (v *View) projectUpdate(m *command.ProjectUpdate) (int64, error) {
	p, err := v.editProject(m.GetId(), m.GetIfVersion())
	if err != nil {
		return 0, err
	}
	if m.Public != nil {
		p.Public = m.GetPublic()
	}
	if m.Durability != nil {
		if err := v.checkDurability(m.GetDurability(), p); err != nil {
			return 0, err
		}
		p.Durability = int(m.GetDurability())
	}
	v.putProject(p)
	return p.ID, nil
}

func (v *View) projectDelete(m *command.ProjectDelete) (int64, error) {
	p, err := v.editProject(m.GetId(), m.GetIfVersion())
	if err != nil {
		return 0, err
	}
	p.DeletedAt = v.now()
	v.deletedTags(&p)
	v.dropHolds(p.PID)
	v.putProject(p)
	return p.ID, nil
}

func (v *View) memberSet(m *command.MemberSet) (int64, error) {
	if _, ok := v.ProjectByID(m.GetProjectId()); !ok {
		return 0, refuse(command.CodeNotFound, "there is no project %d", m.GetProjectId())
	}
	if _, ok := v.UserByID(m.GetUserId()); !ok {
		return 0, refuse(command.CodeNotFound, "there is no user %d", m.GetUserId())
	}
	if _, ok := roleNames[Role(m.GetRole())]; !ok {
		return 0, refuse(command.CodeInvalid, "%d is not a role: use 1 (project admin), 2 (developer), 3 (guest), 4 (maintainer) or 5 (limited guest)", m.GetRole())
	}
	mem, ok := v.Member(m.GetProjectId(), m.GetUserId())
	switch {
	case ok && m.GetCreate():
		return 0, refuse(command.CodeExists, "%s is a member of the project already: change the role instead", mem.UserName)
	case !ok && m.GetIfVersion() != 0:
		return 0, refuse(command.CodeConflict, "the role of user %d was taken away meanwhile: look again and repeat", m.GetUserId())
	case ok:
		if err := checkVersion("role of "+mem.UserName, mem.Version, m.GetIfVersion()); err != nil {
			return 0, err
		}
	}
	if !ok {
		mem = Member{ID: v.newID(), ProjectID: m.GetProjectId(), UserID: m.GetUserId()}
	}
	mem.Role = Role(m.GetRole())
	mem.Version++
	v.putMember(mem)
	return mem.ID, nil
}

func (v *View) memberDelete(m *command.MemberDelete) (int64, error) {
	mem, ok := v.MemberByID(m.GetProjectId(), m.GetMemberId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "project %d has no member %d", m.GetProjectId(), m.GetMemberId())
	}
	if err := checkVersion("role of "+mem.UserName, mem.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	v.dropMember(mem)
	return mem.ID, nil
}

// rule checks a rule's words and makes the row.
// Sites that the rule names already may be gone.
func (v *View) rule(m *command.Rule, named []string) (Rule, error) {
	if err := checkRuleName(m.GetName()); err != nil {
		return Rule{}, err
	}
	if len(m.GetProjects()) == 0 {
		return Rule{}, refuse(command.CodeInvalid, "the rule %q names no project: give names or patterns, * for all", m.GetName())
	}
	for _, p := range []struct {
		what string
		list []string
	}{{"projects", m.GetProjects()}, {"repositories", m.GetRepositories()}, {"tags", m.GetTags()}} {
		if err := checkPatterns(p.what, p.list); err != nil {
			return Rule{}, err
		}
	}
	if err := checkRuleFields(m); err != nil {
		return Rule{}, err
	}
	if err := v.checkSites(without(m.GetSites(), named)); err != nil {
		return Rule{}, err
	}
	return RuleOf(m), nil
}

func (v *View) ruleCreate(m *command.RuleCreate) (int64, error) {
	r, err := v.rule(m.GetRule(), nil)
	if err != nil {
		return 0, err
	}
	if _, ok := v.ruleNames.Get([]byte(r.Name)); ok {
		return 0, refuse(command.CodeExists, "there is a rule %q already", r.Name)
	}
	r.ID, r.Version, r.CreatedAt = v.newID(), 1, v.now()
	v.putRule(r)
	return r.ID, nil
}

func (v *View) ruleUpdate(m *command.RuleUpdate) (int64, error) {
	old, ok := v.RuleByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no rule %d", m.GetId())
	}
	if err := checkVersion("rule "+old.Name, old.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	r, err := v.rule(m.GetRule(), old.Sites)
	if err != nil {
		return 0, err
	}
	if id, ok := v.ruleNames.Get([]byte(r.Name)); ok && id != old.ID {
		return 0, refuse(command.CodeExists, "there is a rule %q already", r.Name)
	}
	r.ID, r.Version, r.CreatedAt = old.ID, old.Version+1, old.CreatedAt
	v.ruleNames, _, _ = v.ruleNames.Delete([]byte(old.Name))
	v.putRule(r)
	return r.ID, nil
}

func (v *View) ruleDelete(m *command.RuleDelete) (int64, error) {
	r, ok := v.RuleByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no rule %d", m.GetId())
	}
	if err := checkVersion("rule "+r.Name, r.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	v.rules, _, _ = v.rules.Delete(idKey(r.ID))
	v.ruleNames, _, _ = v.ruleNames.Delete([]byte(r.Name))
	v.dropRulePauses(r.ID)
	return r.ID, nil
}

func (v *View) putProject(p Project) {
	v.noteChange(p)
	v.projects, _, _ = v.projects.Insert(idKey(p.ID), p)
	v.pids, _, _ = v.pids.Insert(p.PID[:], p.ID)
	if p.Purged() {
		return // its name may be another's
	}
	v.projNames, _, _ = v.projNames.Insert([]byte(p.Name), p.ID)
	v.indexProject(p)
	v.indexTags(p)
}

// putMember fills in the user's name.
func (v *View) putMember(m Member) {
	u, _ := v.UserByID(m.UserID)
	m.UserName = u.Name
	v.members, _, _ = v.members.Insert(pairKey(m.ProjectID, m.UserID), m)
	v.memberIDs, _, _ = v.memberIDs.Insert(pairKey(m.ProjectID, m.ID), m.UserID)
	v.indexMember(m)
}

func (v *View) dropMember(m Member) {
	v.members, _, _ = v.members.Delete(pairKey(m.ProjectID, m.UserID))
	v.memberIDs, _, _ = v.memberIDs.Delete(pairKey(m.ProjectID, m.ID))
	v.unindexMember(m)
}

func (v *View) putRule(r Rule) {
	v.rules, _, _ = v.rules.Insert(idKey(r.ID), r)
	v.ruleNames, _, _ = v.ruleNames.Insert([]byte(r.Name), r.ID)
}
