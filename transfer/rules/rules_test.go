package rules

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

// mesh has three sites; fra and nyc have labels.
func mesh() []state.Site {
	return []state.Site{
		{Name: "fra", Labels: map[string]string{"region": "eu", "tier": "core"}},
		{Name: "nyc", Labels: map[string]string{"region": "us", "gpu": ""}},
		{Name: "sgp"},
	}
}

// The table reads as documentation: one line is one question to the rules.
func TestSites(t *testing.T) {
	all := []string{"fra", "nyc", "sgp"}
	everywhere := state.Rule{Name: "everywhere", Projects: []string{"prod"}, AllSites: true}
	off := everywhere
	off.Disabled = true
	tags := func(t ...string) Artifact { return Artifact{Repository: "app", Tags: t} }
	repo := func(r string) Artifact { return Artifact{Repository: r} }
	typed := func(typ, media string) Artifact { return Artifact{Repository: "app", Type: typ, MediaType: media} }
	labelled := func(pairs ...string) Artifact {
		a := Artifact{Repository: "app", Labels: map[string]string{}}
		for _, p := range pairs {
			k, v, _ := strings.Cut(p, "=")
			a.Labels[k] = v
		}
		return a
	}
	to := func(r state.Rule) state.Rule {
		r.Projects = []string{"prod"}
		if len(r.Sites) == 0 && r.SiteLabels == "" {
			r.AllSites = true
		}
		return r
	}
	const index, image, helm = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.config.v1+json", "application/vnd.cncf.helm.config.v1+json"

	for _, tc := range []struct {
		name    string
		rule    state.Rule
		project string
		rests   []string // residency of the project; nil: everywhere
		what    Artifact
		want    []string
	}{
		{"a rule for a project takes every repository of it", everywhere, "prod", nil, tags("1.0"), all},
		{"and what has no tag", everywhere, "prod", nil, tags(), all},
		{"and repositories with slashes", everywhere, "prod", nil, repo("team/app/web"), all},
		{"but not another project", everywhere, "production", nil, tags("1.0"), nil},
		{"a disabled rule wants nothing", off, "prod", nil, tags("1.0"), nil},

		{"a rule goes to the sites that it names", to(state.Rule{Sites: []string{"sgp", "fra"}}), "prod", nil, tags(), []string{"fra", "sgp"}},
		{"a site that does not exist is nobody's", to(state.Rule{Sites: []string{"lon"}}), "prod", nil, tags(), nil},
		{"a rule without sites wants nothing", state.Rule{Projects: []string{"prod"}}, "prod", nil, tags(), nil},
		{"a rule without projects wants nothing", state.Rule{AllSites: true}, "prod", nil, tags(), nil},

		{"* stands for a part of a project's name", state.Rule{Projects: []string{"team-*"}, AllSites: true}, "team-a", nil, tags(), all},
		{"** stands for every project", state.Rule{Projects: []string{"**"}, AllSites: true}, "library", nil, tags(), all},
		{"{a,b} are alternatives", state.Rule{Projects: []string{"{prod,stage}"}, AllSites: true}, "stage", nil, tags(), all},
		{"one of several patterns is enough", state.Rule{Projects: []string{"stage", "prod"}, AllSites: true}, "prod", nil, tags(), all},

		{"a repository by name", to(state.Rule{Repositories: []string{"app"}}), "prod", nil, repo("app"), all},
		{"is no other repository", to(state.Rule{Repositories: []string{"app"}}), "prod", nil, repo("apple"), nil},
		{"* stops at a slash", to(state.Rule{Repositories: []string{"base/*"}}), "prod", nil, repo("base/debian/slim"), nil},
		{"** does not", to(state.Rule{Repositories: []string{"base/**"}}), "prod", nil, repo("base/debian/slim"), all},
		{"? is one sign", to(state.Rule{Repositories: []string{"app?"}}), "prod", nil, repo("app1"), all},
		{"[^a] is any other", to(state.Rule{Repositories: []string{"app[^1]"}}), "prod", nil, repo("app1"), nil},

		{"a tag by pattern", to(state.Rule{Tags: []string{"v*"}}), "prod", nil, tags("v1.0"), all},
		{"any of a manifest's tags", to(state.Rule{Tags: []string{"v*"}}), "prod", nil, tags("latest", "v1.0"), all},
		{"no other tag", to(state.Rule{Tags: []string{"v*"}}), "prod", nil, tags("latest"), nil},
		{"and then nothing without a tag", to(state.Rule{Tags: []string{"*"}}), "prod", nil, tags(), nil},

		{"a type by word: images", to(state.Rule{Types: []string{"image"}}), "prod", nil, typed(image, "application/vnd.oci.image.manifest.v1+json"), all},
		{"and their indexes", to(state.Rule{Types: []string{"image"}}), "prod", nil, typed("", index), all},
		{"a chart is no image", to(state.Rule{Types: []string{"image"}}), "prod", nil, typed(helm, ""), nil},
		{"charts", to(state.Rule{Types: []string{"chart"}}), "prod", nil, typed(helm, ""), all},
		{"a type by pattern", to(state.Rule{Types: []string{"application/vnd.cncf.*"}}), "prod", nil, typed(helm, ""), all},
		{"one of several types is enough", to(state.Rule{Types: []string{"image", "chart"}}), "prod", nil, typed(helm, ""), all},
		{"an unknown word is no type", to(state.Rule{Types: []string{"picture"}}), "prod", nil, typed(image, ""), nil},

		{"a label by key", to(state.Rule{Labels: []string{"team"}}), "prod", nil, labelled("team=web"), all},
		{"and by value", to(state.Rule{Labels: []string{"team=w*"}}), "prod", nil, labelled("team=web"), all},
		{"no other value", to(state.Rule{Labels: []string{"team=w*"}}), "prod", nil, labelled("team=db"), nil},
		{"all labels must match", to(state.Rule{Labels: []string{"team", "stage=prod"}}), "prod", nil, labelled("team=web"), nil},
		{"and they do", to(state.Rule{Labels: []string{"team", "stage=prod"}}), "prod", nil, labelled("team=web", "stage=prod"), all},
		{"all kinds of filters must match", to(state.Rule{Repositories: []string{"app"}, Tags: []string{"v*"}, Types: []string{"chart"}}), "prod", nil, tags("v1"), nil},

		{"sites by their labels", to(state.Rule{SiteLabels: "region=eu"}), "prod", nil, tags(), []string{"fra"}},
		{"by any of some values", to(state.Rule{SiteLabels: "region in (eu,us)"}), "prod", nil, tags(), []string{"fra", "nyc"}},
		{"by a key alone", to(state.Rule{SiteLabels: "gpu"}), "prod", nil, tags(), []string{"nyc"}},
		{"by a key that is not there", to(state.Rule{SiteLabels: "!gpu"}), "prod", nil, tags(), []string{"fra", "sgp"}},
		{"a site without the key is not of that value", to(state.Rule{SiteLabels: "region!=eu"}), "prod", nil, tags(), []string{"nyc", "sgp"}},
		{"nor of one of some", to(state.Rule{SiteLabels: "region notin (eu, asia)"}), "prod", nil, tags(), []string{"nyc", "sgp"}},
		{"all conditions must hold", to(state.Rule{SiteLabels: "region in (eu,us), tier=core"}), "prod", nil, tags(), []string{"fra"}},
		{"labels that no site has are nobody's", to(state.Rule{SiteLabels: "region=mars"}), "prod", nil, tags(), nil},
		{"an expression that is none wants nothing", to(state.Rule{SiteLabels: "region in eu"}), "prod", nil, tags(), nil},

		{"residency is stronger than a rule", everywhere, "prod", []string{"fra", "nyc"}, tags(), []string{"fra", "nyc"}},
		{"also than a rule that names the site", to(state.Rule{Sites: []string{"sgp"}}), "prod", []string{"fra"}, tags(), nil},
		{"and than labels", to(state.Rule{SiteLabels: "region in (eu,us)"}), "prod", []string{"nyc", "sgp"}, tags(), []string{"nyc"}},
		{"a pattern that is no glob matches nothing", state.Rule{Projects: []string{"[prod"}, AllSites: true}, "prod", nil, tags(), nil},
		{"a window says when, not what", to(state.Rule{Windows: []string{"Mon 01:00-02:00 UTC"}}), "prod", nil, tags(), all},
		{"a window that is none wants nothing", to(state.Rule{Windows: []string{"at night"}}), "prod", nil, tags(), nil},

		{"one copy stays where it was pushed", to(state.Rule{Copies: 1}), "prod", nil, Artifact{Repository: "app", Home: "nyc"}, []string{"nyc"}},
		{"as many copies as sites are all", to(state.Rule{Copies: 3}), "prod", nil, Artifact{Repository: "app", Home: "nyc"}, all},
		{"more than that, too", to(state.Rule{Copies: 9}), "prod", nil, Artifact{Repository: "app", Home: "nyc"}, all},
		{"copies are among the sites where the project may rest", to(state.Rule{Copies: 2}), "prod", []string{"fra", "sgp"}, Artifact{Repository: "app", Home: "fra"}, []string{"fra", "sgp"}},
		{"a home that the rule does not name is none of them", to(state.Rule{Sites: []string{"fra"}, Copies: 1}), "prod", nil, Artifact{Repository: "app", Home: "nyc"}, []string{"fra"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := Compile([]state.Rule{tc.rule}, mesh()).Project(state.Project{Name: tc.project, Sites: tc.rests})
			got := p.Sites(tc.what)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("sites (-want +got):\n%s", diff)
			}
			for _, s := range mesh() {
				at := p.At(s.Name)
				want := slices.Contains(tc.want, s.Name)
				if p.Wants(tc.what, s.Name) != want || at.Wants(tc.what, s.Name) != want || at.Demand(tc.what, s.Name).None() == want {
					t.Errorf("site %s alone comes to another answer", s.Name)
				}
			}
		})
	}
}

