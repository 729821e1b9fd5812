package harbor

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/apitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is the API over a real control state, real rights and a real
// catalogue. Users: admin; ann, who made the private project prod; bob, who is
// nobody's member.
type fixture struct {
	*testing.T
	mesh    *apitest.Mesh
	catalog *catalog.Catalog
	api     *API
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	m := apitest.New(t, "fra", "sgp")
	c := apitest.OpenCatalog(t)
	api, err := New(Config{View: m.State.View, Replica: m, Proposer: m, Access: m.Access, Catalog: c, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, mesh: m, catalog: c, api: api}
	for _, name := range []string{"ann", "bob"} {
		f.want(201, "", "admin", "POST", "/api/v2.0/users", fmt.Sprintf(`{"username":%q,"password":%q}`, name, apitest.AdminPassword))
	}
	f.want(201, "", "ann", "POST", "/api/v2.0/projects", `{"project_name":"prod"}`)
	return f
}

func (f *fixture) call(user, method, path, body string) apitest.Answer {
	f.Helper()
	return apitest.Call(f, f.api, user, method, path, body)
}

// want calls and checks the status and, unless it is "", the error's code.
func (f *fixture) want(status int, code, user, method, path, body string) apitest.Answer {
	f.Helper()
	a := f.call(user, method, path, body)
	if a.Status != status {
		f.Errorf("%s %s as %q: %d, want %d: %s", method, path, user, a.Status, status, a.Body)
	}
	if code != "" {
		var e struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(a.Body), &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Code != code || e.Errors[0].Message == "" {
			f.Errorf("%s %s as %q: want one error %s, got %s", method, path, user, code, a.Body)
		}
		if ct := a.Header.Get("Content-Type"); ct != "application/json" {
			f.Errorf("%s %s: error as %q", method, path, ct)
		}
	}
	return a
}

func decode[T any](f *fixture, a apitest.Answer) T {
	f.Helper()
	var out T
	if err := json.Unmarshal([]byte(a.Body), &out); err != nil {
		f.Fatalf("%s: %v", a.Body, err)
	}
	return out
}

func TestAPI_Answers(t *testing.T) {
	f := newFixture(t)
	long := strings.Repeat("a", 300)
	for _, c := range []struct {
		name, user, method, path, body string
		status                         int
		code                           string
	}{
		{"ping", "", "GET", "/ping", "", 200, ""},
		{"health", "", "GET", "/health", "", 200, ""},
		{"systeminfo without login", "", "GET", "/systeminfo", "", 200, ""},
		{"labels", "ann", "GET", "/labels?scope=g", "", 200, ""},
		{"statistics", "ann", "GET", "/statistics", "", 200, ""},
		{"no such path", "ann", "GET", "/robots", "", 404, "NOT_FOUND"},
		{"wrong method", "ann", "PATCH", "/projects", "", 405, "METHOD_NOT_ALLOWED"},
		{"body is no JSON", "ann", "POST", "/projects", `{`, 400, "BAD_REQUEST"},
		{"body too large", "ann", "POST", "/projects", strings.Repeat(" ", 300<<10), 413, "REQUEST_ENTITY_TOO_LARGE"},
		{"page size too large", "ann", "GET", "/projects?page_size=101", "", 422, "UNPROCESSABLE_ENTITY"},
		{"unknown filter", "ann", "GET", "/projects?q=colour=red", "", 400, "BAD_REQUEST"},
		{"unknown fields are Harbor's business", "ann", "POST", "/projects", `{"project_name":"extra","storage_limit":-1,"metadata":{"auto_scan":"true"}}`, 201, ""},

		{"projects without login: the public ones", "", "GET", "/projects", "", 200, ""},
		{"private project without login", "", "GET", "/projects/prod", "", 401, "UNAUTHORIZED"},
		{"private project, not a member", "bob", "GET", "/projects/prod", "", 404, "NOT_FOUND"},
		{"own project", "ann", "GET", "/projects/prod", "", 200, ""},
		{"any project as administrator", "admin", "GET", "/projects/prod", "", 200, ""},
		{"public project without login", "", "GET", "/projects/library", "", 200, ""},
		{"head: there", "ann", "HEAD", "/projects?project_name=prod", "", 200, ""},
		{"head: not there", "ann", "HEAD", "/projects?project_name=none", "", 404, ""},
		{"name is taken", "bob", "POST", "/projects", `{"project_name":"prod"}`, 409, "CONFLICT"},
		{"name outside the grammar", "bob", "POST", "/projects", `{"project_name":"Prod"}`, 400, "BAD_REQUEST"},
		{"name too long", "bob", "POST", "/projects", `{"project_name":"` + long + `"}`, 422, "UNPROCESSABLE_ENTITY"},
		{"create without login", "", "POST", "/projects", `{"project_name":"x"}`, 401, "UNAUTHORIZED"},
		{"residency at an unknown site", "ann", "POST", "/projects", `{"project_name":"x","sites":["mars"]}`, 400, "BAD_REQUEST"},
		{"edit, not its administrator", "bob", "PUT", "/projects/library", `{"metadata":{"public":"false"}}`, 403, "FORBIDDEN"},
		{"edit the sites", "admin", "PUT", "/projects/library", `{"sites":["fra"]}`, 400, "BAD_REQUEST"},
		{"edit the name", "admin", "PUT", "/projects/library", `{"project_name":"other"}`, 400, "BAD_REQUEST"},
		{"delete, not its administrator", "bob", "DELETE", "/projects/library", "", 403, "FORBIDDEN"},
		{"summary", "ann", "GET", "/projects/prod/summary", "", 200, ""},

		{"members, not a member", "bob", "GET", "/projects/library/members", "", 403, "FORBIDDEN"},
		{"member: no such user", "ann", "POST", "/projects/prod/members", `{"role_id":2,"member_user":{"username":"eve"}}`, 404, "NOT_FOUND"},
		{"member: no such role", "ann", "POST", "/projects/prod/members", `{"role_id":9,"member_user":{"username":"bob"}}`, 400, "BAD_REQUEST"},
		{"member: no such member", "ann", "PUT", "/projects/prod/members/9999", `{"role_id":2}`, 404, "NOT_FOUND"},

		{"users, not an administrator", "ann", "GET", "/users", "", 403, "FORBIDDEN"},
		{"create user, not an administrator", "ann", "POST", "/users", `{"username":"x","password":"long enough"}`, 403, "FORBIDDEN"},
		{"user name is taken", "admin", "POST", "/users", `{"username":"Ann","password":"long enough"}`, 409, "CONFLICT"},
		{"user name outside the grammar", "admin", "POST", "/users", `{"username":"a b","password":"long enough"}`, 400, "BAD_REQUEST"},
		{"password too short", "admin", "POST", "/users", `{"username":"x","password":"short"}`, 400, "BAD_REQUEST"},
		{"search users", "ann", "GET", "/users/search?username=BO", "", 200, ""},
		{"no such user", "admin", "GET", "/users/9999", "", 404, "NOT_FOUND"},

		{"no such repository", "ann", "GET", "/projects/prod/repositories/none", "", 404, "NOT_FOUND"},
		{"repositories of a private project", "bob", "GET", "/projects/prod/repositories", "", 404, "NOT_FOUND"},
		{"no repositories yet", "ann", "GET", "/projects/prod/repositories", "", 200, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.T = t
			f.want(c.status, c.code, c.user, c.method, "/api/v2.0"+c.path, c.body)
		})
	}
	f.T = t
	if a := f.want(200, "", "", "GET", "/api/version", ""); !strings.Contains(a.Body, "v2.0") {
		t.Error(a.Body)
	}
	if a := f.want(401, "UNAUTHORIZED", "nobody", "GET", "/api/v2.0/users/current", ""); a.Header.Get("WWW-Authenticate") == "" {
		t.Error("401 does not say how to log in")
	}
}

