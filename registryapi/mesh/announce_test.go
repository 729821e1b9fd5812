package mesh

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/apitest"
)

// leaving gives the index of the removal of a site that was announced last; 0: none is.
func (f *fixture) leaving(site string) (index uint64) {
	f.Helper()
	s, ok := f.mesh.State.View().Site(site)
	if !ok {
		f.Fatalf("no site %s", site)
	}
	l, _ := s.Leaving(time.Now())
	return l.Index
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
	if q := f.leave.asked[len(f.leave.asked)-1]; q.Announced != first {
		t.Errorf("announced at %d, and asked %+v", first, q)
	}
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

	if state.LeavingFor <= leaveSlice {
		t.Error("an announcement ends before the first part does")
	}
}

// proposals notes what is proposed, and fails what fail says.
type proposals struct {
	Proposer
	made  []proto.Message
	fail  func(proto.Message) error
	after func() // what was proposed is made
}

func (p *proposals) Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error) {
	p.made = append(p.made, body)
	if p.fail != nil {
		if err := p.fail(body); err != nil {
			return command.Result{}, err
		}
	}
	if ctx.Err() != nil {
		return command.Result{}, ctx.Err()
	}
	r, err := p.Proposer.Propose(ctx, actor, body)
	if p.after != nil {
		p.after()
	}
	return r, err
}

// announcements counts those that were proposed.
func (p *proposals) announcements() (n int) {
	for _, m := range p.made {
		if l, ok := m.(*command.SiteLeave); ok && !l.GetWithdraw() {
			n++
		}
	}
	return n
}

func (f *fixture) siteID(site string) int64 {
	f.Helper()
	s, ok := f.mesh.State.View().Site(site)
	if !ok {
		f.Fatalf("no site %s", site)
	}
	return s.ID
}

// watched has the fixture's proposals noted.
func (f *fixture) watched() *proposals {
	p := &proposals{Proposer: f.api.cfg.Proposer}
	f.api.cfg.Proposer = p
	return p
}

// TestAPI_Remove_NotAnnounced: of a lost site nobody is asked to take no pushes, nor of
// a witness, which takes none; both go by the same call.
func TestAPI_Remove_NotAnnounced(t *testing.T) {
	f := newFixture(t)
	p := f.watched()
	f.leave.parts = []LastCopies{oneCopy("prod/a")}
	f.want(409, "admin", "POST", "/sites/sgp/remove", `{"lost":true}`) // it answers
	f.leave.gone = map[identity.NodeID]bool{f.node("sgp"): true}
	r := decode[Removal](f, f.want(200, "admin", "POST", "/sites/sgp/remove", `{"lost":true}`))
	if r = decode[Removal](f, f.want(200, "admin", "POST", "/sites/sgp/remove", `{"lost":true,"after":"`+r.After+`"}`)); !r.Done {
		t.Errorf("lost: %+v", r)
	}
	if n := p.announcements(); n != 0 {
		t.Errorf("a lost site's removal is announced %d times", n)
	}

	witness := f.mesh.AddWitness("wit", 7100)
	asked := len(f.leave.asked)
	if r := decode[Removal](f, f.want(200, "admin", "POST", "/nodes/"+witness.String()+"/remove", `{}`)); !r.Done || !r.SiteGone {
		t.Errorf("a witness: %+v", r)
	}
	if n := p.announcements(); n != 0 || len(f.leave.asked) != asked {
		t.Errorf("a witness' removal is announced %d times, and %d questions are asked", n, len(f.leave.asked)-asked)
	}
}

