package rules

import (
	"fmt"
	"slices"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/portolan/portolan/consensus/state"
)

// Sites gives the sites, in the order of contentSites, at which the rules want
// a manifest of the repository (the path below the project) that has these
// tags (nil: untagged). contentSites are the sites that can store content.
func Sites(rules []state.Rule, project state.Project, repository string, tags []string, contentSites []string) []string {
	var wanted []string
	for _, site := range contentSites {
		if Wants(rules, project, repository, tags, site) {
			wanted = append(wanted, site)
		}
	}
	return wanted
}

// Wants reports whether any rule wants a manifest with these tags at the site.
func Wants(rules []state.Rule, project state.Project, repository string, tags []string, site string) bool {
	if !mayRest(project, site) {
		return false
	}
	return slices.ContainsFunc(rules, func(r state.Rule) bool {
		return namesSite(r, site) && matchesRepository(r, project.Name, repository) && matchesTags(r, tags)
	})
}

// Relevant gives those of the rules that can want anything of the project at
// the site, so that a walk over its manifests starts with a short list or, when
// it is empty, need not start at all.
func Relevant(rules []state.Rule, project state.Project, site string) []state.Rule {
	if !mayRest(project, site) {
		return nil
	}
	var out []state.Rule
	for _, r := range rules {
		if namesSite(r, site) && !r.Disabled && matchesAny(r.Projects, project.Name) {
			out = append(out, r)
		}
	}
	return out
}

// NeedTags reports whether the rules' answer can depend on a manifest's tags:
// if not, a caller may save itself looking them up.
func NeedTags(rules []state.Rule) bool {
	return slices.ContainsFunc(rules, func(r state.Rule) bool { return len(r.Tags) > 0 })
}

// Check says what is wrong with a rule before it is saved: a rule without
// projects or sites, or a pattern that is no glob.
func Check(r state.Rule) error {
	if len(r.Projects) == 0 {
		return fmt.Errorf("rule %q names no project: name at least one, or ** for all", r.Name)
	}
	if !r.AllSites && len(r.Sites) == 0 {
		return fmt.Errorf("rule %q names no site: name at least one, or all", r.Name)
	}
	for _, field := range []struct {
		what     string
		patterns []string
	}{{"project", r.Projects}, {"repository", r.Repositories}, {"tag", r.Tags}} {
		for _, p := range field.patterns {
			if p == "" || !doublestar.ValidatePattern(p) {
				return fmt.Errorf("rule %q: %q is not a %s pattern: use names with *, **, ?, [a-z] and {a,b}", r.Name, p, field.what)
			}
		}
	}
	return nil
}

func mayRest(p state.Project, site string) bool {
	return len(p.Sites) == 0 || slices.Contains(p.Sites, site)
}

func namesSite(r state.Rule, site string) bool {
	return r.AllSites || slices.Contains(r.Sites, site)
}

func matchesRepository(r state.Rule, project, repository string) bool {
	return !r.Disabled && matchesAny(r.Projects, project) &&
		(len(r.Repositories) == 0 || matchesAny(r.Repositories, repository))
}

func matchesTags(r state.Rule, tags []string) bool {
	return len(r.Tags) == 0 || slices.ContainsFunc(tags, func(t string) bool { return matchesAny(r.Tags, t) })
}

// matchesAny takes a malformed pattern as one that matches nothing: Check has
// refused it before it was saved, and a rule must never stop the mesh.
func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := doublestar.Match(p, name)
		return err == nil && ok
	})
}
