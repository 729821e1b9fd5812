package mesh

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/apitest"
)

// leave answers as the test says that the catalogue and the sites would.
type leave struct {
	mu      sync.Mutex
	parts   []LastCopies // one after the other; then nothing
	err     error
	asked   []LastCopyQuestion
	gone    map[identity.NodeID]bool // by gossip
	removed *Removed
	before  func(context.Context) // each answer, if not nil
}

func (l *leave) answer(ctx context.Context, q LastCopyQuestion) (LastCopies, error) {
	if l.before != nil {
		l.before(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, q)
	if l.err != nil {
		return LastCopies{}, l.err
	}
	at := 0
	if q.After != "" {
		if _, err := fmt.Sscanf(q.After, "part %d", &at); err != nil {
			return LastCopies{}, ErrCursor
		}
	}
	if at >= len(l.parts) {
		return LastCopies{}, nil
	}
	out := l.parts[at]
	if at+1 < len(l.parts) {
		out.Next = fmt.Sprintf("part %d", at+1)
	}
	return out, nil
}

func (l *leave) away(id identity.NodeID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone[id]
}

func (l *leave) removedAs() *Removed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removed
}

func oneCopy(repository string) LastCopies {
	d := digest.FromString(repository)
	return LastCopies{Manifests: 3, Copies: []LastCopy{{Repository: repository, Digest: d, Content: []digest.Digest{d}, Bytes: 7}}}
}

// call is want without a wish.
func (f *fixture) call(user, method, path, body string) apitest.Answer {
	f.Helper()
	return apitest.Call(f, f.api, user, method, Prefix+path, body)
}

func (f *fixture) node(site string) identity.NodeID {
	f.Helper()
	nodes := f.mesh.State.View().NodesOf(site)
	if len(nodes) != 1 {
		f.Fatalf("site %s has %d nodes", site, len(nodes))
	}
	return nodes[0].ID
}

func TestAPI_RemoveSite(t *testing.T) {
	f := newFixture(t)
	nyc := f.node("nyc")
	f.want(201, "admin", "POST", "/rules", `{"name":"both","projects":["*"],"sites":["nyc","sgp"]}`)
	f.leave.parts = []LastCopies{{Manifests: 5}, {Manifests: 2}}

	// The first part says where to go on, and nothing is done before the last.
	r := decode[Removal](f, f.want(200, "admin", "POST", "/sites/nyc/remove", `{}`))
	if r.Done || r.After == "" || r.LookedAt != 5 {
		t.Fatalf("first part %+v", r)
	}
	if _, ok := f.mesh.State.View().Site("nyc"); !ok {
		t.Fatal("removed before everything was looked at")
	}
	r = decode[Removal](f, f.want(200, "admin", "POST", "/sites/nyc/remove", `{"after":"`+r.After+`"}`))
	if !r.Done || !r.SiteGone || len(r.Nodes) != 1 || r.Nodes[0] != nyc || strings.Join(r.Rules, " ") != "both" || len(r.ToChange) < 3 {
		t.Fatalf("last part %+v", r)
	}
	v := f.mesh.State.View()
	if gone, ok := v.Removed(nyc); !ok || gone.Site != "nyc" || gone.By != "user:admin" || gone.Lost {
		t.Errorf("kept of it: %+v", gone)
	}
	rule := decode[Rule](f, f.want(200, "admin", "GET", "/rules/both", ""))
	if strings.Join(rule.Gone, " ") != "nyc" || strings.Join(rule.Sites, " ") != "nyc sgp" {
		t.Errorf("the rule that names it: %+v", rule)
	}
	f.want(404, "admin", "POST", "/sites/nyc/remove", `{}`)
	if a := f.want(404, "admin", "POST", "/nodes/"+nyc.String()+"/remove", `{}`); !strings.Contains(a.Body, "was removed already, at ") {
		t.Errorf("removed again: %s", a.Body)
	}
	f.want(401, "", "POST", "/sites/sgp/remove", `{}`)
}

