package mesh

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/apitest"
)

// outer is f for what is also called inside the fuzz target, where f.Helper panics.
type outer struct{ testing.TB }

func (outer) Helper() {}

// edited are the paths that an administrator's made-up requests may edit.
var edited = regexp.MustCompile(`^` + Prefix + `/(rules|tokens|tags)(/|$)`)

// FuzzRequests sends any request to the API. Nothing is a fault of the node's,
// errors have one form, and who has no rights edits and sees nothing.
func FuzzRequests(f *testing.F) {
	m, c := apitest.New(outer{f}, "fra", "nyc", "sgp"), apitest.OpenCatalog(f)
	at := map[string]Presence{}
	for _, s := range m.State.View().Sites() {
		at[s.Name] = Presence{Site: s.Name}
	}
	api, err := New(Config{
		View: m.State.View, Replica: m, Proposer: m, Access: m.Access, Catalog: apitest.Tags{Catalog: c}, Placement: &placement{at: at, asked: make(chan Question, 1)}, Self: m.Identity.ID, Site: m.Site,
		Consensus: func() Consensus {
			return Consensus{Leader: m.Identity.ID, LeaderSite: m.Site, Term: 1, Index: 9, Applied: 9, Voters: []identity.NodeID{m.Identity.ID}, Profile: "lan"}
		},
		Peer:       func(identity.NodeID) (bool, time.Duration) { return true, time.Millisecond },
		JoinToken:  func(j JoinToken) (string, error) { return hex.EncodeToString(j.Secret[:]) + "." + j.Site, nil },
		LastCopies: func(context.Context, LastCopyQuestion) (LastCopies, error) { return LastCopies{}, nil },
		Backup: func(_ context.Context, w io.Writer) error {
			_, err := io.WriteString(w, "sealed")
			return err
		},
		CheckRecovery: func(string) error { return nil },
		CheckRule:     checkRule,
		PreviewRule:   func(context.Context, PreviewQuestion) (Preview, error) { return Preview{}, nil },
		Version:       "test", Now: time.Now, Logger: slog.New(slog.DiscardHandler), Poll: time.Millisecond,
	})
	if err != nil {
		f.Fatal(err)
	}
	propose := func(t testing.TB, body proto.Message) {
		t.Helper()
		if _, err := m.Propose(context.Background(), "system", body); err != nil {
			t.Fatal(err)
		}
	}
	hash, err := access.HashPassword(apitest.AdminPassword)
	if err != nil {
		f.Fatal(err)
	}
	propose(f, &command.UserCreate{Name: "bob", PasswordHash: hash})
	pid, admin := identity.NewProjectID(), int64(0)
	if u, ok := m.State.View().User("admin"); ok {
		admin = u.ID
	}
	propose(f, &command.ProjectCreate{ProjectId: pid[:], Name: "prod", OwnerId: admin})
	push := func() { m.Push(c, "prod", "app", "text", "1.0", "latest") }
	push()

	for _, r := range [][4]string{
		{"GET", "/status", "", ""}, {"GET", "/sites", "", ""}, {"GET", "/sites/nyc", "", ""}, {"GET", "/sites/%00", "", ""}, {"GET", "/nodes", "x=%zz", ""},
		{"GET", "/profile", "", ""}, {"GET", "/rules", "", ""}, {"POST", "/rules", "", `{"name":"all","projects":["prod"],"sites":["all"]}`},
		{"POST", "/rules", "", `{"name":"x","projects":["["],"tags":["\\"],"sites":["mars"],"priority":99999999999}`},
		{"POST", "/rules/preview", "", `{"name":"x","projects":["*"],"site_labels":"region in (eu)","copies":2,"windows":["daily 22:00-06:00 UTC"],"show":1}`},
		{"POST", "/sites/fra/labels", "", `{"set":{"region":"eu"},"remove":["x"],"resource_version":1}`},
		{"GET", "/rules/1", "", ""}, {"PUT", "/rules/all", "", `{"name":"all","projects":["**"],"sites":["fra"],"resource_version":1}`}, {"DELETE", "/rules/all", "", ""},
		{"GET", "/tokens", "", ""}, {"POST", "/tokens", "", `{"site":"par","valid_for":"1h"}`}, {"POST", "/tokens/1/revoke", "", ""}, {"DELETE", "/tokens/999999999999999999999", "", ""},
		{"GET", "/tags", "repository=prod/app&n=1&after=1.0", ""}, {"GET", "/tags", "repository=prod/app:x&n=0", ""}, {"DELETE", "/tags", "image=prod/app:1.0", ""},
		{"DELETE", "/tags", "image=prod/app@sha256:" + strings.Repeat("a", 64), ""}, {"PATCH", "/../v2/", "", "{"}, {"GET", "/openapi.json", "", ""},
	} {
		for user := range uint8(3) {
			f.Add(user, r[0], Prefix+r[1], r[2], "", r[3])
		}
		f.Add(uint8(2), r[0], Prefix+r[1], r[2], `"1-1"`, r[3])
	}
	f.Fuzz(func(t *testing.T, user uint8, method, path, query, ifMatch, body string) {
		r := apitest.Request{User: [...]string{"", "bob", "admin"}[user%3], Method: method, Path: path, Query: query, Body: body, Header: map[string]string{}}
		if ifMatch != "" {
			r.Header["If-Match"] = ifMatch
		}
		asked := r.HTTP()
		read := method == http.MethodGet || method == http.MethodHead
		// Those that wait take seconds of each request.
		if asked == nil || strings.Contains(path, "wait") || strings.Contains(path, "where") || r.User == "admin" && !read && !edited.MatchString(asked.URL.Path) {
			return
		}
		before := m.State.View().Index()
		a, _ := apitest.Send(t, api, r)
		if r.User == "admin" {
			if !read {
				tidy(t, m, propose)
				push()
			}
			return
		}
		if now := m.State.View().Index(); now != before {
			t.Fatalf("%q made an edit: %d %s", r.User, a.Status, a.Body)
		}
		if _, err := c.Tag(pid, "app", "1.0"); err != nil {
			t.Fatalf("%q deleted a tag: %v", r.User, err)
		}
		public := asked.URL.Path == Prefix+"/openapi.json" || asked.URL.Path == Prefix+"/tags" && strings.HasPrefix(asked.URL.Query().Get("repository"), "library/")
		if a.Status == http.StatusOK && !public {
			t.Fatalf("%q was shown what is not his: %s", r.User, a.Body)
		}
	})
}

// tidy takes away what an administrator has made.
func tidy(t testing.TB, m *apitest.Mesh, propose func(testing.TB, proto.Message)) {
	t.Helper()
	for _, r := range m.State.View().Rules() {
		propose(t, &command.RuleDelete{Id: r.ID})
	}
	for _, token := range m.State.View().Tokens() {
		propose(t, &command.TokenDelete{Id: token.ID})
	}
}