func TestAPI_ProjectLife(t *testing.T) {
	f := newFixture(t)
	a := f.want(201, "", "bob", "POST", "/api/v2.0/projects", `{"project_name":"42","metadata":{"public":"true"}}`)
	where := a.Header.Get("Location")
	p := decode[Project](f, f.want(200, "", "bob", "GET", where, ""))
	if p.Name != "42" || p.Metadata.Public != "true" || p.OwnerName != "bob" || p.CurrentRole != 1 {
		t.Errorf("made %+v", p)
	}
	// A number is an id, unless the client says that it is a name.
	f.want(404, "NOT_FOUND", "bob", "GET", "/api/v2.0/projects/42", "")

	f.want(200, "", "bob", "PUT", where, `{"metadata":{"public":"false"}}`)
	f.want(401, "UNAUTHORIZED", "", "GET", where, "")

	a = f.want(201, "", "bob", "POST", where+"/members", `{"role_id":2,"member_user":{"username":"ann"}}`)
	m := decode[Member](f, f.want(200, "", "ann", "GET", a.Header.Get("Location"), ""))
	if m.EntityName != "ann" || m.RoleName != "developer" || m.EntityType != "u" {
		t.Errorf("member %+v", m)
	}
	f.want(409, "CONFLICT", "bob", "POST", where+"/members", `{"role_id":3,"member_user":{"username":"ann"}}`)
	f.want(403, "FORBIDDEN", "ann", "DELETE", where, "")
	f.want(200, "", "bob", "PUT", a.Header.Get("Location"), `{"role_id":1}`)
	f.want(200, "", "ann", "PUT", where, `{"metadata":{"public":"true"}}`)
	f.want(200, "", "bob", "DELETE", a.Header.Get("Location"), "")
	f.want(403, "FORBIDDEN", "ann", "DELETE", where, "")

	f.mesh.Push(f.catalog, "42", "app", "x", "1")
	f.want(412, "PRECONDITION", "bob", "DELETE", where, "")
	f.want(200, "", "bob", "DELETE", where+"?force=true", "")
	f.want(404, "NOT_FOUND", "bob", "GET", where, "")
}

