package mesh

import (
	"context"
	"strings"
	"testing"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/apitest"
)

// TestAPI_DeleteTagThatSays: with If-Match a tag is deleted only if it says one of those.
func TestAPI_DeleteTagThatSays(t *testing.T) {
	f := newFixture(t)
	one := f.mesh.Push(f.catalog, "library", "app", "one", "1.0")
	two := f.mesh.Push(f.catalog, "library", "app", "two", "1.0")
	send := func(want int, match string) apitest.Answer {
		t.Helper()
		a := apitest.CallWith(f, f.api, map[string]string{"If-Match": match}, "admin", "DELETE", Prefix+"/tags?image=app:1.0", "")
		if a.Status != want {
			t.Errorf("If-Match: %s: %d, want %d: %s", match, a.Status, want, a.Body)
		}
		return a
	}
	for _, match := range []string{"*", one.String(), `"` + one.String(), `W/"` + two.String() + `"`, `"sha256:1"`, `"` + two.String() + `", `} {
		send(400, match)
	}
	if a := send(412, `"`+one.String()+`"`); !strings.Contains(a.Body, two.String()) {
		t.Errorf("it says %s", a.Body)
	}
	send(200, `"`+one.String()+`", "`+two.String()+`"`)
	send(404, `"`+two.String()+`"`)
}

// TestAPI_StrongTagIsDeletedOnce: the mesh has said that there is none, and what is set
// while other sites are asked is nobody's to delete.
func TestAPI_StrongTagIsDeletedOnce(t *testing.T) {
	f := newFixture(t)
	pid := identity.NewProjectID()
	if _, err := f.mesh.Propose(t.Context(), "system", &command.ProjectCreate{ProjectId: pid[:], Name: "prod", Tags: command.TagMode_TAG_MODE_STRONG}); err != nil {
		t.Fatal(err)
	}
	f.mesh.Push(f.catalog, "prod", "app", "zero", "0.9")
	f.api.cfg.Refresh = func(context.Context, identity.ProjectID) ([]string, error) {
		f.mesh.Push(f.catalog, "prod", "app", "one", "1.0")
		return nil, nil
	}
	f.want(404, "admin", "DELETE", "/tags?image=prod/app:1.0", "")
	f.want(404, "admin", "DELETE", "/tags?image=prod/app:1.0", "")
}