func TestSites_AddUp(t *testing.T) {
	rules := []state.Rule{
		{Projects: []string{"prod"}, Tags: []string{"v*"}, Sites: []string{"nyc"}},
		{Projects: []string{"prod"}, Repositories: []string{"app"}, Sites: []string{"sgp"}},
	}
	got := Compile(rules, mesh()).Project(state.Project{Name: "prod"}).Sites(Artifact{Repository: "app", Tags: []string{"v1"}})
	if diff := cmp.Diff([]string{"nyc", "sgp"}, got); diff != "" {
		t.Errorf("two rules add up (-want +got):\n%s", diff)
	}
}

// many is a mesh of n sites.
func many(n int) []state.Site {
	var out []state.Site
	for i := range n {
		out = append(out, state.Site{Name: fmt.Sprintf("s%02d", i)})
	}
	return out
}

// placed is where two copies of each of a thousand repositories are.
func placed(sites []state.Site) map[string][]string {
	p := Compile([]state.Rule{{Projects: []string{"prod"}, AllSites: true, Copies: 2}}, sites).
		Project(state.Project{Name: "prod", PID: identity.ProjectID{7}})
	out := map[string][]string{}
	for i := range 1000 {
		repo := fmt.Sprint("app", i)
		out[repo] = p.Sites(Artifact{Repository: repo, Home: "elsewhere"})
	}
	return out
}