// TestAPI_Conditions: each object that can be edited is edited only as it was
// seen.
func TestAPI_Conditions(t *testing.T) {
	f := newFixture(t)
	project := f.want(201, "", "ann", "POST", "/api/v2.0/projects", `{"project_name":"c"}`).Header.Get("Location")
	member := f.want(201, "", "ann", "POST", project+"/members", `{"role_id":2,"member_user":{"username":"bob"}}`).Header.Get("Location")
	user := f.want(201, "", "admin", "POST", "/api/v2.0/users", `{"username":"eve","password":"long enough"}`).Header.Get("Location")
	send := func(status int, match, method, path, body string) {
		t.Helper()
		if a := apitest.CallWith(f, f.api, map[string]string{"If-Match": match}, "admin", method, path, body); a.Status != status {
			t.Errorf("%s %s if %s: %d, want %d: %s", method, path, match, a.Status, status, a.Body)
		}
	}
	for _, c := range []struct{ object, edit, body string }{
		{member, member, `{"role_id":3%s}`},
		{project, project, `{"metadata":{"public":"true"}%s}`},
		{user, user, `{"comment":"x"%s}`},
		{user, user + "/sysadmin", `{"sysadmin_flag":true%s}`},
		{user, user + "/password", `{"new_password":"longer than before"%s}`},
	} {
		tag := f.want(200, "", "admin", "GET", c.object, "").Header.Get("ETag")
		_, v, _ := strings.Cut(strings.Trim(tag, `"`), "-")
		version, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("%s has the ETag %q", c.object, tag)
		}
		inBody := func(v int) string { return fmt.Sprintf(c.body, fmt.Sprintf(`,"resource_version":%d`, v)) }
		send(200, tag, "PUT", c.edit, fmt.Sprintf(c.body, ""))
		send(412, tag, "PUT", c.edit, fmt.Sprintf(c.body, ""))
		send(409, "", "PUT", c.edit, inBody(version))
		send(200, "", "PUT", c.edit, inBody(version+1))
		send(200, "*", "PUT", c.edit, fmt.Sprintf(c.body, ""))
		if got := f.want(200, "", "admin", "GET", c.object, "").Header.Get("ETag"); got != strings.Replace(tag, "-"+v, fmt.Sprintf("-%d", version+3), 1) {
			t.Errorf("%s: after three edits %s became %s", c.edit, tag, got)
		}
	}
	for _, path := range []string{member, project, user} {
		tag := f.want(200, "", "admin", "GET", path, "").Header.Get("ETag")
		send(412, strings.Replace(tag, "-", "-9", 1), "DELETE", path, "")
		send(200, tag, "DELETE", path, "")
	}
}

