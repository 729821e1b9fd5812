package state

import (
	"encoding/binary"
	"iter"
	"slices"

	"github.com/portolan/portolan/consensus/state/table"
)

// changes is part of View: which projects changed when, so that whoever follows the
// state does the work of an edit and not that of the mesh. It is derived: snapshots
// do not hold it, and all that came with one changed with it.
type changes struct {
	changed   *table.Tree[int64]  // by raft index, project id
	changedAt *table.Tree[uint64] // by project id: its raft index in changed
	// residenceAt is the raft index of the last command that changed which projects
	// there are or where one may rest.
	residenceAt uint64
	// left are the projects that a site leaves, by name: rules follow from them.
	left *table.Tree[int64]
}

func newChanges() changes {
	return changes{changed: table.New[int64](), changedAt: table.New[uint64](), left: table.New[int64]()}
}

func (c *changes) trees() []building { return []building{c.changed, c.changedAt, c.left} }

// noteChange is told of each project's row before it is put into the table.
func (v *View) noteChange(p Project) {
	old, there := v.projects.Get(idKey(p.ID))
	if !there || old.Deleted() != p.Deleted() || old.Purged() != p.Purged() || !slices.Equal(old.Sites, p.Sites) ||
		!slices.Equal(old.Leaving, p.Leaving) || !slices.Equal(old.Syncing, p.Syncing) || !slices.Equal(old.Expelled, p.Expelled) {
		v.residenceAt = v.index
	}
	if len(p.Leaving) > 0 && !p.Deleted() {
		v.left, _, _ = v.left.Insert([]byte(p.Name), p.ID)
	} else if id, ok := v.left.Get([]byte(p.Name)); ok && id == p.ID { // a purged one's name may be another's
		v.left, _, _ = v.left.Delete([]byte(p.Name))
	}
	if at, ok := v.changedAt.Get(idKey(p.ID)); ok {
		if at == v.index {
			return
		}
		v.changed, _, _ = v.changed.Delete(changeKey(at, p.ID))
	}
	v.changed, _, _ = v.changed.Insert(changeKey(v.index, p.ID), p.ID)
	v.changedAt, _, _ = v.changedAt.Insert(idKey(p.ID), v.index)
}

func changeKey(index uint64, id int64) []byte {
	return append(binary.BigEndian.AppendUint64(nil, index), idKey(id)...)
}

// ProjectsChangedSince yields the projects whose record changed by a command later
// than the raft index, deleted and purged ones too, and all that came with a later
// snapshot. 0 gives all projects.
func (v *View) ProjectsChangedSince(index uint64) iter.Seq[Project] {
	return func(yield func(Project) bool) {
		for _, id := range v.changed.From(string(changeKey(index+1, 0))) {
			if p, ok := v.projects.Get(idKey(id)); ok && !yield(p) {
				return
			}
		}
	}
}

// ResidenceChangedAt gives the raft index of the last command that changed which
// projects there are or where one may rest.
func (v *View) ResidenceChangedAt() uint64 { return v.residenceAt }