// moved counts copies of after that are not in before.
func moved(before, after map[string][]string) (n int) {
	for repo, sites := range after {
		for _, s := range sites {
			if !slices.Contains(before[repo], s) {
				n++
			}
		}
	}
	return n
}

func TestCopies_AreSpreadAndStay(t *testing.T) {
	ten := many(10)
	before := placed(ten)
	share := map[string]int{}
	for repo, sites := range before {
		if len(sites) != 2 {
			t.Fatalf("%s is at %v, want two sites", repo, sites)
		}
		share[sites[0]]++
		share[sites[1]]++
	}
	for site, n := range share {
		if n < 140 || n > 260 { // 200 ± 4.5 standard deviations
			t.Errorf("%s has %d of 2000 copies", site, n)
		}
	}
	// A site more takes its share of 2000/11 and no copy moves otherwise.
	more := placed(many(11))
	if n := moved(before, more); n != len(withSite(more, "s10")) {
		t.Errorf("a new site moved %d copies, and has %d", n, len(withSite(more, "s10")))
	}
	// A site less: what it had goes elsewhere, and nothing else.
	if n := moved(before, placed(ten[:9])); n != share["s09"] {
		t.Errorf("a removed site moved %d copies, and had %d", n, share["s09"])
	}
	// The same for one that is away; when it is back, all is as before.
	away := slices.Clone(ten)
	away[9].AwayAt = away[9].AwayAt.AddDate(2020, 0, 0)
	gone := placed(away)
	if n := moved(before, gone); n != share["s09"] || len(withSite(gone, "s09")) != 0 {
		t.Errorf("a site that is away moved %d copies, had %d, and has %d", n, share["s09"], len(withSite(gone, "s09")))
	}
	if diff := cmp.Diff(before, placed(ten)); diff != "" {
		t.Errorf("back again: %s", diff)
	}
}

