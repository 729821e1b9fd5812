package state

import (
	"hash/fnv"
	"slices"

	"github.com/portolan/portolan/consensus/command"
)

// Residence is what a site is to a project. It is decided here and nowhere else.
type Residence uint8

const (
	// Out: nothing of the project is sent to the site, and nothing served there.
	Out Residence = iota
	// Resident: the project may rest at the site, which is a full member.
	Resident
	// Syncing: it may rest there, and the site has not yet all that others have. It
	// cannot say that something is not there.
	Syncing
	// Leaving: the site serves what it holds until others hold it; it takes no
	// pushes, and nothing new is sent to it.
	Leaving
)

func (r Residence) String() string {
	switch r {
	case Resident:
		return "member"
	case Syncing:
		return "syncing"
	case Leaving:
		return "leaving"
	}
	return "out"
}

// MayRest reports whether the project may be stored at such a site.
func (r Residence) MayRest() bool { return r == Resident || r == Syncing }

// Holds reports whether the project may be read at such a site.
func (r Residence) Holds() bool { return r != Out }

// Residence gives what a site is to the project, whether there is a site of that
// name or not.
func (p Project) Residence(site string) Residence {
	switch {
	case p.Purged():
		return Out
	case slices.Contains(p.Leaving, site):
		return Leaving
	case len(p.Sites) > 0 && !slices.Contains(p.Sites, site):
		return Out
	case slices.Contains(p.Syncing, site):
		return Syncing
	}
	return Resident
}

// projectSites changes where a project may rest. What a content site becomes
// follows from what it was:
//
//	            named             not named     not named, by force
//	out         syncing           out           out
//	member      member            leaving       expelled
//	syncing     syncing           leaving       expelled
//	leaving     syncing           leaving       expelled
//	expelled    syncing           expelled      expelled
//
// A syncing site that is named no more leaves as a member does: another may
// count on its copies by now. A leaving one was sent nothing new: it catches up.
func (v *View) projectSites(m *command.ProjectSites) (int64, error) {
	p, err := v.editProject(m.GetId(), m.GetIfVersion())
	if err != nil {
		return 0, err
	}
	if err := v.checkSites(without(m.GetSites(), p.Sites)); err != nil {
		return 0, err
	}
	next := p
	next.Sites, next.Leaving, next.Syncing, next.Expelled = set(m.GetSites()), nil, nil, nil
	members := 0
	for _, s := range v.ContentSites() {
		was, expelled := p.Residence(s.Name), slices.Contains(p.Expelled, s.Name)
		if len(next.Sites) == 0 || slices.Contains(next.Sites, s.Name) {
			members++
			if was != Resident {
				next.Syncing = append(next.Syncing, s.Name)
			}
			continue
		}
		switch {
		case expelled || was != Out && m.GetForce():
			next.Expelled = append(next.Expelled, s.Name)
		case was != Out:
			next.Leaving = append(next.Leaving, s.Name)
		}
	}
	if members == 0 {
		return 0, refuse(command.CodeInvalid, "project %s would rest nowhere: name at least one site that stores content", p.Name)
	}
	// With nobody who has more, there is nothing to take in.
	if len(next.Syncing) == members && len(next.Leaving) == 0 {
		next.Syncing = nil
	}
	v.putProject(next)
	return p.ID, nil
}

// projectSiteDone ends a step of a site. Saying it twice changes nothing.
func (v *View) projectSiteDone(m *command.ProjectSiteDone) (int64, error) {
	p, ok := v.ProjectByID(m.GetId())
	if !ok {
		return 0, refuse(command.CodeNotFound, "there is no project %d", m.GetId())
	}
	// Not of an earlier step: the site may have been named in between.
	if err := checkVersion("project "+p.Name, p.Version, m.GetIfVersion()); err != nil {
		return 0, err
	}
	is := func(s string) bool { return s == m.GetSite() }
	before := len(p.Leaving) + len(p.Syncing) + len(p.Expelled)
	if m.GetLeft() {
		p.Leaving = slices.DeleteFunc(slices.Clone(p.Leaving), is)
		p.Expelled = slices.DeleteFunc(slices.Clone(p.Expelled), is)
	} else {
		p.Syncing = slices.DeleteFunc(slices.Clone(p.Syncing), is)
	}
	if len(p.Leaving)+len(p.Syncing)+len(p.Expelled) == before {
		return p.ID, nil
	}
	p.Version++
	v.putProject(p)
	return p.ID, nil
}

// dropResidence forgets the steps of a site that was removed from the mesh. The
// names of sites at which a project may rest stay: see nodeRemove.
func (v *View) dropResidence(site string) {
	is := func(s string) bool { return s == site }
	for p := range all(v.projects, nil) {
		n := len(p.Leaving) + len(p.Syncing) + len(p.Expelled)
		p.Leaving = slices.DeleteFunc(slices.Clone(p.Leaving), is)
		p.Syncing = slices.DeleteFunc(slices.Clone(p.Syncing), is)
		p.Expelled = slices.DeleteFunc(slices.Clone(p.Expelled), is)
		if len(p.Leaving)+len(p.Syncing)+len(p.Expelled) < n {
			p.Version++
			v.putProject(p)
		}
	}
}

// heir gives the site that takes over what sites leaving a project hold: one of
// those that may keep it, the same one at every node: those that are not away, and
// full members, first.
func (v *View) heir(p Project) string {
	best, rank := "", uint64(0)
	for _, as := range []struct {
		r    Residence
		away bool
	}{{Resident, false}, {Syncing, false}, {Resident, true}, {Syncing, true}} {
		for _, s := range v.ContentSites() {
			if p.Residence(s.Name) != as.r || s.Away() != as.away {
				continue
			}
			h := fnv.New64a()
			_, _ = h.Write(p.PID[:])
			_, _ = h.Write([]byte(s.Name))
			if n := h.Sum64(); best == "" || n > rank {
				best, rank = s.Name, n
			}
		}
		if best != "" {
			break
		}
	}
	return best
}

// AllRules gives the rules that people made, and those that follow from the
// residency of projects: while a site leaves one, another takes over what it
// holds. The latter have negative ids.
func (v *View) AllRules() []Rule {
	out := v.Rules()
	for p := range byName(v.left, v.projects) {
		if heir := v.heir(p); heir != "" {
			out = append(out, Rule{ID: -p.ID, Name: "sites leave " + p.Name, Projects: []string{p.Name}, Sites: []string{heir}, Version: p.Version})
		}
	}
	return out
}
