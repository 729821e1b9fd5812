package mesh

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portolan/portolan/registryapi/rest"
)

// wholeRule says all that a rule can say.
const wholeRule = `{"name":"whole","projects":["prod","team-*"],"repositories":["app/**"],"tags":["v*"],"types":["image"],"labels":["team=web*"],
	"site_labels":"region in (eu,us)","copies":2,"priority":5,"windows":["Mon-Fri 22:00-06:00 Europe/Berlin"],"bandwidth":20000000,"follow_deletions":true,"disabled":true}`

func TestRules_EveryField(t *testing.T) {
	f := newFixture(t)
	made := decode[Rule](f, f.want(201, "admin", "POST", "/rules", wholeRule))
	got := decode[Rule](f, f.want(200, "admin", "GET", "/rules/whole", ""))
	want := Rule{ID: made.ID, Name: "whole", Projects: []string{"prod", "team-*"}, Repositories: []string{"app/**"}, Tags: []string{"v*"}, Types: []string{"image"},
		Labels: []string{"team=web*"}, Sites: []string{}, SiteLabels: "region in (eu,us)", Copies: 2, Priority: 5, Windows: []string{"Mon-Fri 22:00-06:00 Europe/Berlin"},
		Bandwidth: 20_000_000, FollowDeletions: true, Disabled: true, Version: 1, CreatedAt: made.CreatedAt}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the rule (-want +got):\n%s", diff)
	}
	// A change replaces all of it: what is not said is not there any more.
	up := decode[Rule](f, f.want(200, "admin", "PUT", "/rules/whole", `{"name":"whole","projects":["prod"],"sites":["nyc","sgp"],"copies":1,"resource_version":1}`))
	want = Rule{ID: made.ID, Name: "whole", Projects: []string{"prod"}, Repositories: []string{}, Tags: []string{}, Types: []string{}, Labels: []string{},
		Sites: []string{"nyc", "sgp"}, Copies: 1, Windows: []string{}, Version: 2, CreatedAt: made.CreatedAt}
	if diff := cmp.Diff(want, up); diff != "" {
		t.Errorf("the changed rule (-want +got):\n%s", diff)
	}
}

func TestRules_AllThatIsWrongIsSaidAtOnce(t *testing.T) {
	f := newFixture(t)
	for _, path := range []string{"/rules", "/rules/preview"} {
		answer := f.want(400, "admin", "POST", path, `{"name":"bad","projects":["Prod"],"tags":["[v"],"site_labels":"region in eu","windows":["daily 22:00-22:00 UTC"],"bandwidth":1}`)
		var got rest.Failures
		if err := json.Unmarshal([]byte(answer.Body), &got); err != nil {
			t.Fatal(err)
		}
		var fields []string
		for _, e := range got.Errors {
			fields = append(fields, e.Field)
			if e.Code != rest.CodeBadRequest || e.Message == "" {
				t.Errorf("%+v", e)
			}
		}
		if want := "projects tags site_labels windows bandwidth"; strings.Join(fields, " ") != want {
			t.Errorf("%s: fields %v, want %s", path, fields, want)
		}
	}
	f.want(400, "admin", "POST", "/rules", `{"name":"both","projects":["*"],"sites":["nyc"],"site_labels":"region"}`)
	f.want(400, "admin", "POST", "/rules", `{"name":"none","projects":["*"]}`)
	f.want(422, "admin", "POST", "/rules", `{"name":"many","projects":["*"],"sites":["all"],"copies":1001}`)
}

