package rules

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/cespare/xxhash/v2"

	"github.com/portolan/portolan/consensus/state"
)

// Artifact is what rules look at.
type Artifact struct {
	Repository string // below the project
	Home       string // the site that accepted it
	// Tags that say it; nil: none, or nobody asked (see [Project.NeedTags]).
	Tags []string
	// Type is its artifact type, MediaType that of its manifest.
	Type, MediaType string
	// Labels are its manifest's annotations; see [Project.NeedLabels].
	Labels map[string]string
}

// rule is one that is in force, ready to be asked.
type rule struct {
	state.Rule
	selector Selector
	windows  windows
}

// Set is all rules of the mesh with its sites, as they are at one moment. It
// never changes.
type Set struct {
	rules []rule
	sites []state.Site
	alone bool // see Alone
}

// Compile prepares the rules that are in force. sites are those that hold
// content, by name. A rule that says what nobody understands is left out:
// [Check] has refused it before it was saved, and a rule must never stop the
// mesh.
func Compile(all []state.Rule, sites []state.Site) *Set {
	s := &Set{sites: sites}
	for _, r := range all {
		if r.Disabled {
			continue
		}
		c := rule{Rule: r}
		var err error
		if r.SiteLabels != "" {
			if c.selector, err = ParseSelector(r.SiteLabels); err != nil {
				continue
			}
		}
		whole := true
		for _, text := range r.Windows {
			w, err := parseWindow(text)
			whole = whole && err == nil
			c.windows = append(c.windows, w)
		}
		if whole {
			s.rules = append(s.rules, c)
		}
	}
	return s
}

// Of is Compile for all that a view has.
func Of(v *state.View) *Set { return Compile(v.AllRules(), v.ContentSites()) }

// Alone is the set without what projects promise by themselves.
func (s *Set) Alone() *Set { return &Set{rules: s.rules, sites: s.sites, alone: true} }

// promise is the rule that a project's guarantees are: as many copies of all of
// it as a push has when it is answered. It follows deletions: what was deleted
// needs no copies.
func (s *Set) promise(p state.Project) (r rule, ok bool) {
	mayHold := 0
	for _, site := range s.sites {
		if p.Residence(site.Name).MayRest() {
			mayHold++
		}
	}
	n := p.PushCopies(true, mayHold)
	if s.alone || n < 2 {
		return rule{}, false
	}
	return rule{Rule: state.Rule{Name: "durability", AllSites: true, Copies: n, FollowDeletions: true, Version: uint64(n)}}, true
}

// candidate is a rule that may want something of a project, and the sites in
// question: those that it names and where the project may rest.
type candidate struct {
	*rule
	sites []state.Site // in the set's order
	// refused are sites that the rule names and where the project may not rest.
	refused []string
}

// Project is the rules that may want something of one project.
type Project struct {
	state.Project
	rules []candidate
}

// Project gives the rules for a project.
func (s *Set) Project(p state.Project) *Project {
	out := &Project{Project: p}
	if promise, ok := s.promise(p); ok {
		c := s.candidate(&promise, p)
		c.refused = nil // it names no site
		out.rules = append(out.rules, c)
	}
	for i := range s.rules {
		r := &s.rules[i]
		if !matchesAny(r.Projects, p.Name) {
			continue
		}
		if c := s.candidate(r, p); len(c.sites)+len(c.refused) > 0 {
			out.rules = append(out.rules, c)
		}
	}
	return out
}

func (s *Set) candidate(r *rule, p state.Project) candidate {
	c := candidate{rule: r}
	for _, site := range s.sites {
		switch {
		case !r.names(site):
		case p.Residence(site.Name).MayRest():
			c.sites = append(c.sites, site)
		default:
			c.refused = append(c.refused, site.Name)
		}
	}
	return c
}

func (r *rule) names(s state.Site) bool {
	return r.AllSites || slices.Contains(r.Sites, s.Name) || r.SiteLabels != "" && r.selector.Matches(s.Labels)
}

// At leaves only the rules that may want something at the site, so that a walk
// over a project's manifests starts with a short list or, when it is empty, need
// not start at all.
func (p *Project) At(site string) *Project {
	out := &Project{Project: p.Project}
	for _, c := range p.rules {
		if slices.ContainsFunc(c.sites, func(s state.Site) bool { return s.Name == site }) {
			out.rules = append(out.rules, c)
		}
	}
	return out
}

// Empty reports whether no rule can want anything of the project.
func (p *Project) Empty() bool { return len(p.rules) == 0 }

// Matches reports whether a rule may want something of the repository.
func (p *Project) Matches(repository string) bool {
	return slices.ContainsFunc(p.rules, func(c candidate) bool {
		return len(c.Repositories) == 0 || matchesAny(c.Repositories, repository)
	})
}

