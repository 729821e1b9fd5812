package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/apitest"
	"github.com/portolan/portolan/transfer/rules"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// placement answers as the test says that sites would.
type placement struct {
	mu    sync.Mutex
	at    map[string]Presence
	asked chan Question // each question, if anybody listens
}

func (p *placement) set(site string, s Presence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Site = site
	p.at[site] = s
}

func (p *placement) Presence(_ context.Context, q Question) ([]Presence, error) {
	select {
	case p.asked <- q:
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Presence
	for _, s := range q.Sites {
		out = append(out, p.at[s])
	}
	return out, nil
}

type fixture struct {
	scrub Scrub
	*testing.T
	mesh      *apitest.Mesh
	catalog   *catalog.Catalog
	placement *placement
	leave     *leave
	api       *API
	backup    func(context.Context, io.Writer) error
	previewed PreviewQuestion // the last one asked
	preview   Preview         // what it is answered
}

func checkRule(r state.Rule) (out []RuleProblem) {
	for _, p := range rules.Check(r) {
		out = append(out, RuleProblem(p))
	}
	return out
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	m := apitest.New(t, "fra", "nyc", "sgp")
	f := &fixture{T: t, mesh: m, catalog: apitest.OpenCatalog(t), placement: &placement{at: map[string]Presence{}, asked: make(chan Question, 1)}, leave: &leave{}}
	for _, s := range m.State.View().Sites() {
		f.placement.set(s.Name, Presence{})
	}
	var err error
	f.api, err = New(Config{
		View: m.State.View, Replica: m, Proposer: m, Access: m.Access, Catalog: apitest.Tags{Catalog: f.catalog}, Placement: f.placement, Self: m.Identity.ID, Site: m.Site,
		Consensus: func() Consensus {
			return Consensus{Leader: m.Identity.ID, LeaderSite: m.Site, Term: 1, Index: 9, Applied: 9, Voters: []identity.NodeID{m.Identity.ID},
				Profile: "lan", Suggested: "wan", RoundTrip: 81.5, VotersWanted: m.State.View().Mesh().WantsVoters(),
				RoundTrips: []RoundTrip{{From: "fra", To: "nyc", RTT: 81.5}, {From: "nyc", To: "fra", RTT: 82}}}
		},
		Peer:    func(id identity.NodeID) (bool, time.Duration) { return !f.leave.away(id), 12500 * time.Microsecond },
		Removed: f.leave.removedAs, LastCopies: f.leave.answer,
		JoinToken: func(j JoinToken) (string, error) { return hex.EncodeToString(j.Secret[:]) + "." + j.Site, nil },
		Backup:    func(ctx context.Context, w io.Writer) error { return f.backup(ctx, w) },
		CheckRecovery: func(s string) error {
			if !strings.HasPrefix(s, "age1") {
				return errors.New("this is not the public half of a recovery key")
			}
			return nil
		},
		CheckRule:   checkRule,
		Scrub:       func() Scrub { return f.scrub },
		StartScrub:  func() { f.scrub.Running = true },
		PreviewRule: func(_ context.Context, q PreviewQuestion) (Preview, error) { f.previewed = q; return f.preview, nil },
		Version:     "test", Now: time.Now, Logger: slog.New(slog.DiscardHandler), Poll: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// want calls as admin (or as the user before a colon in path) and checks.
func (f *fixture) want(status int, user, method, path, body string) apitest.Answer {
	f.Helper()
	a := apitest.Call(f, f.api, user, method, Prefix+path, body)
	if a.Status != status {
		f.Errorf("%s %s as %q: %d, want %d: %s", method, path, user, a.Status, status, a.Body)
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

func TestAPI_Status(t *testing.T) {
	f := newFixture(t)
	s := decode[Status](f, f.want(200, "admin", "GET", "/status", ""))
	if s.Site != "fra" || s.Role != "voter" || s.LeaderSite != "fra" || len(s.Sites) != 3 || len(s.Voters) != 1 {
		t.Errorf("status %+v", s)
	}
	self, other := s.Sites[0].Nodes[0], s.Sites[1].Nodes[0]
	if !self.Self || !self.Leader || !self.Alive || other.Self || other.RTT != 12.5 || !other.Alive {
		t.Errorf("nodes %+v, %+v", self, other)
	}
	f.want(401, "", "GET", "/status", "")
	sites := decode[[]Site](f, f.want(200, "admin", "GET", "/sites", ""))
	if len(sites) != 3 || sites[2].Name != "sgp" || len(sites[2].Nodes) != 1 {
		t.Errorf("sites %+v", sites)
	}
	f.want(200, "admin", "GET", "/sites/nyc", "")
	if a := f.want(404, "admin", "GET", "/sites/mars", ""); !strings.Contains(a.Body, "fra, nyc, sgp") {
		t.Errorf("does not say which sites there are: %s", a.Body)
	}
	if nodes := decode[[]Node](f, f.want(200, "admin", "GET", "/nodes", "")); len(nodes) != 3 {
		t.Errorf("nodes %+v", nodes)
	}
}

func TestAPI_Profile(t *testing.T) {
	f := newFixture(t)
	p := decode[Profile](f, f.want(200, "admin", "GET", "/profile", ""))
	if p != (Profile{Name: "lan", InUse: "lan", Suggested: "wan", RoundTrip: 81.5, Version: 1}) {
		t.Errorf("profile %+v", p)
	}
	p = decode[Profile](f, f.want(200, "admin", "PUT", "/profile", `{"name":"wan","resource_version":1}`))
	if p.Name != "wan" || p.InUse != "lan" || p.Version != 2 {
		t.Errorf("changed %+v", p)
	}
	f.want(422, "admin", "PUT", "/profile", `{"name":"near"}`)
	f.want(401, "", "GET", "/profile", "")
}

func TestAPI_Tokens(t *testing.T) {
	f := newFixture(t)
	a := f.want(201, "admin", "POST", "/tokens", `{"site":"syd","expires_in":"2h"}`)
	made := decode[Token](f, a)
	if made.Site != "syd" || made.State != "open" || made.Token == "" || made.CreatedBy != "user:admin" {
		t.Errorf("made %+v", made)
	}
	if left := time.Until(made.ExpiresAt); left < time.Hour || left > 2*time.Hour {
		t.Errorf("lives %s", left)
	}
	secret, _ := hex.DecodeString(strings.TrimSuffix(made.Token, ".syd"))
	if kept, _ := f.mesh.State.View().Token(made.ID); kept.SecretHash != sha256.Sum256(secret) {
		t.Error("what is kept is not the hash of what was given out")
	}
	if a := f.want(200, "admin", "GET", strings.TrimPrefix(a.Header.Get("Location"), Prefix), ""); strings.Contains(a.Body, `"token"`) {
		t.Errorf("the secret is shown again: %s", a.Body)
	}
	for _, c := range []struct {
		body   string
		status int
	}{
		{`{"site":"syd","expires_in":"soon"}`, 400},
		{`{"site":"syd","expires_in":"-1h"}`, 400},
		{`{"site":"syd","expires_in":"100000h"}`, 400},
		{`{"site":"S Y D"}`, 400},
		{`{"site":"nyc"}`, 409},
		{`{"site":""}`, 422},
		{`{"sight":"syd"}`, 422}, // our own API knows its fields
	} {
		f.want(c.status, "admin", "POST", "/tokens", c.body)
	}
	f.want(200, "admin", "DELETE", fmt.Sprintf("/tokens/%d", made.ID), "")
	f.want(404, "admin", "DELETE", fmt.Sprintf("/tokens/%d", made.ID), "")
	if a := f.want(200, "admin", "GET", "/tokens", ""); a.Body != "[]\n" {
		t.Errorf("tokens: %s", a.Body)
	}
}

func TestAPI_Rules(t *testing.T) {
	f := newFixture(t)
	r := decode[Rule](f, f.want(201, "admin", "POST", "/rules", `{"name":"everywhere","projects":["prod"],"sites":["all"]}`))
	if r.ID == 0 || r.Version != 1 || !slices.Equal(r.Sites, []string{"all"}) || r.Tags == nil {
		t.Errorf("made %+v", r)
	}
	for _, c := range []struct {
		body   string
		status int
	}{
		{`{"name":"everywhere","projects":["prod"],"sites":["all"]}`, 409},
		{`{"name":"x","projects":["prod"],"sites":["mars"]}`, 400},
		{`{"name":"x","projects":["prod"],"sites":["all","fra"]}`, 400},
		{`{"name":"x","projects":["[a"],"sites":["all"]}`, 400},
		{`{"name":"x","projects":[],"sites":["all"]}`, 422},
		{`{"name":"x y","projects":["prod"],"sites":["all"]}`, 400},
	} {
		f.want(c.status, "admin", "POST", "/rules", c.body)
	}
	up := decode[Rule](f, f.want(200, "admin", "PUT", "/rules/everywhere", `{"name":"asia","projects":["prod"],"tags":["v*"],"sites":["sgp"],"resource_version":1}`))
	if up.Name != "asia" || up.ID != r.ID || up.Version != 2 {
		t.Errorf("changed to %+v", up)
	}
	f.want(409, "admin", "PUT", "/rules/asia", `{"name":"asia","projects":["prod"],"sites":["all"],"resource_version":1}`)
	f.want(200, "admin", "GET", fmt.Sprintf("/rules/%d", r.ID), "")
	f.want(200, "admin", "DELETE", "/rules/asia", "")
	f.want(404, "admin", "GET", "/rules/asia", "")
}

// TestAPI_Conditions: each object that can be edited is edited only as it was
// seen.
func TestAPI_Conditions(t *testing.T) {
	f := newFixture(t)
	f.want(201, "admin", "POST", "/rules", `{"name":"r","projects":["prod"],"sites":["all"]}`)
	token := decode[Token](f, f.want(201, "admin", "POST", "/tokens", `{"site":"syd"}`))
	send := func(status int, match, method, path, body string) {
		t.Helper()
		if a := apitest.CallWith(f, f.api, map[string]string{"If-Match": match}, "admin", method, Prefix+path, body); a.Status != status {
			t.Errorf("%s %s if %s: %d, want %d: %s", method, path, match, a.Status, status, a.Body)
		}
	}
	for _, c := range []struct{ path, body string }{
		{"/rules/r", `{"name":"r","projects":["*"],"sites":["all"]%s}`},
		{"/profile", `{"name":"wan"%s}`},
		{fmt.Sprintf("/tokens/%d", token.ID), ""},
	} {
		tag := f.want(200, "admin", "GET", c.path, "").Header.Get("ETag")
		if !strings.HasSuffix(tag, `-1"`) {
			t.Fatalf("%s has the ETag %s", c.path, tag)
		}
		if c.body != "" {
			send(200, tag, "PUT", c.path, fmt.Sprintf(c.body, ""))
			send(412, tag, "PUT", c.path, fmt.Sprintf(c.body, ""))
			send(409, "", "PUT", c.path, fmt.Sprintf(c.body, `,"resource_version":1`))
			send(200, "", "PUT", c.path, fmt.Sprintf(c.body, `,"resource_version":2`))
			send(200, "*", "PUT", c.path, fmt.Sprintf(c.body, ""))
			send(400, "nonsense", "PUT", c.path, fmt.Sprintf(c.body, ""))
			tag = f.want(200, "admin", "GET", c.path, "").Header.Get("ETag")
		}
		if c.path != "/profile" {
			send(412, strings.Replace(tag, `-`, `-9`, 1), "DELETE", c.path, "")
			send(200, tag, "DELETE", c.path, "")
		}
	}
	// A rule of the same name is another rule.
	old := decode[Rule](f, f.want(201, "admin", "POST", "/rules", `{"name":"r","projects":["prod"],"sites":["all"]}`))
	f.want(200, "admin", "DELETE", "/rules/r", "")
	f.want(201, "admin", "POST", "/rules", `{"name":"r","projects":["prod"],"sites":["all"]}`)
	send(412, fmt.Sprintf(`"%d-1"`, old.ID), "DELETE", "/rules/r", "")
	if a := f.want(200, "admin", "GET", "/sites/nyc", ""); !strings.HasSuffix(a.Header.Get("ETag"), `-1"`) {
		t.Errorf("a site's ETag is %q", a.Header.Get("ETag"))
	}
}

func TestAPI_Tags(t *testing.T) {
	f := newFixture(t)
	one := f.mesh.Push(f.catalog, "library", "app", "one", "1.0", "1.1", "latest")
	a := f.want(200, "admin", "GET", "/tags?repository=app&n=2", "")
	tags := decode[[]Tag](f, a)
	if len(tags) != 2 || tags[0].Name != "1.0" || tags[0].Digest != one || a.Header.Get("X-Next") != "1.1" {
		t.Errorf("tags %+v, next %q", tags, a.Header.Get("X-Next"))
	}
	a = f.want(200, "admin", "GET", "/tags?repository=library/app&n=2&after=1.1", "")
	if tags = decode[[]Tag](f, a); len(tags) != 1 || a.Header.Get("X-Next") != "" {
		t.Errorf("tags %+v, next %q", tags, a.Header.Get("X-Next"))
	}
	f.want(404, "admin", "GET", "/tags?repository=none", "")
	f.want(404, "admin", "GET", "/tags?repository=nowhere/app", "")
	f.want(400, "admin", "GET", "/tags?repository=app:1.0", "")
	f.want(400, "admin", "GET", "/tags?repository=APP", "")
	f.want(400, "admin", "DELETE", "/tags?image=app", "")
	f.want(200, "admin", "DELETE", "/tags?image=app:latest", "")
	f.want(404, "admin", "DELETE", "/tags?image=app:latest", "")
}

func TestAPI_Where(t *testing.T) {
	f := newFixture(t)
	d := f.mesh.Push(f.catalog, "library", "app", "one", "1.0")
	other := digest.FromString("other")
	f.placement.set("fra", Presence{Reachable: true, TagDigest: d, Total: 2, Complete: true, Covered: true})
	f.placement.set("nyc", Presence{Reachable: true, TagDigest: other, Total: 2, Missing: []digest.Digest{other}})
	f.placement.set("sgp", Presence{Error: "site sgp did not answer within 4s", Total: 2})
	for _, image := range []string{"app:1.0", "library/app:1.0", "127.0.0.1:5000/library/app:1.0", "reg.example.org/app:1.0", "app:1.0@" + d.String()} {
		w := decode[Where](f, f.want(200, "admin", "GET", "/where?image="+url.QueryEscape(image), ""))
		if w.Digest != d || w.Image != "library/app:1.0@"+d.String() || len(w.Sites) != 3 || !w.Sites[0].Complete || w.Sites[2].Reachable {
			t.Errorf("%s: %+v", image, w)
		}
	}
	long := digest.SHA512.FromString("one")
	for _, by := range []digest.Digest{d, long} {
		w := decode[Where](f, f.want(200, "admin", "GET", "/where?image="+url.QueryEscape("app@"+by.String())+"&sites=nyc", ""))
		if w.Tag != "" || w.Digest != by || len(w.Sites) != 1 || w.Sites[0].Site != "nyc" {
			t.Errorf("by digest: %+v", w)
		}
	}
	for path, status := range map[string]int{
		"/where?image=app":             404, // there is no latest
		"/where?image=app:2.0":         404,
		"/where?image=nowhere/app:1.0": 404,
		"/where?image=%21":             400,
		"/where?image=app%40" + digest.SHA384.FromString("one").String(): 400,
		"/where?image=app:1.0&sites=mars":                                404,
		"/where":                                                         422,
		"/where?image=app:1.0&sites=fra,mars":                            404,
	} {
		f.want(status, "admin", "GET", path, "")
	}
	f.want(401, "", "GET", "/where?image=app:1.0", "")
}

func TestAPI_Wait_HoldsToTheDigest(t *testing.T) {
	f := newFixture(t)
	first := f.mesh.Push(f.catalog, "library", "app", "one", "1.0")
	f.placement.set("fra", Presence{Reachable: true, TagDigest: first, Complete: true, Covered: true})
	f.placement.set("nyc", Presence{Reachable: true, Covered: true, Total: 2, Missing: []digest.Digest{first}})

	answer := make(chan apitest.Answer, 1)
	go func() {
		answer <- apitest.Call(t, f.api, "admin", "GET", Prefix+"/wait?image=app:1.0&sites=fra,nyc&for=20s", "")
	}()
	<-f.placement.asked
	// Somebody pushes over the tag: the wait goes on for what it began with.
	f.mesh.Push(f.catalog, "library", "app", "two", "1.0")
	if q := <-f.placement.asked; q.Digest != first || q.Tag != "1.0" {
		t.Errorf("asked for %s of tag %s", q.Digest, q.Tag)
	}
	f.placement.set("nyc", Presence{Reachable: true, TagDigest: first, Covered: true, Total: 2, Complete: true})
	if w := decode[Wait](f, <-answer); !w.Done || w.Digest != first || w.Image != "library/app:1.0@"+first.String() {
		t.Errorf("answered %+v", w)
	}
}

func TestAPI_Wait_Ends(t *testing.T) {
	f := newFixture(t)
	d := f.mesh.Push(f.catalog, "library", "app", "one", "1.0")
	done := Presence{Reachable: true, TagDigest: d, Complete: true, Covered: true}
	f.placement.set("fra", done)
	f.placement.set("nyc", Presence{Covered: true, Error: "site nyc did not answer within 4s"})
	f.placement.set("sgp", done)

	w := decode[Wait](f, f.want(200, "admin", "GET", "/wait?image=app:1.0&for=5ms", ""))
	if w.Done || len(w.Uncovered) != 0 || len(w.Sites) != 3 {
		t.Errorf("at the slice's end: %+v", w)
	}
	f.placement.set("sgp", Presence{Reachable: true})
	w = decode[Wait](f, f.want(200, "admin", "GET", "/wait?image=app:1.0", "")) // at once, not after 20 s
	if w.Done || !slices.Equal(w.Uncovered, []string{"sgp"}) {
		t.Errorf("no rule: %+v", w)
	}
	f.want(404, "admin", "GET", "/wait?image=app:2.0&for=5ms", "")
	f.want(404, "admin", "GET", "/wait?image=app:1.0&sites=mars", "")
	f.want(400, "admin", "GET", "/wait?image=app:1.0&for=never", "")

	// The node stops, or the client goes.
	f.placement.set("sgp", done)
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "GET", Prefix+"/wait?image=app:1.0", nil)
	r.SetBasicAuth("admin", apitest.AdminPassword)
	rec, ended := httptest.NewRecorder(), make(chan struct{})
	for len(f.placement.asked) > 0 {
		<-f.placement.asked
	}
	go func() { f.api.ServeHTTP(rec, r); close(ended) }()
	<-f.placement.asked
	cancel()
	<-ended
	if rec.Code != 503 || rec.Header().Get("Retry-After") == "" {
		t.Errorf("when stopped: %d %s", rec.Code, rec.Body)
	}
}

func TestAPI_Wait_ForATagThatIsOnItsWay(t *testing.T) {
	f := newFixture(t)
	f.mesh.Push(f.catalog, "library", "app", "one", "1.0")
	for _, s := range []string{"fra", "nyc", "sgp"} {
		f.placement.set(s, Presence{Reachable: true, Complete: true})
	}
	answer := make(chan apitest.Answer, 1)
	go func() { answer <- apitest.Call(t, f.api, "admin", "GET", Prefix+"/wait?image=app:2.0", "") }()
	d := f.mesh.Push(f.catalog, "library", "app", "two", "2.0")
	if w := decode[Wait](f, <-answer); !w.Done || w.Digest != d {
		t.Errorf("answered %+v", w)
	}
}

// hanging answers once, and then not any more.
type hanging struct {
	*placement
	answers int
}

func (p *hanging) Presence(ctx context.Context, q Question) ([]Presence, error) {
	if p.answers--; p.answers < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return p.placement.Presence(ctx, q)
}

// A site that hangs does not make a wait longer than was asked for.
func TestAPI_Wait_EndsInTimeWhenASiteHangs(t *testing.T) {
	f := newFixture(t)
	d := f.mesh.Push(f.catalog, "library", "app", "one", "1.0")
	f.placement.set("nyc", Presence{Reachable: true, TagDigest: d, Covered: true, Total: 2, Missing: []digest.Digest{d}})
	f.api.cfg.Placement = &hanging{f.placement, 1}
	w := decode[Wait](f, f.want(200, "admin", "GET", "/wait?image=app:1.0&sites=nyc&for=30ms", ""))
	if w.Done || len(w.Sites) != 1 || len(w.Sites[0].Missing) != 1 {
		t.Errorf("the last answer that there was: %+v", w)
	}
}

// A copy that may be dropped at any moment is none that somebody may wait for.
func TestAPI_Wait_DoesNotCountWhatMayGo(t *testing.T) {
	f := newFixture(t)
	d := f.mesh.Push(f.catalog, "library", "app", "one", "1.0")
	f.placement.set("fra", Presence{Reachable: true, TagDigest: d, Complete: true, Covered: true})
	f.placement.set("nyc", Presence{Reachable: true, TagDigest: d, Complete: true, Evictable: true})
	w := decode[Wait](f, f.want(200, "admin", "GET", "/wait?image=app:1.0&sites=fra,nyc", "")) // at once
	if w.Done || !slices.Equal(w.Uncovered, []string{"nyc"}) {
		t.Errorf("pulled, and no rule: %+v", w)
	}
}

// What was pushed at another site a moment ago is asked for before it is said
// not to be there.
func TestAPI_AsksTheOthersBeforeItSaysNo(t *testing.T) {
	for _, c := range []struct{ method, path string }{
		{"GET", "/where?image=prod/app:1.0"}, {"GET", "/wait?image=prod/app:1.0&for=20s"},
		{"GET", "/tags?repository=prod/app"}, {"DELETE", "/tags?image=prod/app:1.0"},
	} {
		f := newFixture(t)
		pid := identity.NewProjectID()
		if _, err := f.mesh.Propose(t.Context(), "system", &command.ProjectCreate{ProjectId: pid[:], Name: "prod"}); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"fra", "nyc", "sgp"} {
			f.placement.set(s, Presence{Reachable: true, Complete: true})
		}
		asked := 0
		f.api.cfg.Refresh = func(context.Context, identity.ProjectID) ([]string, error) {
			if asked++; asked == 1 {
				f.mesh.Push(f.catalog, "prod", "app", "one", "1.0")
			}
			return nil, nil
		}
		f.want(200, "admin", c.method, c.path, "")
		if asked != 1 {
			t.Errorf("%s %s asked the others %d times", c.method, c.path, asked)
		}
	}
}

func TestAPI_OpenAPI(t *testing.T) {
	f := newFixture(t)
	var doc struct{ Paths map[string]map[string]any }
	a := f.want(200, "", "GET", "/openapi.json", "")
	if err := json.Unmarshal([]byte(a.Body), &doc); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/status", "/sites", "/nodes", "/tokens", "/rules/{rule}", "/where", "/wait", "/tags"} {
		if doc.Paths[p] == nil {
			t.Errorf("description lacks %s", p)
		}
	}
}
