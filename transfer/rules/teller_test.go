package rules

import (
	"fmt"
	"slices"
	"testing"

	"github.com/portolan/portolan/consensus/state"
)

// However many tags a manifest has, no rule misses the one that it is for, and what
// is kept is as small as the rules.
func TestTeller_FindsTheTagAmongMany(t *testing.T) {
	set := Compile([]state.Rule{
		{ID: 1, Name: "releases", Projects: []string{"prod"}, Tags: []string{"v*"}, Sites: []string{"nyc"}},
		{ID: 2, Name: "last", Projects: []string{"prod"}, Tags: []string{"zz-last"}, Sites: []string{"sgp"}},
		{ID: 3, Name: "all", Projects: []string{"prod"}, Sites: []string{"fra"}},
	}, mesh())
	p := set.Project(state.Project{Name: "prod"})
	hears := func(tags []string) (kept []string, heard int) {
		tell := NewTeller(p, p)
		for _, tag := range tags {
			heard++
			if !tell.Hear(tag) {
				break
			}
		}
		return tell.Tags(), heard
	}
	var tags []string
	for i := range 100_000 {
		tags = append(tags, fmt.Sprintf("build-%d", i))
	}
	if kept, _ := hears(tags); len(kept) != 0 {
		t.Errorf("kept %d tags that no rule is for", len(kept))
	}
	kept, _ := hears(append(tags, "v1", "v2", "zz-last"))
	if !slices.Equal(kept, []string{"v1", "zz-last"}) {
		t.Errorf("kept %v", kept)
	}
	if got := p.Sites(Artifact{Repository: "app", Tags: kept}); !slices.Equal(got, []string{"fra", "nyc", "sgp"}) {
		t.Errorf("wanted at %v", got)
	}
	if _, heard := hears(append([]string{"v1", "zz-last"}, tags...)); heard != 2 {
		t.Errorf("%d tags were read, though 2 said it all", heard)
	}
}
