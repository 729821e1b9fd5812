package state

import (
	"time"

	"github.com/portolan/portolan/consensus/command"
)

// DeletedKeptFor is how long the content of a deleted project stays, and with it
// the way back.
const DeletedKeptFor = 7 * 24 * time.Hour

// DeletedProject finds a deleted project whose content is still there, by its
// name: no other has it meanwhile.
func (v *View) DeletedProject(name string) (Project, bool) {
	p, ok := get(v.projNames, v.projects, []byte(name))
	return p, ok && p.Deleted()
}

// PurgeDue reports whether the content of a deleted project may go at a time. The
// command asks with the mesh's: that of the last command, which never runs back.
func (v *View) PurgeDue(p Project, now time.Time) bool {
	return p.Deleted() && !p.Purged() && !now.Before(p.DeletedAt.Add(DeletedKeptFor))
}

// deletedByID finds a deleted project for a command.
func (v *View) deletedByID(id int64) (Project, error) {
	p, ok := v.projects.Get(idKey(id))
	switch {
	case !ok:
		return p, refuse(command.CodeNotFound, "there is no project %d", id)
	case !p.Deleted():
		return p, refuse(command.CodeConflict, "the project %s is not deleted", p.Name)
	case p.Purged():
		return p, refuse(command.CodeNotFound, "the content of project %s is gone: it was deleted more than %d days ago", p.Name, int(DeletedKeptFor.Hours()/24))
	}
	return p, nil
}

// projectRestore takes a deletion back. Strong tags became eventual with it.
func (v *View) projectRestore(m *command.ProjectRestore) (int64, error) {
	p, err := v.deletedByID(m.GetId())
	if err != nil {
		return 0, err
	}
	if err := checkVersion("project "+p.Name, p.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	p.DeletedAt, p.UpdatedAt = time.Time{}, v.now()
	p.Version++
	v.putProject(p)
	return p.ID, nil
}

// projectPurge frees the name. The identity stays for ever: what comes of it from
// a site that was away must be known as gone.
func (v *View) projectPurge(m *command.ProjectPurge) (int64, error) {
	p, err := v.deletedByID(m.GetId())
	if err != nil {
		return 0, err
	}
	if !v.PurgeDue(p, v.now()) {
		return 0, refuse(command.CodeConflict, "the project %s was deleted less than %d days ago: its content stays until then", p.Name, int(DeletedKeptFor.Hours()/24))
	}
	for _, mem := range v.Members(p.ID) {
		v.dropMember(mem)
	}
	v.projNames, _, _ = v.projNames.Delete([]byte(p.Name))
	v.unindexProject(p)
	p.PurgedAt = v.now()
	p.Leaving, p.Syncing, p.Expelled = nil, nil, nil
	p.Tags = TagState{Seq: p.Tags.Seq}
	v.dropTaken(p.PID)
	p.Version++
	v.putProject(p)
	return p.ID, nil
}