func TestAPI_RemoveSite_LastCopies(t *testing.T) {
	f := newFixture(t)
	f.leave.parts = []LastCopies{oneCopy("prod/a"), oneCopy("prod/b")}
	run := func(flags string) (last int, body string, copies int) {
		after := ""
		for range 10 {
			a := f.call("admin", "POST", "/sites/sgp/remove", `{"after":"`+after+`"`+flags+`}`)
			if a.Status != 200 {
				return a.Status, a.Body, copies
			}
			r := decode[Removal](f, a)
			copies += len(r.LastCopies)
			if after = r.After; r.Done {
				return 200, a.Body, copies
			}
		}
		t.Fatal("never done")
		return 0, "", 0
	}
	status, body, copies := run("")
	if status != 409 || copies != 2 || !strings.Contains(body, CodeLastCopy) || !strings.Contains(body, "of 2 images") {
		t.Errorf("%d after %d copies: %s", status, copies, body)
	}
	if _, ok := f.mesh.State.View().Site("sgp"); !ok {
		t.Fatal("removed all the same")
	}
	f.leave.parts = []LastCopies{{Unseen: []Unseen{{Project: "secret", Sites: []string{"nyc"}}}}}
	if status, body, _ := run(""); status != 409 || !strings.Contains(body, "ask a node of site sgp itself") {
		t.Errorf("what cannot be judged: %d %s", status, body)
	}
	// Lost, it goes whatever it had; but not while it answers.
	if a := f.want(409, "admin", "POST", "/sites/sgp/remove", `{"lost":true}`); !strings.Contains(a.Body, "is not lost, it answers") {
		t.Errorf("lost and alive: %s", a.Body)
	}
	f.leave.parts = []LastCopies{oneCopy("prod/a")}
	f.leave.gone = map[identity.NodeID]bool{f.node("sgp"): true}
	if status, body, copies := run(`,"lost":true`); status != 200 || copies != 1 {
		t.Errorf("lost: %d, %d copies: %s", status, copies, body)
	}
	if q := f.leave.asked[len(f.leave.asked)-1]; !q.Lost || q.Site != "sgp" {
		t.Errorf("asked %+v", q)
	}
	f.leave.parts = []LastCopies{oneCopy("prod/c")}
	r := decode[Removal](f, f.want(200, "admin", "POST", "/sites/nyc/remove", `{"force":true}`))
	if r.Done || len(r.LastCopies) != 1 {
		t.Errorf("forced, what goes is not listed first: %+v", r)
	}
	if r = decode[Removal](f, f.want(200, "admin", "POST", "/sites/nyc/remove", `{"force":true,"after":"`+r.After+`"}`)); !r.Done || len(r.LastCopies) != 0 {
		t.Errorf("forced: %+v", r)
	}
	if a := f.want(400, "admin", "POST", "/sites/fra/remove", `{"force":true}`); !strings.Contains(a.Body, "the last one that holds content") {
		t.Errorf("the last site: %s", a.Body)
	}
}

func TestAPI_RemoveSite_Silent(t *testing.T) {
	f := newFixture(t)
	f.leave.err = &SilentSite{Site: "nyc", Err: errors.New("no answer in time")}
	a := f.want(503, "admin", "POST", "/sites/nyc/remove", `{}`)
	if !strings.Contains(a.Body, "portolan site check nyc") || strings.Contains(a.Body, "lost") || !strings.Contains(a.Body, `"sites":["nyc"]`) {
		t.Errorf("silent, and alive by gossip: %s", a.Body)
	}
	f.leave.gone = map[identity.NodeID]bool{f.node("nyc"): true}
	a = f.want(503, "admin", "POST", "/sites/nyc/remove", `{}`)
	if !strings.Contains(a.Body, "portolan site remove nyc --lost") || !strings.Contains(a.Body, `"sites":["nyc"]`) {
		t.Errorf("silent: %s", a.Body)
	}
	// One that answers is there, whatever gossip says.
	for _, c := range []struct {
		err    error
		status int
	}{
		{&UnwillingSite{Err: errors.New("site nyc is there and has not heard yet"), Later: true}, 503},
		{&UnwillingSite{Err: errors.New("the clock of site nyc is an hour off")}, 409},
		{ErrNotAnnounced, 409},
	} {
		f.leave.err = c.err
		if a := f.want(c.status, "admin", "POST", "/sites/nyc/remove", `{}`); !strings.Contains(a.Body, c.err.Error()) || strings.Contains(a.Body, "lost") || (a.Header.Get("Retry-After") != "") != (c.status == 503) {
			t.Errorf("%v: %s", c.err, a.Body)
		}
	}
	f.leave.err, f.leave.gone = nil, nil
	f.want(400, "admin", "POST", "/sites/nyc/remove", `{"after":"nonsense"}`)
	f.want(422, "admin", "POST", "/sites/nyc/remove", `{"gone":true}`)
}

