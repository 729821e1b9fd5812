package state

import (
	"iter"
	"strings"

	"github.com/portolan/portolan/consensus/state/table"
)

// The indexes below say which projects a user sees, so that a list of
// repositories costs what it shows and not what the mesh has. They are derived:
// snapshots do not hold them. Their keys are names with a slash behind, which
// puts repositories' full names in the order of their bytes: "a-b/x" comes
// before "a/x", although "a" comes before "a-b".

func pathKey(name string) []byte { return append([]byte(name), '/') }

func memberPathKey(userID int64, name string) []byte {
	return append(append(idKey(userID), name...), '/')
}

func (v *View) indexProject(p Project) {
	key := pathKey(p.Name)
	v.paths, _, _ = v.paths.Insert(key, p.ID)
	if p.Public {
		v.publicPaths, _, _ = v.publicPaths.Insert(key, p.ID)
	} else {
		v.publicPaths, _, _ = v.publicPaths.Delete(key)
	}
}

// unindexProject is for a project whose name is free from now on.
func (v *View) unindexProject(p Project) {
	v.paths, _, _ = v.paths.Delete(pathKey(p.Name))
	v.publicPaths, _, _ = v.publicPaths.Delete(pathKey(p.Name))
}

func (v *View) indexMember(m Member) {
	if p, ok := v.projects.Get(idKey(m.ProjectID)); ok {
		v.memberPaths, _, _ = v.memberPaths.Insert(memberPathKey(m.UserID, p.Name), p.ID)
	}
}

func (v *View) unindexMember(m Member) {
	if p, ok := v.projects.Get(idKey(m.ProjectID)); ok {
		v.memberPaths, _, _ = v.memberPaths.Delete(memberPathKey(m.UserID, p.Name))
	}
}

// ProjectsFrom yields the projects whose names with a slash behind are not before
// from, in that order: "prod/" begins with the project prod. Deleted ones are left
// out.
func (v *View) ProjectsFrom(from string) iter.Seq[Project] {
	return v.existing(seek(v.paths, nil, from))
}

// ProjectsOf is ProjectsFrom for the projects that are public or have the user
// as a member. Nobody is user 0.
func (v *View) ProjectsOf(userID int64, from string) iter.Seq[Project] {
	return v.existing(func(yield func(string, int64) bool) {
		public, stop := iter.Pull2(seek(v.publicPaths, nil, from))
		defer stop()
		pubKey, pubID, more := public()
		for key, id := range seek(v.memberPaths, idKey(userID), from) {
			for more && pubKey < key {
				if !yield(pubKey, pubID) {
					return
				}
				pubKey, pubID, more = public()
			}
			if more && pubKey == key {
				pubKey, pubID, more = public()
			}
			if !yield(key, id) {
				return
			}
		}
		for more && yield(pubKey, pubID) {
			pubKey, pubID, more = public()
		}
	})
}

func (v *View) existing(paths iter.Seq2[string, int64]) iter.Seq[Project] {
	return func(yield func(Project) bool) {
		for _, id := range paths {
			if p, ok := v.ProjectByID(id); ok && !yield(p) {
				return
			}
		}
	}
}

// seek yields the rows whose keys have the prefix, from the first that is not
// before from; keys come without the prefix.
func seek(t *table.Tree[int64], prefix []byte, from string) iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		p := string(prefix)
		for key, id := range t.From(p + from) {
			if !strings.HasPrefix(key, p) || !yield(key[len(p):], id) {
				return
			}
		}
	}
}
