package harbor

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/apitest"
)

// secret is in the names of what only the members of prod may see.
const secret = "xq7"

// harbour is an API over a mesh with users ann, whose the private project prod is,
// and bob, who has no rights in it.
type harbour struct {
	*API
	mesh    *apitest.Mesh
	catalog *catalog.Catalog
	hash    string // of everybody's password
}

// outer is f for what is also called inside the fuzz target, where f.Helper panics.
type outer struct{ testing.TB }

func (outer) Helper() {}

func newHarbour(f *testing.F) *harbour {
	f.Helper()
	hash, err := access.HashPassword(apitest.AdminPassword)
	if err != nil {
		f.Fatal(err)
	}
	h := &harbour{mesh: apitest.New(outer{f}, "fra", "sgp"), catalog: apitest.OpenCatalog(f), hash: hash}
	h.API, err = New(Config{View: h.mesh.State.View, Replica: h.mesh, Proposer: h.mesh, Access: h.mesh.Access, Catalog: h.catalog, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	h.repair(f)
	return h
}

func (h *harbour) propose(t testing.TB, body proto.Message) {
	t.Helper()
	if _, err := h.mesh.Propose(t.Context(), "system", body); err != nil {
		t.Fatalf("%T: %v", body, err)
	}
}

func (h *harbour) user(t testing.TB, name string) state.User {
	t.Helper()
	u, ok := h.mesh.State.View().User(name)
	if !ok {
		t.Fatalf("no user %s", name)
	}
	return u
}

// repair brings back what requests have taken away, and takes away what they have
// added.
func (h *harbour) repair(t testing.TB) {
	t.Helper()
	yes, no := true, false
	if !h.user(t, "admin").Admin {
		h.propose(t, &command.UserUpdate{Id: h.user(t, "admin").ID, Admin: &yes})
	}
	comment := secret
	for _, name := range []string{"ann", "bob"} {
		if _, ok := h.mesh.State.View().User(name); !ok {
			h.propose(t, &command.UserCreate{Name: name, PasswordHash: h.hash})
		}
	}
	for u := range h.mesh.State.View().Users() {
		switch {
		case u.Name != "admin" && u.Name != "ann" && u.Name != "bob":
			h.propose(t, &command.UserDelete{Id: u.ID})
		case u.Name != "admin" && u.Admin:
			h.propose(t, &command.UserUpdate{Id: u.ID, Admin: &no})
		case u.PasswordHash != h.hash && u.Name != "admin":
			h.propose(t, &command.UserUpdate{Id: u.ID, PasswordHash: &h.hash})
		}
	}
	nothing := ""
	if bob := h.user(t, "bob"); bob.Comment+bob.Email+bob.RealName != "" {
		h.propose(t, &command.UserUpdate{Id: bob.ID, Comment: &nothing, Email: &nothing, RealName: &nothing})
	}
	ann := h.user(t, "ann")
	if ann.Comment != comment {
		h.propose(t, &command.UserUpdate{Id: ann.ID, Comment: &comment})
	}
	switch p, ok := h.mesh.State.View().Project("prod"); {
	case !ok:
		pid := identity.NewProjectID()
		h.propose(t, &command.ProjectCreate{ProjectId: pid[:], Name: "prod", OwnerId: ann.ID})
	case p.Public:
		h.propose(t, &command.ProjectUpdate{Id: p.ID, Public: &no})
	}
	for p := range h.mesh.State.View().Projects() {
		if p.Name != "prod" && p.Name != "library" {
			h.propose(t, &command.ProjectDelete{Id: p.ID})
		}
	}
	// Bob may have been made a member.
	prod, _ := h.mesh.State.View().Project("prod")
	for _, m := range h.mesh.State.View().Members(prod.ID) {
		if m.UserName != "ann" {
			h.propose(t, &command.MemberDelete{ProjectId: prod.ID, MemberId: m.ID})
		}
	}
	if info, err := h.catalog.Repository(prod.PID, "team/"+secret); err != nil || info.Tags < 12 || info.Manifests < 7 {
		for i := range 7 {
			h.mesh.Push(h.catalog, "prod", "team/"+secret, fmt.Sprint(secret, i), fmt.Sprintf("v%d-%s", i, secret), "latest")
		}
		h.mesh.Push(h.catalog, "prod", "team/"+secret, fmt.Sprint(secret, 0), "a", "B", "c.1", "_d", "e-")
		for i := range 23 {
			h.mesh.Push(h.catalog, "prod", fmt.Sprintf("%c%d/x.%d", "abz"[i%3], i, i), secret)
		}
	}
	h.mesh.Push(h.catalog, "library", "alpine", "text", "latest") // so that it is not deleted without force
}

// guarded is all that bob and strangers must not change.
func (h *harbour) guarded(t testing.TB) string {
	t.Helper()
	v := h.mesh.State.View()
	var out []any
	for _, name := range []string{"prod", "library"} {
		p, ok := v.Project(name)
		repos, err := h.catalog.Repositories(p.PID, "", 1000)
		out = append(out, ok, p, v.Members(p.ID), repos, err)
	}
	for _, at := range [][2]string{{"prod", "team/" + secret}, {"library", "alpine"}} {
		p, _ := v.Project(at[0])
		info, err := h.catalog.Repository(p.PID, at[1])
		out = append(out, info, err)
	}
	for _, name := range []string{"admin", "ann"} {
		u, ok := v.User(name)
		out = append(out, u, ok)
	}
	return fmt.Sprintf("%+v", out)
}

// FuzzRequests sends any request to the API. Nothing is a fault of the node's,
// errors and lists have Harbor's forms, and who has no rights in a project changes
// nothing in it and sees nothing of it.
func FuzzRequests(f *testing.F) {
	strangers, insiders := newHarbour(f), newHarbour(f)
	prod, _ := strangers.mesh.State.View().Project("prod")
	public := Prefix + "/projects/library/repositories/alpine"
	one := Prefix + "/projects/prod/repositories/team%252F" + secret
	for i, c := range [][4]string{
		{"GET", Prefix + "/projects", "", ""},
		{"GET", Prefix + "/projects", "page=2&page_size=1&sort=-name&q=name%3D~p", ""},
		{"GET", Prefix + "/projects", "q=public%3Dtrue,owner=ann&with_detail=x&public=1", ""},
		{"HEAD", Prefix + "/projects", "project_name=prod", ""},
		{"GET", Prefix + "/projects/prod", "", ""}, {"GET", Prefix + "/projects/" + strconv.FormatInt(prod.ID, 10) + "/summary", "", ""},
		{"GET", Prefix + "/projects/-1", "", ""}, {"GET", Prefix + "/projects/99999999999999999999", "", ""},
		{"POST", Prefix + "/projects", "", `{"project_name":"new","metadata":{"public":"true"},"sites":["fra"]}`},
		{"POST", Prefix + "/projects", "", `{"project_name":"x","sites":[` + strings.Repeat(`"fra",`, 9000) + `"sgp"]}`},
		{"PUT", Prefix + "/projects/prod", "", `{"metadata":{"public":"true"},"resource_version":1}`},
		{"DELETE", Prefix + "/projects/prod", "force=true", ""}, {"DELETE", Prefix + "/projects/prod", "f=1", ""}, {"DELETE", Prefix + "/projects/library", "", ""},
		{"GET", Prefix + "/projects/prod/members", "entityname=a&page=1000000&page_size=100", ""},
		{"POST", Prefix + "/projects/prod/members", "", `{"role_id":1,"member_user":{"username":"bob"}}`},
		{"PUT", Prefix + "/projects/prod/members/1", "", `{"role_id":0}`}, {"DELETE", Prefix + "/projects/prod/members/1", "", ""},
		{"GET", Prefix + "/projects/prod/repositories", "q=name=~x&page_size=5&sort=creation_time", ""},
		{"GET", one, "", ""}, {"DELETE", one, "", ""}, {"GET", one + "/artifacts", "page=3&page_size=2&with_tag=true", ""},
		{"GET", one + "/artifacts/latest", "", ""}, {"GET", one + "/artifacts/sha256:" + strings.Repeat("a", 64) + "/tags", "", ""},
		{"GET", one + "/artifacts/latest/tags", "page_size=3&q=x", ""}, {"DELETE", one + "/artifacts/latest/tags/a", "", ""},
		{"DELETE", one + "/artifacts/sha512:x", "", ""}, {"GET", Prefix + "/projects/prod/repositories/%252e%252e/artifacts/%00", "", ""},
		{"GET", public, "", ""}, {"DELETE", public, "", ""}, {"DELETE", public + "/artifacts/latest", "", ""}, {"DELETE", public + "/artifacts/latest/tags/latest", "", ""},
		{"GET", public + "/artifacts/latest/tags", "", ""}, {"POST", Prefix + "/projects/library/members", "", `{"role_id":1,"member_user":{"username":"bob"}}`},
		{"GET", Prefix + "/users/1", "", ""}, {"GET", Prefix + "/users/2", "", ""}, {"PUT", Prefix + "/users/1", "", `{"comment":"c"}`},
		{"GET", Prefix + "/projects/prod/repositories/%2525zz", "", ""}, {"GET", Prefix + "/projects/prod%2f/repositories", "", ""},
		{"GET", Prefix + "/users", "q=email=~@&username=A", ""}, {"GET", Prefix + "/users/search", "username=a&page=0", ""},
		{"POST", Prefix + "/users", "", `{"username":"eve","password":"long enough 1","email":"e"}`},
		{"PUT", Prefix + "/users/2", "", `{"comment":"c","realname":"r","email":"\u0000"}`}, {"PUT", Prefix + "/users/2/password", "", `{"old_password":"x","new_password":"yyyyyyyyyy"}`},
		{"PUT", Prefix + "/users/2/sysadmin", "", `{"sysadmin_flag":true}`}, {"DELETE", Prefix + "/users/3", "", ""}, {"GET", Prefix + "/users/current", "", ""},
		{"GET", Prefix + "/statistics", "", ""}, {"GET", Prefix + "/systeminfo", "", ""}, {"GET", Prefix + "/labels", "scope=p&q=%zz", ""},
		{"GET", Prefix + "/openapi.json", "", ""}, {"GET", "/api/version", "", ""}, {"PATCH", Prefix + "//projects/../users", "x;y", "{"},
	} {
		for user := range uint8(4) {
			header := ""
			if i%3 == int(user)%3 {
				header = [...]string{"*", `"1-1"`, `W/"1-1", x`, ""}[user]
			}
			f.Add(user, c[0], c[1], c[2], header, c[3])
		}
	}
	inside := regexp.MustCompile(`^` + Prefix + `/projects/(prod|` + strconv.FormatInt(prod.ID, 10) + `)(/|$)`)
	f.Fuzz(func(t *testing.T, user uint8, method, path, query, ifMatch, body string) {
		r := apitest.Request{User: [...]string{"", "bob", "ann", "admin"}[user%4], Method: method, Path: path, Query: query, Body: body, Header: map[string]string{}}
		if ifMatch != "" {
			r.Header["If-Match"] = ifMatch
		}
		if user%4 > 1 {
			if method == http.MethodDelete && strings.Contains(query, "force") {
				return // the name of a project that is gone is taken for good here
			}
			if _, ok := apitest.Send(t, insiders, r); ok && method != http.MethodGet && method != http.MethodHead {
				insiders.repair(t)
			}
			return
		}
		before, index := strangers.guarded(t), strangers.mesh.State.View().Index()
		a, ok := apitest.Send(t, strangers, r)
		if !ok {
			return
		}
		if after := strangers.guarded(t); after != before {
			t.Fatalf("%q changed what is not his: %s, was %s", r.User, after, before)
		}
		if now := strangers.mesh.State.View().Index(); r.User == "" && now != index {
			t.Fatalf("a stranger made an edit: %d %s", a.Status, a.Body)
		}
		// What was asked for by name may be repeated, in words of refusal.
		said := a.Body + fmt.Sprint(a.Header)
		if a.Status < 300 && (inside.MatchString(r.HTTP().URL.Path) || strings.Contains(said, secret)) || strings.Contains(said, prod.PID.String()) {
			t.Fatalf("%q was shown what is not his: %d %v %s", r.User, a.Status, a.Header, a.Body)
		}
		// Who did not write the whole secret, in whatever coding, must not read it.
		if asked := path + query + ifMatch + body; !strings.Contains(asked, "7") && strings.Contains(said, secret) {
			t.Fatalf("%q was told what is not his: %d %v %s", r.User, a.Status, a.Header, a.Body)
		}
		if r.User == "bob" && method != http.MethodGet && method != http.MethodHead {
			strangers.repair(t) // projects that he made
		}
	})
}

// FuzzPages walks the lists of the catalogue by any page size and filter: the pages
// together are what one page has, and that is what the filter says.
func FuzzPages(f *testing.F) {
	h := newHarbour(f)
	prod, _ := h.mesh.State.View().Project("prod")
	repos, err := h.catalog.Repositories(prod.PID, "", 1000)
	if err != nil || len(repos) != 24 {
		f.Fatalf("%d repositories, %v", len(repos), err)
	}
	for _, c := range []struct {
		size           int
		key, op, value string
	}{{1, "", "", ""}, {7, "name", "~", "x.1"}, {100, "name", "", "prod/a0/x.0"}, {24, "name", "~", "PROD/B"}, {23, "name", "", "a0/x.0"}, {5, "name", "", "a,name=b"}, {3, "name", "~", "%"}} {
		f.Add(c.size, c.key, c.op, c.value, "-name")
	}
	f.Fuzz(func(t *testing.T, size int, key, op, value, sort string) {
		if size < 1 || size > 100 {
			return
		}
		query := url.Values{"sort": {sort}}
		if key != "" {
			query.Set("q", key+"="+op+value)
		}
		whole := h.walk(t, "/projects/prod/repositories", query, 100, "name")
		if pages := h.walk(t, "/projects/prod/repositories", query, size, "name"); !slices.Equal(pages, whole) {
			t.Fatalf("%d at a time: %q, in one page %q", size, pages, whole)
		}
		// Of filters of one condition it is known what they find.
		if key == "name" && (op == "" || op == "~") && whole != nil && !strings.ContainsAny(value, ",[]{}()") && strings.TrimSpace(value) == value && (op == "~" || !strings.HasPrefix(value, "~")) {
			var want []string
			for _, r := range repos {
				full := "prod/" + r
				if op == "" && (r == value || full == value) || op == "~" && strings.Contains(strings.ToLower(full), strings.ToLower(value)) {
					want = append(want, full)
				}
			}
			if !slices.Equal(whole, want) && len(whole)+len(want) > 0 {
				t.Fatalf("q=%s: %q, want %q", query.Get("q"), whole, want)
			}
		}
		for path, key := range map[string]string{"/artifacts": "digest", "/artifacts/v0-" + secret + "/tags": "name"} {
			path = "/projects/prod/repositories/team%252F" + secret + path
			none := url.Values{"sort": {sort}}
			if whole, pages := h.walk(t, path, none, 100, key), h.walk(t, path, none, size, key); !slices.Equal(pages, whole) || len(whole) < 6 {
				t.Fatalf("%s %d at a time: %q, in one page %q", path, size, pages, whole)
			}
		}
	})
}

// walk gives one value of each entry, over all pages; nil if the list is refused.
func (h *harbour) walk(t *testing.T, path string, query url.Values, size int, key string) []string {
	t.Helper()
	query = maps.Clone(query)
	query.Set("page_size", strconv.Itoa(size))
	all, target := []string{}, Prefix+path
	for range 100 {
		a, ok := apitest.Send(t, h, apitest.Request{User: "ann", Method: http.MethodGet, Path: target, Query: query.Encode()})
		if !ok {
			t.Fatalf("%s is no path", target)
		}
		if a.Status != http.StatusOK {
			return nil
		}
		var page []map[string]any
		if err := json.Unmarshal([]byte(a.Body), &page); err != nil {
			t.Fatal(err)
		}
		for _, e := range page {
			all = append(all, fmt.Sprint(e[key]))
		}
		next := regexp.MustCompile(`<([^>]*)>; rel="next"`).FindStringSubmatch(a.Header.Get("Link"))
		if next == nil {
			if total := a.Header.Get("X-Total-Count"); key != "name" || strings.HasSuffix(path, "repositories") {
				if total != strconv.Itoa(len(all)) {
					t.Fatalf("%s: %d entries, and a total of %s", path, len(all), total)
				}
			}
			return all
		}
		u, err := url.Parse(next[1])
		if err != nil || len(page) == 0 {
			t.Fatalf("%s: a next page %q after %d entries: %v", path, next[1], len(page), err)
		}
		target, query = u.EscapedPath(), u.Query()
	}
	t.Fatalf("%s: pages without end", path)
	return nil
}

// FuzzIfMatch edits a project under any condition: the edit is made only if the
// condition names the version that there is, and always if it does so alone.
func FuzzIfMatch(f *testing.F) {
	h := newHarbour(f)
	for _, c := range []string{"", "*", "NOW", `"1-1"`, `W/NOW`, `"x", NOW`, "NOW,", " NOW ", `"`, `""`, "*, NOW", strings.Repeat("NOW,", 300), `"0-VERSION"`, `"0-18446744073709551616"`} {
		f.Add(c, uint64(0), false)
		f.Add(c, uint64(1), true)
	}
	path := Prefix + "/projects/library"
	get := func(t *testing.T) (etag string, version uint64) {
		t.Helper()
		a, _ := apitest.Send(t, h, apitest.Request{User: "admin", Method: http.MethodGet, Path: path})
		var p Project
		if err := json.Unmarshal([]byte(a.Body), &p); err != nil || a.Status != http.StatusOK {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		etag = a.Header.Get("ETag")
		if want := fmt.Sprintf(`"%d-%d"`, p.ID, p.Version); etag != want {
			t.Fatalf("the ETag is %s, want %s", etag, want)
		}
		return etag, p.Version
	}
	f.Fuzz(func(t *testing.T, ifMatch string, inBody uint64, now bool) {
		etag, version := get(t)
		ifMatch = strings.NewReplacer("NOW", etag, "VERSION", strconv.FormatUint(version, 10)).Replace(ifMatch)
		if now {
			inBody = version
		}
		r := apitest.Request{User: "admin", Method: http.MethodPut, Path: path, Body: fmt.Sprintf(`{"metadata":{"public":"true"},"resource_version":%d}`, inBody)}
		if ifMatch != "" {
			r.Header = map[string]string{"If-Match": ifMatch}
		}
		a, ok := apitest.Send(t, h, r)
		if !ok {
			return
		}
		after, _ := get(t)
		free := strings.TrimSpace(ifMatch) == "" || strings.TrimSpace(ifMatch) == "*"
		switch a.Status {
		case http.StatusOK:
			if after == etag || !free && !strings.Contains(ifMatch, etag) || inBody != 0 && inBody != version {
				t.Fatalf("If-Match %q and version %d edited %s to %s", ifMatch, inBody, etag, after)
			}
		case http.StatusBadRequest, http.StatusConflict, http.StatusPreconditionFailed, http.StatusUnprocessableEntity:
			if after != etag {
				t.Fatalf("%d, and edited all the same: %s to %s", a.Status, etag, after)
			}
			if (free || ifMatch == etag) && (inBody == 0 || inBody == version) {
				t.Fatalf("If-Match %q and version %d of %s are refused: %d %s", ifMatch, inBody, etag, a.Status, a.Body)
			}
		default:
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	})
}