// TestAPI_Remove_CalledOffWhenItFails: whichever way a removal fails, it calls itself
// off: nobody comes back for it, and the site would take no pushes for minutes.
func TestAPI_Remove_CalledOffWhenItFails(t *testing.T) {
	refused := &command.Error{Code: command.CodeDenied, Message: "the vote of its node cannot be taken"}
	away := &command.Unavailable{Reason: "leadership was lost", Indeterminate: true, RetryAfter: time.Second}
	removes := func(err error) func(proto.Message) error {
		return func(m proto.Message) error {
			if _, ok := m.(*command.NodeRemove); ok {
				return err
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		err    error // of the look
		fail   func(proto.Message) error
		part   LastCopies
		cond   string
		body   string // of the last call
		gone   bool   // the client is
		status int
	}{
		"it does not answer":            {err: &SilentSite{Site: "sgp", Err: errors.New("dial: refused")}, status: 503},
		"it does not say":               {err: &UnwillingSite{Err: errors.New("not heard yet"), Later: true}, status: 503},
		"its clock is wrong":            {err: &UnwillingSite{Err: errors.New("an hour off")}, status: 409},
		"the look fails":                {err: errors.New("the disk"), status: 500},
		"it holds last copies":          {part: oneCopy("prod/a"), status: 409},
		"the removal is refused":        {fail: removes(refused), status: 403},
		"whether it is removed is open": {fail: removes(away), status: 503},
		"forced, and open":              {fail: removes(away), body: `"force":true,`, status: 503},
		"the record was changed":        {body: `"resource_version":99,`, status: 409},
		"the client is gone":            {gone: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			p := f.watched()
			f.leave.parts = []LastCopies{{Manifests: 1}, c.part}
			// Another removal is under way, and stays so.
			other := f.mesh.Must(&command.SiteLeave{Id: f.siteID("sgp")}).Index
			r := decode[Removal](f, f.want(200, "admin", "POST", "/sites/sgp/remove", `{}`))
			mine := f.leaving("sgp")
			if mine == 0 || mine == other || r.After == "" {
				t.Fatalf("announced at %d and %d: %+v", mine, other, r)
			}
			f.leave.err, p.fail = c.err, c.fail
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.gone {
				f.leave.before = func(context.Context) { cancel() }
			}
			call := func(body string) apitest.Answer {
				req := httptest.NewRequestWithContext(ctx, "POST", Prefix+"/sites/sgp/remove", strings.NewReader(body))
				req.Header.Set("Content-Type", "application/json")
				req.SetBasicAuth("admin", apitest.AdminPassword)
				w := httptest.NewRecorder()
				f.api.ServeHTTP(w, req)
				return apitest.Answer{Status: w.Code, Header: w.Header(), Body: w.Body.String()}
			}
			a := call(`{` + c.body + `"after":"` + r.After + `"}`)
			if a.Status == 200 && !c.gone { // what was found is shown first
				a = call(`{` + c.body + `"after":"` + decode[Removal](f, a).After + `"}`)
			}
			if c.status != 0 && a.Status != c.status {
				t.Errorf("%d, want %d: %s", a.Status, c.status, a.Body)
			}
			if at := f.leaving("sgp"); at != other {
				t.Errorf("the other removal was announced at %d, this one at %d; now it is %d", other, mine, at)
			}
		})
	}
}

// TestAPI_Remove_AwaitsPushes: a removal does not give up because of a push under way,
// and not never.
func TestAPI_Remove_AwaitsPushes(t *testing.T) {
	f := newFixture(t)
	busy := &PushingSite{UnderWay: 2, Err: errors.New("2 pushes are under way")}
	f.leave.err = busy
	r := decode[Removal](f, f.want(200, "admin", "POST", "/sites/sgp/remove", `{}`))
	if r.Done || r.Pushing != 2 || r.After == "" || len(f.leave.asked) < 2 || f.leaving("sgp") == 0 {
		t.Fatalf("after %d questions %+v", len(f.leave.asked), r)
	}
	calls := 1
	for ; r.After != "" && calls < 100; calls++ {
		a := f.call("admin", "POST", "/sites/sgp/remove", `{"after":"`+r.After+`"}`)
		if a.Status != 200 {
			if a.Status != 503 || !strings.Contains(a.Body, busy.Error()) {
				t.Errorf("%d %s", a.Status, a.Body)
			}
			break
		}
		r = decode[Removal](f, a)
	}
	if calls != maxPushWaits || f.leaving("sgp") != 0 {
		t.Errorf("given up after %d calls; announced at %d", calls, f.leaving("sgp"))
	}
	// They end in time.
	r = decode[Removal](f, f.want(200, "admin", "POST", "/sites/sgp/remove", `{}`))
	f.leave.err = nil
	if r = decode[Removal](f, f.want(200, "admin", "POST", "/sites/sgp/remove", `{"after":"`+r.After+`"}`)); !r.Done || r.Pushing != 0 {
		t.Errorf("%+v", r)
	}
}

// TestAPI_Site_LeavingUntilItExpires: an abandoned removal is not shown for ever.
func TestAPI_Site_LeavingUntilItExpires(t *testing.T) {
	f := newFixture(t)
	f.mesh.Must(&command.SiteLeave{Id: f.siteID("sgp")})
	leaving := func() bool {
		s := decode[Site](f, f.want(200, "admin", "GET", "/sites/sgp", ""))
		if s.LeavingAt.IsZero() != (s.LeavingBy == "") {
			t.Errorf("%+v", s)
		}
		all := decode[[]Site](f, f.want(200, "admin", "GET", "/sites", ""))
		if all[2].LeavingAt != s.LeavingAt {
			t.Errorf("in the list %s, alone %s", all[2].LeavingAt, s.LeavingAt)
		}
		return !s.LeavingAt.IsZero()
	}
	if !leaving() {
		t.Error("it is announced, and not shown")
	}
	f.api.cfg.Now = func() time.Time { return time.Now().Add(state.LeavingFor) }
	if leaving() {
		t.Error("it has expired, and is shown")
	}
}

// TestAPI_RemoveSite_GoneWhileItIsAnnounced names the site.
func TestAPI_RemoveSite_GoneWhileItIsAnnounced(t *testing.T) {
	f := newFixture(t)
	p := f.watched()
	id := f.node("sgp")
	p.after = func() { p.after = nil; f.mesh.Must(&command.NodeRemove{NodeId: id[:]}) }
	if a := f.want(409, "admin", "POST", "/sites/sgp/remove", `{}`); !strings.Contains(a.Body, "site sgp was removed at the moment its removal was announced") {
		t.Errorf("%s", a.Body)
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

// TestAPI_Remove_GoesOnAtANodeThatIsBehind: who has not heard of an announcement does not
// take it for one that was called off, and does not call it off for everybody.
func TestAPI_Remove_GoesOnAtANodeThatIsBehind(t *testing.T) {
	f := newFixture(t)
	p := f.watched()
	id := f.node("sgp")
	for _, path := range []string{"/sites/sgp/remove", "/nodes/" + id.String() + "/remove"} {
		f.leave.parts = []LastCopies{{Manifests: 5}, oneCopy("prod/a")}
		f.mesh.Elsewhere("user:admin", &command.SiteLeave{Id: f.siteID("sgp")})
		announced := f.mesh.State.View().Index() + 1
		body := `{"after":"` + progress{Announced: announced}.String() + `"}`
		f.mesh.Lose([]string{"nyc"})
		if a := f.want(503, "admin", "POST", path, body); a.Header.Get("Retry-After") == "" || !strings.Contains(a.Body, "nyc") {
			t.Errorf("%v %s", a.Header, a.Body)
		}
		f.mesh.Lose(nil)
		if f.want(200, "admin", "POST", path, body); f.leaving("sgp") != announced || len(p.made) != 0 {
			t.Errorf("announced at %d, now at %d; proposed %v", announced, f.leaving("sgp"), p.made)
		}
		// What the state does not know once it has all is gone.
		f.mesh.Must(&command.SiteLeave{Id: f.siteID("sgp"), Withdraw: true, Announced: announced})
		if a := f.want(409, "admin", "POST", path, body); !strings.Contains(a.Body, "begin anew") {
			t.Errorf("%s", a.Body)
		}
		p.made = nil
	}
}
