package main

import (
	"strings"
	"testing"

	"github.com/portolan/portolan/registryapi/mesh"
)

// TestShowNeverLeft: an all-clear only if it is one.
func TestShowNeverLeft(t *testing.T) {
	const allClear = "are at other sites"
	some := []mesh.LastCopy{{Repository: "prod/app"}}
	for name, c := range map[string]struct {
		removal mesh.Removal
		want    string
		clear   bool
	}{
		"all asked, nothing missing": {mesh.Removal{NeverLeft: &mesh.NeverLeft{Heard: []string{"fra", "nyc"}}}, "All pushes and deletes that it told fra, nyc of", true},
		"some missing":               {mesh.Removal{NeverLeft: &mesh.NeverLeft{Requests: 3, Projects: 2, Heard: []string{"fra"}}}, "at most 3 pushes and deletes, in 2 projects", false},
		"nobody heard of any":        {mesh.Removal{NeverLeft: &mesh.NeverLeft{}}, "is not known", false},
		"one did not answer":         {mesh.Removal{NeverLeft: &mesh.NeverLeft{Heard: []string{"fra"}, Silent: []string{"nyc"}}}, "It may have told nyc of more", false},
		"some content is gone":       {mesh.Removal{LastCopies: some, NeverLeft: &mesh.NeverLeft{Heard: []string{"fra"}}}, "No push or delete that it told fra of", false},
		"a project cannot be judged": {mesh.Removal{Unseen: []mesh.Unseen{{Project: "own"}}, NeverLeft: &mesh.NeverLeft{Heard: []string{"fra"}}}, "No push or delete that it told fra of", false},
		"it was not lost":            {mesh.Removal{}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			showRemoval(&out, c.removal)
			if got := out.String(); !strings.Contains(got, c.want) || strings.Contains(got, allClear) != c.clear {
				t.Errorf("%q is not there, or the all-clear is %t, in\n%s", c.want, c.clear, got)
			}
		})
	}
}