func withSite(at map[string][]string, site string) (out []string) {
	for repo, sites := range at {
		if slices.Contains(sites, site) {
			out = append(out, repo)
		}
	}
	return out
}

func TestCopies_CountTheHomeUnlessItIsAway(t *testing.T) {
	sites := many(4)
	rule := []state.Rule{{Projects: []string{"prod"}, AllSites: true, Copies: 2}}
	at := func(home string) []string {
		return Compile(rule, sites).Project(state.Project{Name: "prod"}).Sites(Artifact{Repository: "app", Home: home})
	}
	for _, s := range sites {
		if got := at(s.Name); len(got) != 2 || !slices.Contains(got, s.Name) {
			t.Errorf("pushed at %s: copies at %v", s.Name, got)
		}
	}
	sites[1].AwayAt = sites[1].AwayAt.AddDate(2020, 0, 0)
	if got := at("s01"); len(got) != 2 || slices.Contains(got, "s01") {
		t.Errorf("the home is away: copies at %v", got)
	}
	// Everybody is away: a rule goes on wanting what it wants.
	for i := range sites {
		sites[i].AwayAt = sites[1].AwayAt
	}
	if got := at("s01"); len(got) != 2 {
		t.Errorf("all are away: copies at %v", got)
	}
}

// The weights are for ever: another function would move all copies.
func TestCopies_NeverMoveWithAVersion(t *testing.T) {
	p := state.Project{Name: "prod", PID: identity.ProjectID{1, 2, 3}}
	var got []string
	for _, repo := range []string{"app", "team/web", "base"} {
		c := candidate{rule: &rule{Rule: state.Rule{Copies: 3}}, sites: many(6)}
		for _, s := range c.chosen(p, Artifact{Repository: repo}) {
			got = append(got, s.Name)
		}
	}
	if diff := cmp.Diff(strings.Fields("s01 s02 s03 s02 s03 s01 s03 s02 s05"), got); diff != "" {
		t.Errorf("other sites than ever before (-want +got):\n%s", diff)
	}
}

