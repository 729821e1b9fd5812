package access

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/portolan/portolan/consensus/command"
)

func TestOnly(t *testing.T) {
	m := newMesh(t)
	a := m.access()
	m.apply(&command.UserCreate{Name: "ann", PasswordHash: m.hash("ann's")})
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	for _, c := range []struct {
		who, user, password string
		code                int
	}{
		{ForAnyone, "", "", 418}, {ForAnyone, "ann", "wrong", 418},
		{ForUsers, "", "", 401}, {ForUsers, "ann", "wrong", 401}, {ForUsers, "ann", "ann's", 418}, {ForUsers, "admin", "secret", 418},
		{ForAdmins, "", "", 401}, {ForAdmins, "ann", "ann's", 403}, {ForAdmins, "admin", "secret", 418},
		{"a mistake", "", "", 401}, {"a mistake", "ann", "ann's", 403},
	} {
		w := httptest.NewRecorder()
		a.Only(c.who, page).ServeHTTP(w, get("/metrics", c.user, c.password))
		if w.Code != c.code || (w.Code == http.StatusUnauthorized) != (w.Header().Get("WWW-Authenticate") != "") {
			t.Errorf("for %q, %q with %q: %d %v, want %d", c.who, c.user, c.password, w.Code, w.Header(), c.code)
		}
	}
	w := httptest.NewRecorder()
	r := bearer(m.token(a, "admin", "secret"))
	a.Only(ForAdmins, page).ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized {
		t.Errorf("a registry token: %d", w.Code)
	}
}
