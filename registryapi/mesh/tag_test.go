package mesh

import (
	"strings"
	"testing"

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
