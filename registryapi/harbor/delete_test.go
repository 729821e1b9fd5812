package harbor

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
)

// TestDeleteProject_AsksTheOthers: what is not in this site's catalogue may be at
// another one.
func TestDeleteProject_AsksTheOthers(t *testing.T) {
	f := newFixture(t)
	var silent []string
	pushed := false
	var err error
	f.api, err = New(Config{View: f.mesh.State.View, Replica: f.mesh, Proposer: f.mesh, Access: f.mesh.Access, Catalog: f.catalog, Version: "test", Logger: slog.New(slog.DiscardHandler),
		Site: f.mesh.Site, Refresh: func(context.Context, identity.ProjectID) ([]string, error) {
			if pushed {
				f.mesh.Push(f.catalog, "far", "app", "x", "1")
			}
			return silent, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	where := f.want(201, "", "bob", "POST", "/api/v2.0/projects", `{"project_name":"far"}`).Header.Get("Location")
	silent = []string{"sgp"}
	if a := f.want(503, "UNAVAILABLE", "bob", "DELETE", where, ""); !strings.Contains(a.Body, "may have repositories at site sgp, which does not answer") || a.Header.Get("Retry-After") == "" {
		t.Errorf("a silent site: %s", a.Body)
	}
	silent, pushed = nil, true
	if a := f.want(412, "PRECONDITION", "bob", "DELETE", where, ""); !strings.Contains(a.Body, "far/app") {
		t.Errorf("an image that came from elsewhere: %s", a.Body)
	}
	f.want(200, "", "bob", "GET", where, "")
	f.want(200, "", "bob", "DELETE", where+"?force=true", "")

	// A site that may not hold the project sees nothing of it, and says so.
	other := identity.NewProjectID()
	if _, err := f.mesh.Propose(t.Context(), "user:admin", &command.ProjectCreate{ProjectId: other[:], Name: "elsewhere", Sites: []string{"sgp"}}); err != nil {
		t.Fatal(err)
	}
	pushed = false
	if a := f.want(503, "UNAVAILABLE", "admin", "DELETE", "/api/v2.0/projects/elsewhere", ""); !strings.Contains(a.Body, "ask at another of its sites (sgp)") {
		t.Errorf("from outside: %s", a.Body)
	}
	f.want(200, "", "admin", "DELETE", "/api/v2.0/projects/elsewhere?force=true", "")
}
