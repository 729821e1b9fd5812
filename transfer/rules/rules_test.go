package rules

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portolan/portolan/consensus/state"
)

// The table reads as documentation: one line is one question to the rules.
func TestSites(t *testing.T) {
	sites := []string{"fra", "nyc", "sgp"}
	all := []string{"fra", "nyc", "sgp"}
	everywhere := state.Rule{Name: "everywhere", Projects: []string{"prod"}, AllSites: true}
	off := everywhere
	off.Disabled = true

	for _, tc := range []struct {
		name    string
		rule    state.Rule
		project string
		rests   []string // residency of the project; nil: everywhere
		repo    string
		tags    []string
		want    []string
	}{
		{"a rule for a project takes every repository of it", everywhere, "prod", nil, "app", []string{"1.0"}, all},
		{"and what has no tag", everywhere, "prod", nil, "app", nil, all},
		{"and repositories with slashes", everywhere, "prod", nil, "team/app/web", nil, all},
		{"but not another project", everywhere, "production", nil, "app", []string{"1.0"}, nil},
		{"a disabled rule wants nothing", off, "prod", nil, "app", []string{"1.0"}, nil},

		{"a rule goes to the sites that it names", state.Rule{Projects: []string{"prod"}, Sites: []string{"sgp", "fra"}}, "prod", nil, "app", nil, []string{"fra", "sgp"}},
		{"a site that does not exist is nobody's", state.Rule{Projects: []string{"prod"}, Sites: []string{"lon"}}, "prod", nil, "app", nil, nil},
		{"a rule without sites wants nothing", state.Rule{Projects: []string{"prod"}}, "prod", nil, "app", nil, nil},
		{"a rule without projects wants nothing", state.Rule{AllSites: true}, "prod", nil, "app", nil, nil},

		{"* stands for a part of a project's name", state.Rule{Projects: []string{"team-*"}, AllSites: true}, "team-a", nil, "app", nil, all},
		{"** stands for every project", state.Rule{Projects: []string{"**"}, AllSites: true}, "library", nil, "alpine", nil, all},
		{"{a,b} are alternatives", state.Rule{Projects: []string{"{prod,stage}"}, AllSites: true}, "stage", nil, "app", nil, all},
		{"one of several patterns is enough", state.Rule{Projects: []string{"stage", "prod"}, AllSites: true}, "prod", nil, "app", nil, all},

		{"a repository by name", state.Rule{Projects: []string{"prod"}, Repositories: []string{"app"}, AllSites: true}, "prod", nil, "app", nil, all},
		{"is no other repository", state.Rule{Projects: []string{"prod"}, Repositories: []string{"app"}, AllSites: true}, "prod", nil, "apple", nil, nil},
		{"* stops at a slash", state.Rule{Projects: []string{"prod"}, Repositories: []string{"base/*"}, AllSites: true}, "prod", nil, "base/debian/slim", nil, nil},
		{"** does not", state.Rule{Projects: []string{"prod"}, Repositories: []string{"base/**"}, AllSites: true}, "prod", nil, "base/debian/slim", nil, all},

		{"a tag by pattern", state.Rule{Projects: []string{"prod"}, Tags: []string{"v*"}, AllSites: true}, "prod", nil, "app", []string{"v1.0"}, all},
		{"any of a manifest's tags", state.Rule{Projects: []string{"prod"}, Tags: []string{"v*"}, AllSites: true}, "prod", nil, "app", []string{"latest", "v1.0"}, all},
		{"no other tag", state.Rule{Projects: []string{"prod"}, Tags: []string{"v*"}, AllSites: true}, "prod", nil, "app", []string{"latest"}, nil},
		{"and then nothing without a tag", state.Rule{Projects: []string{"prod"}, Tags: []string{"*"}, AllSites: true}, "prod", nil, "app", nil, nil},

		{"residency is stronger than a rule", everywhere, "prod", []string{"fra", "nyc"}, "app", nil, []string{"fra", "nyc"}},
		{"also than a rule that names the site", state.Rule{Projects: []string{"prod"}, Sites: []string{"sgp"}}, "prod", []string{"fra"}, "app", nil, nil},
		{"a pattern that is no glob matches nothing", state.Rule{Projects: []string{"[prod"}, AllSites: true}, "prod", nil, "app", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Sites([]state.Rule{tc.rule}, state.Project{Name: tc.project, Sites: tc.rests}, tc.repo, tc.tags, sites)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("sites (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSites_AddUp(t *testing.T) {
	rules := []state.Rule{
		{Projects: []string{"prod"}, Tags: []string{"v*"}, Sites: []string{"nyc"}},
		{Projects: []string{"prod"}, Repositories: []string{"app"}, Sites: []string{"sgp"}},
	}
	got := Sites(rules, state.Project{Name: "prod"}, "app", []string{"v1"}, []string{"fra", "nyc", "sgp"})
	if diff := cmp.Diff([]string{"nyc", "sgp"}, got); diff != "" {
		t.Errorf("two rules add up (-want +got):\n%s", diff)
	}
}

func TestRelevant(t *testing.T) {
	rules := []state.Rule{
		{Name: "everywhere", Projects: []string{"prod"}, AllSites: true},
		{Name: "tags to nyc", Projects: []string{"*"}, Tags: []string{"v*"}, Sites: []string{"nyc"}},
		{Name: "off", Projects: []string{"prod"}, AllSites: true, Disabled: true},
		{Name: "other project", Projects: []string{"stage"}, AllSites: true},
	}
	names := func(rs []state.Rule) (out []string) {
		for _, r := range rs {
			out = append(out, r.Name)
		}
		return out
	}
	at := func(site string, rests ...string) []state.Rule {
		return Relevant(rules, state.Project{Name: "prod", Sites: rests}, site)
	}
	if diff := cmp.Diff([]string{"everywhere", "tags to nyc"}, names(at("nyc"))); diff != "" {
		t.Errorf("rules for nyc (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"everywhere"}, names(at("fra"))); diff != "" {
		t.Errorf("rules for fra (-want +got):\n%s", diff)
	}
	if got := at("fra", "nyc"); got != nil {
		t.Errorf("rules for a site where the project may not rest: %v", names(got))
	}
	if NeedTags(at("fra")) || !NeedTags(at("nyc")) {
		t.Error("only the second rule looks at tags")
	}
}

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name string
		rule state.Rule
		ok   bool
	}{
		{"a whole rule", state.Rule{Projects: []string{"prod"}, Repositories: []string{"base/**"}, Tags: []string{"v[0-9]*"}, AllSites: true}, true},
		{"no project", state.Rule{AllSites: true}, false},
		{"no site", state.Rule{Projects: []string{"prod"}}, false},
		{"an empty pattern", state.Rule{Projects: []string{""}, AllSites: true}, false},
		{"an open class", state.Rule{Projects: []string{"prod"}, Tags: []string{"[v"}, AllSites: true}, false},
		{"an open alternative", state.Rule{Projects: []string{"prod"}, Repositories: []string{"{a,b"}, AllSites: true}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := Check(tc.rule); (err == nil) != tc.ok {
				t.Errorf("Check: %v", err)
			}
		})
	}
}