func TestProject_At(t *testing.T) {
	set := Compile([]state.Rule{
		{ID: 1, Name: "everywhere", Projects: []string{"prod"}, AllSites: true},
		{ID: 2, Name: "tags to nyc", Projects: []string{"*"}, Tags: []string{"v*"}, Sites: []string{"nyc"}},
		{ID: 3, Name: "off", Projects: []string{"prod"}, AllSites: true, Disabled: true},
		{ID: 4, Name: "other project", Projects: []string{"stage"}, AllSites: true},
	}, mesh())
	at := func(site string, rests ...string) *Project {
		return set.Project(state.Project{Name: "prod", Sites: rests}).At(site)
	}
	names := func(p *Project) (out []string) {
		for _, c := range p.rules {
			out = append(out, c.Name)
		}
		return out
	}
	if diff := cmp.Diff([]string{"everywhere", "tags to nyc"}, names(at("nyc"))); diff != "" {
		t.Errorf("rules for nyc (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"everywhere"}, names(at("fra"))); diff != "" {
		t.Errorf("rules for fra (-want +got):\n%s", diff)
	}
	if got := at("fra", "nyc"); !got.Empty() {
		t.Errorf("rules for a site where the project may not rest: %v", names(got))
	}
	if at("fra").NeedTags() || !at("nyc").NeedTags() {
		t.Error("only the second rule looks at tags")
	}
	refused := set.Project(state.Project{Name: "prod", Sites: []string{"fra"}}).Refused(Artifact{Repository: "app"})
	if diff := cmp.Diff([]string{"nyc", "sgp"}, refused); diff != "" {
		t.Errorf("sites that residency refuses (-want +got):\n%s", diff)
	}
}

func TestProject_EqualTellsWhatMatters(t *testing.T) {
	rule := state.Rule{ID: 1, Version: 1, Projects: []string{"prod"}, AllSites: true, Copies: 2}
	of := func(r state.Rule, sites []state.Site) *Project {
		return Compile([]state.Rule{r}, sites).Project(state.Project{Name: "prod"})
	}
	before := of(rule, mesh())
	if !before.Equal(of(rule, mesh())) {
		t.Error("the same rule at the same sites is another")
	}
	newer := rule
	newer.Version = 2
	away := mesh()
	away[1].AwayAt = away[1].AwayAt.AddDate(2020, 0, 0)
	for what, after := range map[string]*Project{"an edit": of(newer, mesh()), "a site less": of(rule, mesh()[:2]), "a site that is away": of(rule, away)} {
		if before.Equal(after) {
			t.Errorf("%s makes no difference", what)
		}
	}
	// What is at all sites is so whoever is away: nobody looks again.
	rule.Copies = 0
	if !of(rule, mesh()).Equal(of(rule, away)) {
		t.Error("a rule for all sites changes when one is away")
	}
}

func TestDemand_Terms(t *testing.T) {
	night := "daily 22:00-06:00 UTC"
	a := Artifact{Repository: "app"}
	for _, tc := range []struct {
		name  string
		rules []state.Rule
		at    string
		want  string
	}{
		{"no window is always", []state.Rule{{ID: 1}}, "12:00", "open, rule 1, priority 0, 0 bit/s, for ever"},
		{"outside of the window", []state.Rule{{ID: 1, Windows: []string{night}}}, "12:00", "closed until 22:00"},
		{"inside", []state.Rule{{ID: 1, Priority: 3, Bandwidth: 5e6, Windows: []string{night}}}, "23:00", "open, rule 1, priority 3, 5000000 bit/s, until 06:00"},
		{"of two rules, no limit goes before a limit", []state.Rule{{ID: 1, Bandwidth: 5e6}, {ID: 2}}, "12:00", "open, rule 2, priority 0, 0 bit/s, for ever"},
		{"and the higher limit before the lower", []state.Rule{{ID: 1, Bandwidth: 5e6}, {ID: 2, Bandwidth: 9e6}}, "12:00", "open, rule 2, priority 0, 9000000 bit/s, for ever"},
		{"slow by day, fast at night: by day", []state.Rule{{ID: 1, Bandwidth: 5e6, Priority: 2}, {ID: 2, Windows: []string{night}}}, "12:00", "open, rule 1, priority 2, 5000000 bit/s, until 22:00"},
		{"and at night", []state.Rule{{ID: 1, Bandwidth: 5e6, Priority: 2}, {ID: 2, Windows: []string{night}}}, "22:00", "open, rule 2, priority 2, 0 bit/s, until 06:00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i := range tc.rules {
				tc.rules[i].Projects, tc.rules[i].AllSites = []string{"prod"}, true
			}
			terms, open, until := Compile(tc.rules, mesh()).Project(state.Project{Name: "prod"}).Demand(a, "fra").At(clock("2026-03-04 " + tc.at))
			got := fmt.Sprintf("open, rule %d, priority %d, %d bit/s, ", terms.RuleID, terms.Priority, terms.Bandwidth)
			if !open {
				got = "closed "
			}
			if until.IsZero() {
				got += "for ever"
			} else {
				got += "until " + until.Format("15:04")
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestProject_LetsGo(t *testing.T) {
	follow := state.Rule{Projects: []string{"prod"}, AllSites: true, FollowDeletions: true}
	keep := state.Rule{Projects: []string{"prod"}, Repositories: []string{"base"}, Tags: []string{"v*"}, Sites: []string{"sgp"}}
	p := Compile([]state.Rule{follow, keep}, mesh()).Project(state.Project{Name: "prod"})
	for _, tc := range []struct {
		name, repository, site string
		want                   bool
	}{
		{"a rule that follows", "base", "fra", true},
		{"one that keeps is enough, where it holds", "base", "sgp", false},
		{"and for what it holds", "app", "sgp", true},
	} {
		if got := p.At(tc.site).LetsGo(tc.repository); got != tc.want {
			t.Errorf("%s: lets go of %s at %s: %v", tc.name, tc.repository, tc.site, got)
		}
	}
	if Compile(nil, mesh()).Project(state.Project{Name: "prod"}).LetsGo("app") {
		t.Error("without a rule what is there stays")
	}
}

func TestCheck(t *testing.T) {
	good := func(change func(*state.Rule)) state.Rule {
		r := state.Rule{Name: "r", Projects: []string{"prod"}, AllSites: true}
		change(&r)
		return r
	}
	for _, tc := range []struct {
		name string
		rule state.Rule
		want []string // field: part of the message
	}{
		{"a whole rule", good(func(r *state.Rule) {
			*r = state.Rule{Projects: []string{"prod", "team-{a,b}"}, Repositories: []string{"base/**"}, Tags: []string{"v[0-9]*", "V1"}, Types: []string{"image", "application/vnd.cncf.*"},
				Labels: []string{"team=web*", "org.opencontainers.image.vendor"}, SiteLabels: "region in (eu,us),!gpu", Copies: 2, Priority: -3,
				Windows: []string{"Mon-Fri 22:00-06:00 Europe/Berlin", "Sat,Sun 00:00-24:00 UTC"}, Bandwidth: 20e6}
		}), nil},
		{"no project", good(func(r *state.Rule) { r.Projects = nil }), []string{"projects: names no project"}},
		{"no site", good(func(r *state.Rule) { r.AllSites = false }), []string{"sites: names no site"}},
		{"an empty pattern", good(func(r *state.Rule) { r.Projects = []string{""} }), []string{`projects: "" is not a project pattern`}},
		{"an open class", good(func(r *state.Rule) { r.Tags = []string{"[v"} }), []string{"tags: is not a tag pattern"}},
		{"an open alternative", good(func(r *state.Rule) { r.Repositories = []string{"{a,b"} }), []string{"repositories: is not a repository pattern"}},
		{"a project with a slash", good(func(r *state.Rule) { r.Projects = []string{"prod/app"} }), []string{`projects: can match no project ever: no project's name has "/" in it`}},
		{"capital letters", good(func(r *state.Rule) { r.Repositories = []string{"App*"} }), []string{`repositories: "App*" can match no repository ever`}},
		{"a tag with a plus", good(func(r *state.Rule) { r.Tags = []string{"1.0+build"} }), []string{`tags: no tag's name has "+" in it`}},
		{"a class may have anything", good(func(r *state.Rule) { r.Projects = []string{"[A-Za-z]*", "**/x", "x/**"} }), nil},
		{"a label without a key", good(func(r *state.Rule) { r.Labels = []string{"=web"} }), []string{`labels: "=web" is not a label`}},
		{"an expression that is none", good(func(r *state.Rule) { r.AllSites, r.SiteLabels = false, "region in eu" }), []string{"site_labels: is not a condition"}},
		{"an empty condition", good(func(r *state.Rule) { r.AllSites, r.SiteLabels = false, "region=eu," }), []string{"site_labels: is not a condition"}},
		{"more copies than sites", good(func(r *state.Rule) { r.AllSites, r.Sites, r.Copies = false, []string{"fra"}, 2 }), []string{"copies: 2 copies need 2 sites, and the rule names 1"}},
		{"an empty window", good(func(r *state.Rule) { r.Windows = []string{"daily 22:00-22:00 UTC"} }), []string{`windows: "22:00-22:00" is an empty window`}},
		{"another one", good(func(r *state.Rule) { r.Windows = []string{"daily 24:00-00:00 UTC"} }), []string{"windows: is an empty window"}},
		{"no time", good(func(r *state.Rule) { r.Windows = []string{"daily 25:00-26:00 UTC"} }), []string{`windows: "25:00" is not a time of the day`}},
		{"no day", good(func(r *state.Rule) { r.Windows = []string{"weekend 22:00-23:00 UTC"} }), []string{`windows: "weekend" names no days`}},
		{"no zone", good(func(r *state.Rule) { r.Windows = []string{"daily 22:00-23:00 Mars/North"} }), []string{`windows: "Mars/North" is not a time zone`}},
		{"a zone that differs", good(func(r *state.Rule) { r.Windows = []string{"daily 22:00-23:00 Local"} }), []string{"windows: is another time at every site"}},
		{"no window", good(func(r *state.Rule) { r.Windows = []string{"at night"} }), []string{`windows: "at night" is not a window`}},
		{"a trickle", good(func(r *state.Rule) { r.Bandwidth = 20 }), []string{"bandwidth: 20 bits per second are too few"}},
		{"all of it at once", state.Rule{Tags: []string{"["}, Windows: []string{"x"}}, []string{"projects: ", "tags: ", "sites: ", "windows: "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Check(tc.rule)
			if len(got) != len(tc.want) {
				t.Fatalf("%v, want %v", got, tc.want)
			}
			for i, want := range tc.want {
				field, part, _ := strings.Cut(want, ": ")
				if got[i].Field != field || !strings.Contains(got[i].Message, part) {
					t.Errorf("%+v, want %s", got[i], want)
				}
			}
		})
	}
}
