package mesh

import (
	"strings"
	"testing"

	"github.com/portolan/portolan/consensus/state"
)

func (f *fixture) leaving(site string) (index uint64) {
	f.Helper()
	s, ok := f.mesh.State.View().Site(site)
	if !ok {
		f.Fatalf("no site %s", site)
	}
	index, _ = s.Leaving(s.LeavingAt)
	return index
}

// TestAPI_RemoveSite_IsAnnounced before anybody is asked, and called off when it is
// refused or people say so.
func TestAPI_RemoveSite_IsAnnounced(t *testing.T) {
	f := newFixture(t)
	f.leave.parts = []LastCopies{{Manifests: 5}, oneCopy("prod/a")}
	before := decode[Site](f, f.want(200, "admin", "GET", "/sites/sgp", ""))
	r := decode[Removal](f, f.want(200, "admin", "POST", "/sites/sgp/remove", `{}`))
	first := f.leaving("sgp")
	site := decode[Site](f, f.want(200, "admin", "GET", "/sites/sgp", ""))
	if first == 0 || site.LeavingBy != "user:admin" || site.LeavingAt.IsZero() || site.Version != before.Version {
		t.Fatalf("announced at %d: %+v", first, site)
	}
	r = decode[Removal](f, f.want(200, "admin", "POST", "/sites/sgp/remove", `{"after":"`+r.After+`"}`))
	if f.leaving("sgp") != first {
		t.Error("each part is announced anew")
	}
	if a := f.want(409, "admin", "POST", "/sites/sgp/remove", `{"after":"`+r.After+`"}`); !strings.Contains(a.Body, CodeLastCopy) {
		t.Errorf("%s", a.Body)
	}
	if f.leaving("sgp") != 0 {
		t.Error("it was refused, and is announced still")
	}

	f.want(200, "admin", "POST", "/sites/sgp/remove", `{}`)
	second := f.leaving("sgp")
	f.want(401, "", "POST", "/sites/sgp/keep", "")
	f.want(404, "admin", "POST", "/sites/mars/keep", "")
	site = decode[Site](f, f.want(200, "admin", "POST", "/sites/sgp/keep", ""))
	if second == 0 || second == first || f.leaving("sgp") != 0 || !site.LeavingAt.IsZero() {
		t.Errorf("announced at %d and %d; called off: %+v", first, second, site)
	}

	// Lost, or a witness: nobody is asked to take no pushes.
	f.want(409, "admin", "POST", "/sites/sgp/remove", `{"lost":true}`)
	if f.leaving("sgp") != 0 {
		t.Error("a lost site's removal is announced")
	}
	if state.LeavingFor <= leaveSlice {
		t.Error("an announcement ends before the first part does")
	}
}

// TestAPI_RemoveSite_CalledOffMeanwhile is a conflict, which says what to do.
func TestAPI_RemoveSite_CalledOffMeanwhile(t *testing.T) {
	f := newFixture(t)
	f.leave.err = ErrNotAnnounced
	if a := f.want(409, "admin", "POST", "/sites/sgp/remove", `{}`); !strings.Contains(a.Body, "begin anew") {
		t.Errorf("%s", a.Body)
	}
}