func TestRules_Preview(t *testing.T) {
	f := newFixture(t)
	f.preview = Preview{Matched: 3, Artifacts: 2, Looked: 5, Sites: []PreviewSite{{Site: "sgp", Artifacts: 2, Blobs: 4, Bytes: 100}}}
	got := decode[Preview](f, f.want(200, "admin", "POST", "/rules/preview", `{"name":"new","projects":["prod"],"sites":["sgp"]}`))
	if diff := cmp.Diff(Preview{Matched: 3, Artifacts: 2, Looked: 5, Sites: f.preview.Sites, Names: []string{}, Unseen: []Unseen{}}, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if q := f.previewed; q.Rule.ID != 0 || q.Rule.Sites[0] != "sgp" || q.Names != previewNames || q.For != previewFor {
		t.Errorf("asked for %+v", q)
	}
	if n := len(decode[[]Rule](f, f.want(200, "admin", "GET", "/rules", ""))); n != 0 {
		t.Errorf("a preview made %d rules", n)
	}
	r := decode[Rule](f, f.want(201, "admin", "POST", "/rules", `{"name":"old","projects":["prod"],"sites":["sgp"]}`))
	f.want(200, "admin", "POST", "/rules/preview", `{"name":"old","projects":["prod"],"sites":["all"],"replaces":"old","show":7}`)
	if q := f.previewed; q.Rule.ID != r.ID || !q.Rule.AllSites || q.Names != 7 {
		t.Errorf("asked for %+v", q)
	}
	f.want(404, "admin", "POST", "/rules/preview", `{"name":"x","projects":["prod"],"sites":["sgp"],"replaces":"none"}`)
	f.want(404, "admin", "POST", "/rules/preview", `{"name":"x","projects":["prod"],"sites":["mars"]}`)
	f.want(401, "", "POST", "/rules/preview", `{"name":"x","projects":["prod"],"sites":["sgp"]}`)
}

func TestSites_Labels(t *testing.T) {
	f := newFixture(t)
	before := decode[Site](f, f.want(200, "admin", "GET", "/sites/nyc", ""))
	got := decode[Site](f, f.want(200, "admin", "POST", "/sites/nyc/labels", `{"set":{"region":"us","gpu":""}}`))
	if diff := cmp.Diff(map[string]string{"region": "us", "gpu": ""}, got.Labels); diff != "" || got.Version != before.Version+1 {
		t.Errorf("version %d, labels %s", got.Version, diff)
	}
	got = decode[Site](f, f.want(200, "admin", "POST", "/sites/nyc/labels", `{"remove":["gpu"],"set":{"tier":"core"}}`))
	if diff := cmp.Diff(map[string]string{"region": "us", "tier": "core"}, got.Labels); diff != "" {
		t.Errorf("labels %s", diff)
	}
	f.want(409, "admin", "POST", "/sites/nyc/labels", `{"set":{"region":"eu"},"resource_version":1}`)
	f.want(400, "admin", "POST", "/sites/nyc/labels", `{"set":{"re gion":"eu"}}`)
	f.want(404, "admin", "POST", "/sites/mars/labels", `{"set":{"region":"eu"}}`)
	f.want(401, "", "POST", "/sites/nyc/labels", `{"set":{"region":"eu"}}`)
}

func TestWait_Wanted(t *testing.T) {
	f := newFixture(t)
	d := f.mesh.Push(f.catalog, "library", "app", "x", "1")
	f.placement.set("fra", Presence{Reachable: true, Complete: true, Covered: true, TagDigest: d})
	f.placement.set("nyc", Presence{Reachable: true, Spare: true})
	f.placement.set("sgp", Presence{Reachable: true, Complete: true, Covered: true, TagDigest: d})
	got := decode[Wait](f, f.want(200, "admin", "GET", "/wait?image=library/app:1&sites=wanted&for=0s", ""))
	if !got.Done || len(got.Sites) != 2 || len(got.Uncovered) != 0 {
		t.Errorf("two sites are to have it, and have it: %+v", got)
	}
	// At all of them it will never be.
	got = decode[Wait](f, f.want(200, "admin", "GET", "/wait?image=library/app:1&sites=all&for=0s", ""))
	if got.Done || len(got.Uncovered) != 1 || got.Uncovered[0] != "nyc" {
		t.Errorf("a spare site never gets it: %+v", got)
	}
	f.placement.set("fra", Presence{Reachable: true})
	f.placement.set("sgp", Presence{Reachable: true})
	if got := decode[Wait](f, f.want(200, "admin", "GET", "/wait?image=library/app:1&sites=wanted&for=0s", "")); got.Done {
		t.Errorf("nobody is to have it, and it is done: %+v", got)
	}
}