func TestAPI_RemoveNode(t *testing.T) {
	f := newFixture(t)
	nyc := f.node("nyc")
	f.want(400, "admin", "POST", "/nodes/x/remove", `{}`)
	r := decode[Removal](f, f.want(200, "admin", "POST", "/nodes/"+nyc.String()+"/remove", `{}`))
	if !r.Done || !r.SiteGone || r.Site != "nyc" {
		t.Errorf("%+v", r)
	}
}

// TestAPI_RemoveSite_Conditional: who saw another record removes nothing.
func TestAPI_RemoveSite_Conditional(t *testing.T) {
	f := newFixture(t)
	site := decode[Site](f, f.want(200, "admin", "GET", "/sites/nyc", ""))
	f.want(200, "admin", "POST", "/sites/nyc/drain", "")
	f.want(409, "admin", "POST", "/sites/nyc/remove", fmt.Sprintf(`{"resource_version":%d}`, site.Version))
	f.want(200, "admin", "POST", "/sites/nyc/remove", fmt.Sprintf(`{"resource_version":%d}`, site.Version+1))
}

func TestAPI_Drain(t *testing.T) {
	f := newFixture(t)
	s := decode[Site](f, f.want(200, "admin", "POST", "/sites/nyc/drain", ""))
	if !s.Draining || s.DrainedBy != "user:admin" || time.Since(s.DrainedAt) > time.Hour {
		t.Errorf("%+v", s)
	}
	if st := decode[Status](f, f.want(200, "admin", "GET", "/status", "")); !st.Sites[1].Draining || st.Sites[0].Draining {
		t.Errorf("status %+v", st.Sites)
	}
	if s = decode[Site](f, f.want(200, "admin", "POST", "/sites/nyc/undrain", "")); s.Draining || !s.DrainedAt.IsZero() {
		t.Errorf("%+v", s)
	}
	f.want(404, "admin", "POST", "/sites/mars/drain", "")
	f.want(401, "", "POST", "/sites/nyc/drain", "")
}

func TestAPI_Status_Removed(t *testing.T) {
	f := newFixture(t)
	f.leave.removed = &Removed{Site: "fra", By: "user:ann", Message: "this node was removed"}
	if s := decode[Status](f, f.want(200, "admin", "GET", "/status", "")); s.Removed == nil || s.Removed.Message != "this node was removed" {
		t.Errorf("%+v", s.Removed)
	}
}

// TestToChange: a witness has seen no images and no clients.
func TestToChange(t *testing.T) {
	f := newFixture(t)
	v := f.mesh.State.View()
	s, _ := v.Site("nyc")
	nodes := v.NodesOf("nyc")
	nodes[0].RegistryURL = "https://nyc.example.net"
	all := strings.Join(toChange(v, s, nodes), "\n")
	for _, want := range []string{"all local users (1)", "clients sent to https://nyc.example.net", "certificate for nyc.example.net", "bucket", "the images that it held"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not in\n%s", want, all)
		}
	}
	nodes[0].Witness = true
	if all := strings.Join(toChange(v, s, nodes), "\n"); strings.Contains(all, "example.net") || strings.Contains(all, "images") || !strings.Contains(all, "password hashes") {
		t.Errorf("of a witness:\n%s", all)
	}
}