// Equal reports whether both give the same answers, for all that a comparison
// of the rules and the sites in question can tell.
func (p *Project) Equal(o *Project) bool {
	return slices.Equal(p.Project.Sites, o.Project.Sites) && slices.EqualFunc(p.rules, o.rules, func(a, b candidate) bool {
		return a.ID == b.ID && a.Version == b.Version && slices.Equal(a.refused, b.refused) &&
			slices.EqualFunc(a.sites, b.sites, func(x, y state.Site) bool {
				return x.Name == y.Name && (x.Away() == y.Away() || a.Copies == 0)
			})
	})
}

// NeedTags reports whether the answer can depend on a manifest's tags, and
// NeedLabels on its annotations: if not, a caller may save itself reading them.
func (p *Project) NeedTags() bool {
	return slices.ContainsFunc(p.rules, func(c candidate) bool { return len(c.Tags) > 0 })
}

// Teller keeps of a manifest's tags those that rules can tell apart: at most one for
// each rule, so that a manifest may have any number of them.
type Teller struct {
	rules []candidate // that none of tags matches yet
	tags  []string
}

// NewTeller makes one for the rules of some projects' records.
func NewTeller(ps ...*Project) *Teller {
	t := &Teller{}
	for _, p := range ps {
		for _, c := range p.rules {
			if len(c.Tags) > 0 {
				t.rules = append(t.rules, c)
			}
		}
	}
	return t
}

// Hear takes a tag, and reports whether others can still make a difference.
func (t *Teller) Hear(tag string) (more bool) {
	left := slices.DeleteFunc(t.rules, func(c candidate) bool { return matchesAny(c.Tags, tag) })
	if len(left) < len(t.rules) {
		t.rules, t.tags = left, append(t.tags, tag)
	}
	return len(t.rules) > 0
}

// Tags gives what was kept.
func (t *Teller) Tags() []string { return t.tags }

// NeedLabels is NeedTags for annotations.
func (p *Project) NeedLabels() bool {
	return slices.ContainsFunc(p.rules, func(c candidate) bool { return len(c.Labels) > 0 })
}

// LetsGo reports whether what was deleted in a repository is to go: there is a
// rule for the repository that follows deletions, and none that does not.
// (Which tags a deleted manifest had, nobody knows any more. So a rule that keeps
// some tags of a repository keeps all that rules placed there.)
func (p *Project) LetsGo(repository string) bool {
	found := false
	for _, c := range p.rules {
		if len(c.Repositories) > 0 && !matchesAny(c.Repositories, repository) {
			continue
		}
		if !c.FollowDeletions {
			return false
		}
		found = true
	}
	return found
}

// Wants reports whether any rule wants the artifact at the site.
func (p *Project) Wants(a Artifact, site string) bool {
	return slices.ContainsFunc(p.rules, func(c candidate) bool { return c.matches(a) && c.chooses(p.Project, a, site) })
}