// TestAPI_StrictReads: a strict answer has what was edited elsewhere, rights
// included; a local one says how old it may be.
func TestAPI_StrictReads(t *testing.T) {
	f := newFixture(t)
	ask := func(status int, user, consistency, path string) apitest.Answer {
		t.Helper()
		a := apitest.CallWith(f, f.api, map[string]string{"X-Portolan-Consistency": consistency}, user, "GET", "/api/v2.0"+path, "")
		if a.Status != status {
			t.Fatalf("%s %s as %s: %d, want %d: %s", consistency, path, user, a.Status, status, a.Body)
		}
		return a
	}
	pid := identity.NewProjectID()
	f.mesh.Elsewhere("user:admin", &command.ProjectCreate{ProjectId: pid[:], Name: "late"})
	before := f.mesh.State.View().Index()
	a := ask(404, "admin", "", "/projects/late")
	if a.Header.Get("X-Portolan-Index") != fmt.Sprint(before) || a.Header.Get("X-Portolan-Staleness") != "0.250" || a.Header.Get("X-Portolan-Consistency") != "" {
		t.Errorf("a local answer says %v", a.Header)
	}
	ask(404, "admin", "local", "/projects/late")
	ask(400, "admin", "eventual", "/projects/late")
	ask(401, "", "strict", "/projects")
	a = ask(200, "admin", "strict", "/projects/late")
	if a.Header.Get("X-Portolan-Index") != fmt.Sprint(before+1) || a.Header.Get("X-Portolan-Staleness") != "0.000" || a.Header.Get("X-Portolan-Consistency") != "strict" {
		t.Errorf("a strict answer says %v", a.Header)
	}
	// He was deleted elsewhere a moment ago.
	bob, _ := f.mesh.State.View().User("bob")
	f.mesh.Elsewhere("user:admin", &command.UserDelete{Id: bob.ID})
	ask(200, "bob", "", "/users/current")
	ask(401, "bob", "strict", "/users/current")

	f.mesh.Lose([]string{"sgp"})
	a = ask(503, "admin", "strict", "/projects/late")
	if !strings.Contains(a.Body, "a strict read is not possible now") || !strings.Contains(a.Body, `"sites":["sgp"]`) || a.Header.Get("Retry-After") == "" {
		t.Errorf("without a majority: %v %s", a.Header, a.Body)
	}
	ask(200, "admin", "local", "/projects/late")
	f.mesh.Lose(nil)
	if spec, err := f.api.OpenAPI(); err != nil || !strings.Contains(string(spec), "X-Portolan-Consistency") {
		t.Errorf("the description does not mention strict reads (%v)", err)
	}
}

func TestAPI_Pages(t *testing.T) {
	f := newFixture(t)
	for i := range 25 {
		f.want(201, "", "ann", "POST", "/api/v2.0/projects", fmt.Sprintf(`{"project_name":"p%02d"}`, i))
	}
	a := f.want(200, "", "ann", "GET", "/api/v2.0/projects?q=name%3D~P&page=2&page_size=10", "")
	ps := decode[[]Project](f, a)
	// "prod" has a p too; library is public and has none.
	if a.Header.Get("X-Total-Count") != "26" || len(ps) != 10 || ps[0].Name != "p10" {
		t.Errorf("page 2: total %s, %d entries from %s", a.Header.Get("X-Total-Count"), len(ps), ps[0].Name)
	}
	link := a.Header.Get("Link")
	if !strings.Contains(link, `page=1`) || !strings.Contains(link, `rel="prev"`) || !strings.Contains(link, `page=3`) || !strings.Contains(link, `rel="next"`) {
		t.Errorf("Link: %s", link)
	}
	// What Link says can be followed as it is.
	next := link[strings.LastIndex(link, "<")+1 : strings.LastIndex(link, ">")]
	a = f.want(200, "", "ann", "GET", next, "")
	if ps = decode[[]Project](f, a); len(ps) != 6 || strings.Contains(a.Header.Get("Link"), "next") {
		t.Errorf("page 3: %d entries, Link %s", len(ps), a.Header.Get("Link"))
	}
	if a = f.want(200, "", "ann", "GET", "/api/v2.0/projects?page=99", ""); a.Body != "[]\n" {
		t.Errorf("beyond the end: %s", a.Body)
	}
	if a = f.want(200, "", "bob", "GET", "/api/v2.0/projects?name=p0", ""); a.Header.Get("X-Total-Count") != "0" {
		t.Error("bob sees private projects of ann")
	}
}

func TestAPI_Passwords(t *testing.T) {
	f := newFixture(t)
	ann := decode[User](f, f.want(200, "", "ann", "GET", "/api/v2.0/users/current", ""))
	path := fmt.Sprintf("/api/v2.0/users/%d", ann.ID)
	f.want(403, "FORBIDDEN", "bob", "PUT", path+"/password", `{"new_password":"bob was here"}`)
	f.want(403, "FORBIDDEN", "ann", "PUT", path+"/password", `{"old_password":"wrong","new_password":"new password"}`)
	f.want(200, "", "ann", "PUT", path+"/password", fmt.Sprintf(`{"old_password":%q,"new_password":"new password"}`, apitest.AdminPassword))
	f.want(401, "UNAUTHORIZED", "ann", "GET", "/api/v2.0/users/current", "") // the helper's is the old one
	f.want(200, "", "admin", "PUT", path+"/password", fmt.Sprintf(`{"new_password":%q}`, apitest.AdminPassword))
	f.want(200, "", "ann", "PUT", path, `{"email":"ann@example.org"}`)
	if u := decode[User](f, f.want(200, "", "ann", "GET", path, "")); u.Email != "ann@example.org" {
		t.Errorf("profile %+v", u)
	}

	f.want(403, "FORBIDDEN", "ann", "PUT", path+"/sysadmin", `{"sysadmin_flag":true}`)
	f.want(200, "", "admin", "PUT", path+"/sysadmin", `{"sysadmin_flag":true}`)
	f.want(200, "", "ann", "GET", "/api/v2.0/users", "")
	f.want(403, "FORBIDDEN", "ann", "DELETE", path, "") // herself
	f.want(200, "", "admin", "DELETE", path, "")
	f.want(401, "UNAUTHORIZED", "ann", "GET", "/api/v2.0/users/current", "")
	for u := range f.mesh.State.View().Users() {
		if strings.Contains(u.PasswordHash, apitest.AdminPassword) || !strings.HasPrefix(u.PasswordHash, "$argon2id$") {
			t.Errorf("%s's password is kept as %s", u.Name, u.PasswordHash)
		}
	}
}

func TestAPI_WithoutMajority(t *testing.T) {
	f := newFixture(t)
	f.mesh.Lose([]string{"nyc", "sgp"})
	a := f.want(503, "UNAVAILABLE", "ann", "POST", "/api/v2.0/projects", `{"project_name":"x"}`)
	if a.Header.Get("Retry-After") != "2" || !strings.Contains(a.Body, "nyc, sgp") || !strings.Contains(a.Body, `"sites":["nyc","sgp"]`) {
		t.Errorf("Retry-After %q, %s", a.Header.Get("Retry-After"), a.Body)
	}
	f.want(200, "", "ann", "GET", "/api/v2.0/projects/prod", "") // reading goes on
	f.mesh.Lose(nil)
	f.want(201, "", "ann", "POST", "/api/v2.0/projects", `{"project_name":"x"}`)
}

func TestAPI_Content(t *testing.T) {
	f := newFixture(t)
	one := f.mesh.Push(f.catalog, "prod", "team/app", "one", "1.0", "latest")
	f.mesh.Push(f.catalog, "prod", "team/app", "two", "2.0")
	f.mesh.Push(f.catalog, "prod", "base", "base", "1")

	repos := "/api/v2.0/projects/prod/repositories"
	a := f.want(200, "", "ann", "GET", repos+"?q=name%3D~app", "")
	rs := decode[[]Repository](f, a)
	if a.Header.Get("X-Total-Count") != "1" || len(rs) != 1 || rs[0].Name != "prod/team/app" || rs[0].ArtifactCount != 2 || rs[0].TagCount != 3 {
		t.Fatalf("repositories: %s", a.Body)
	}
	for _, name := range []string{"team%252Fapp", "team%2Fapp"} { // as Harbor's clients do, and as one might
		f.want(200, "", "ann", "GET", repos+"/"+name, "")
	}
	app := repos + "/" + url.PathEscape(url.PathEscape("team/app"))

	arts := decode[[]Artifact](f, f.want(200, "", "ann", "GET", app+"/artifacts", ""))
	if len(arts) != 2 || arts[0].Size <= 0 || arts[0].RepositoryName != "prod/team/app" {
		t.Fatalf("artifacts %+v", arts)
	}
	second := f.want(200, "", "ann", "GET", app+"/artifacts?page=2&page_size=1", "")
	if got := decode[[]Artifact](f, second); second.Header.Get("X-Total-Count") != "2" || len(got) != 1 || got[0].Digest != arts[1].Digest {
		t.Errorf("second page: %s", second.Body)
	}
	byTag := decode[Artifact](f, f.want(200, "", "ann", "GET", app+"/artifacts/latest", ""))
	if byTag.Digest != one || len(byTag.Tags) != 2 || byTag.Tags[0].Name != "1.0" {
		t.Errorf("by tag: %+v", byTag)
	}
	f.want(404, "NOT_FOUND", "ann", "GET", app+"/artifacts/none", "")

	f.want(201, "", "ann", "POST", "/api/v2.0/projects/prod/members", `{"role_id":2,"member_user":{"username":"bob"}}`)
	f.want(403, "FORBIDDEN", "bob", "DELETE", app+"/artifacts/2.0", "") // a developer deletes nothing
	f.want(404, "NOT_FOUND", "ann", "DELETE", app+"/artifacts/"+one.String()+"/tags/2.0", "")
	f.want(200, "", "ann", "DELETE", app+"/artifacts/"+one.String()+"/tags/latest", "")
	if tags := decode[[]Tag](f, f.want(200, "", "bob", "GET", app+"/artifacts/1.0/tags", "")); len(tags) != 1 || tags[0].Name != "1.0" {
		t.Errorf("tags %+v", tags)
	}
	f.want(200, "", "ann", "DELETE", app+"/artifacts/2.0", "")
	f.want(404, "NOT_FOUND", "ann", "GET", app+"/artifacts/2.0", "")
	f.want(200, "", "ann", "DELETE", app, "")
	f.want(404, "NOT_FOUND", "ann", "GET", app, "")
}