// Sites gives all sites at which rules want the artifact, by name.
func (p *Project) Sites(a Artifact) []string {
	var out []string
	for _, c := range p.rules {
		if c.matches(a) {
			for _, s := range c.chosen(p.Project, a) {
				out = append(out, s.Name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Refused gives the sites that rules name for the artifact and where its project
// may not rest, by name.
func (p *Project) Refused(a Artifact) []string {
	var out []string
	for _, c := range p.rules {
		if c.matches(a) {
			out = append(out, c.refused...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Spares reports whether the site is in question for a rule that wants a number
// of copies of the artifact, and was not chosen.
func (p *Project) Spares(a Artifact, site string) bool {
	return !p.Wants(a, site) && slices.ContainsFunc(p.rules, func(c candidate) bool {
		return c.Copies > 0 && c.matches(a) && slices.ContainsFunc(c.sites, func(s state.Site) bool { return s.Name == site })
	})
}

// Demand gives the terms at which the artifact is wanted at the site; none if it
// is not.
func (p *Project) Demand(a Artifact, site string) Demand {
	var d Demand
	for _, c := range p.rules {
		if c.matches(a) && c.chooses(p.Project, a, site) {
			d.rules = append(d.rules, c.rule)
		}
	}
	return d
}

func (c *candidate) matches(a Artifact) bool {
	return (len(c.Repositories) == 0 || matchesAny(c.Repositories, a.Repository)) &&
		(len(c.Tags) == 0 || slices.ContainsFunc(a.Tags, func(t string) bool { return matchesAny(c.Tags, t) })) &&
		(len(c.Types) == 0 || slices.ContainsFunc(c.Types, func(t string) bool { return matchesType(t, a) })) &&
		!slices.ContainsFunc(c.Labels, func(l string) bool { return !matchesLabel(l, a.Labels) })
}

// chosen gives the sites at which the rule wants an artifact that it matches.
func (c *candidate) chosen(p state.Project, a Artifact) []state.Site {
	if c.Copies == 0 || c.Copies >= len(c.sites) {
		return c.sites
	}
	return Order(p, a.Repository, a.Home, c.sites)[:c.Copies]
}

// Order gives those of the sites where a project may rest, in the order in which
// they hold a number of copies of one of its repositories: home first, unless it
// is away.
func Order(p state.Project, repository, home string, sites []state.Site) []state.Site {
	ranked := make([]state.Site, 0, len(sites))
	rank := make(map[string]uint64, len(sites))
	for _, s := range sites {
		if p.Residence(s.Name).MayRest() {
			ranked = append(ranked, s)
			rank[s.Name] = weight(p, repository, s.Name)
		}
	}
	slices.SortFunc(ranked, func(x, y state.Site) int {
		return cmp.Or(
			last(x.Away(), y.Away()),
			last(x.Name != home, y.Name != home),
			cmp.Compare(rank[y.Name], rank[x.Name]),
			strings.Compare(x.Name, y.Name))
	})
	return ranked
}

func (c *candidate) chooses(p state.Project, a Artifact, site string) bool {
	in := func(s state.Site) bool { return s.Name == site }
	// Most rules want all of their sites: no list is made for them.
	return slices.ContainsFunc(c.sites, in) && (c.Copies == 0 || slices.ContainsFunc(c.chosen(p, a), in))
}

// last puts those behind for which it is true.
func last(x, y bool) int {
	switch {
	case x == y:
		return 0
	case x:
		return 1
	}
	return -1
}

// weight is the rendezvous of a repository with a site. It is for ever: another
// function would move all copies of every mesh.
func weight(p state.Project, repository, site string) uint64 {
	h := xxhash.New()
	_, _ = h.Write(p.PID[:])
	_, _ = h.WriteString(repository)
	_, _ = h.WriteString("\x00")
	_, _ = h.WriteString(site)
	return h.Sum64()
}

// matchesAny takes a malformed pattern as one that matches nothing.
func matchesAny(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
}

func matches(pattern, name string) bool {
	ok, err := doublestar.Match(pattern, name)
	return err == nil && ok
}

// Words for artifact types.
const (
	typeImage = "image"
	typeChart = "chart"
)

func matchesType(pattern string, a Artifact) bool {
	switch pattern {
	case typeImage:
		switch a.Type {
		case "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json":
			return true
		case "":
			return strings.HasPrefix(a.MediaType, "application/vnd.oci.image.") || strings.HasPrefix(a.MediaType, "application/vnd.docker.distribution.manifest.")
		}
		return false
	case typeChart:
		return a.Type == "application/vnd.cncf.helm.config.v1+json"
	}
	return matches(pattern, a.Type)
}

func matchesLabel(label string, have map[string]string) bool {
	key, pattern, valued := strings.Cut(label, "=")
	value, ok := have[key]
	return ok && (!valued || matches(pattern, value))
}

// Terms are those at which content may move now.
type Terms struct {
	// RuleID and Rule name the rule whose bandwidth counts. A site shares it among
	// all that comes for that rule.
	RuleID int64
	Rule   string
	// Priority: of two artifacts that wait, the higher goes first.
	Priority int
	// Bandwidth in bits per second; 0: no limit.
	Bandwidth uint64
}

// Demand is the rules that want one artifact at one site.
type Demand struct{ rules []*rule }

// None reports whether nothing is wanted.
func (d Demand) None() bool { return len(d.rules) == 0 }

// Rules names them, in their order.
func (d Demand) Rules() []string {
	out := make([]string, len(d.rules))
	for i, r := range d.rules {
		out[i] = r.Name
	}
	return out
}

// Without gives the demand of the rules that are not paused.
func (d Demand) Without(paused func(id int64) bool) Demand {
	var out Demand
	for i, r := range d.rules {
		switch {
		case !paused(r.ID):
			if out.rules != nil {
				out.rules = append(out.rules, r)
			}
		case out.rules == nil: // the first: most of the time there is none
			out.rules = append(make([]*rule, 0, len(d.rules)), d.rules[:i]...)
		}
	}
	if out.rules == nil {
		return d
	}
	return out
}

// At gives the terms at a time, and when they end (zero: never). open is false
// outside of all windows; then until is when the first one opens.
func (d Demand) At(now time.Time) (t Terms, open bool, until time.Time) {
	var best *rule
	for _, r := range d.rules {
		if next := r.windows.change(now); !next.IsZero() && (until.IsZero() || next.Before(until)) {
			until = next
		}
		if !r.windows.open(now) {
			continue
		}
		if best == nil || r.Bandwidth == 0 && best.Bandwidth != 0 || best.Bandwidth != 0 && r.Bandwidth > best.Bandwidth {
			best = r
		}
		if !open || r.Priority > t.Priority {
			t.Priority = r.Priority
		}
		open = true
	}
	if best != nil {
		t.RuleID, t.Rule, t.Bandwidth = best.ID, best.Name, best.Bandwidth
	}
	return t, open, until
}