// moving is a catalogue in which a push sets a tag to another artifact as soon as one of its
// manifests was read.
type moving struct {
	*catalog.Catalog
	push func()
}

func (m *moving) Manifest(pid identity.ProjectID, repo string, d digest.Digest) (catalog.ManifestInfo, error) {
	info, err := m.Catalog.Manifest(pid, repo, d)
	m.push()
	return info, err
}

func (m *moving) Tag(pid identity.ProjectID, repo, tag string) (catalog.TagInfo, error) {
	info, err := m.Catalog.Tag(pid, repo, tag)
	m.push()
	return info, err
}

// TestAPI_DeleteTagThatMoves: who deletes a tag of one artifact does not take it from the
// one that got it meanwhile, however the first one was named.
func TestAPI_DeleteTagThatMoves(t *testing.T) {
	f := newFixture(t)
	var err error
	m := &moving{Catalog: f.catalog}
	f.api, err = New(Config{View: f.mesh.State.View, Replica: f.mesh, Proposer: f.mesh, Access: f.mesh.Access, Catalog: m, Version: "test", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	p, _ := f.mesh.State.View().Project("prod")
	const app = "/api/v2.0/projects/prod/repositories/app/artifacts/"
	for _, byTag := range []bool{false, true} {
		one := f.mesh.Push(f.catalog, "prod", "app", "one", "1")
		var two digest.Digest
		m.push = sync.OnceFunc(func() { two = f.mesh.Push(f.catalog, "prod", "app", "two", "1") })
		name := one.String()
		if byTag {
			name = "1"
		}
		if a := f.want(404, "NOT_FOUND", "ann", "DELETE", app+name+"/tags/1", ""); !strings.Contains(a.Body, one.String()+" has no tag 1") {
			t.Errorf("by tag %t: %s", byTag, a.Body)
		}
		if said, err := f.catalog.Tag(p.PID, "app", "1"); err != nil || two == "" || said.Digest != two {
			t.Errorf("by tag %t: the tag says %q, not %q: %v", byTag, said.Digest, two, err)
		}
	}
	f.want(200, "", "ann", "DELETE", app+"1/tags/1", "")
}

func TestAPI_OpenAPI(t *testing.T) {
	f := newFixture(t)
	a := f.want(200, "", "", "GET", "/api/v2.0/openapi.json", "")
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]any
		Components struct{ Schemas map[string]any }
	}
	if err := json.Unmarshal([]byte(a.Body), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI == "" || doc.Paths["/projects/{project_name_or_id}"]["put"] == nil || doc.Components.Schemas["Failures"] == nil {
		t.Errorf("description lacks what it must have: %.300s", a.Body)
	}
	if strings.Contains(a.Body, "ErrorModel") || strings.Contains(a.Body, "problem+json") {
		t.Error("description speaks of errors that are never sent")
	}
}
