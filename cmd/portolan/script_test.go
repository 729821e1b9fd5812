package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/portolan/portolan/consensus/backup"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi"
	"github.com/portolan/portolan/registryapi/apitest"
	"github.com/portolan/portolan/registryapi/harbor"
	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/transfer/rules"
)

var update = flag.Bool("update", false, "rewrite the scripts' expected outputs; read the difference")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"portolan": main})
}

// TestScripts runs the real command against a node's real API: control state,
// rights and catalogue are the node's own, only what other sites would answer
// is said by the script (presence).
//
// Beside testscript's own commands there are
//
//	push IMAGE TEXT            an image arrives in the catalogue
//	presence SITE WORDS…       what the site answers of any image: reachable, complete, covered, spare, evictable, missing=N, torn (an error of several lines)
//	leaving SITE WORDS…        what the site alone holds: copies=N (in parts of two), unseen, silent, away (no gossip of it)
//	conflict IMAGE TEXT        another site pushes the tag, unknown to this one, and this one hears of it
//	watched N                  waits until the node was asked N times for its transfers
//	removed                    the asked node was removed
//	lose SITES… | heal         the majority is out of reach, or back
//	rotate                     the nodes do what keys rotate has asked for
//	settle                     the last stdout to the file got, with TIME, DIGEST, NODE… for what differs each time
//	onedoc                     the last stdout is exactly one JSON document
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setup,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"push": func(ts *testscript.TestScript, _ bool, args []string) {
				repo, tag, _ := strings.Cut(args[0], ":")
				project, repo, _ := strings.Cut(repo, "/")
				w := world(ts)
				w.placement.tag(w.mesh.Push(w.catalog, project, repo, args[1], tag))
			},
			"presence": func(ts *testscript.TestScript, _ bool, args []string) { world(ts).placement.set(args[0], args[1:]) },
			"leaving":  func(ts *testscript.TestScript, _ bool, args []string) { world(ts).leaving.set(args[0], args[1:]) },
			"conflict": conflict,
			"watched":  func(ts *testscript.TestScript, _ bool, args []string) { world(ts).transfers.await(ts, args[0]) },
			"removed":  func(ts *testscript.TestScript, _ bool, _ []string) { world(ts).leaving.remove() },
			"lose":     func(ts *testscript.TestScript, _ bool, args []string) { world(ts).mesh.Lose(args) },
			"heal":     func(ts *testscript.TestScript, _ bool, _ []string) { world(ts).mesh.Lose(nil) },
			"rotate":   func(ts *testscript.TestScript, _ bool, _ []string) { world(ts).rotate(ts) },
			"settle":   settle,
			"onedoc": func(ts *testscript.TestScript, _ bool, _ []string) {
				dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
				var v any
				if err := dec.Decode(&v); err != nil {
					ts.Fatalf("stdout is no JSON document: %v", err)
				}
				if err := dec.Decode(&v); err != io.EOF {
					ts.Fatalf("stdout has more than one JSON document")
				}
			},
		},
	})
}

// scene is what a script acts in.
type scene struct {
	mesh      *apitest.Mesh
	catalog   *catalog.Catalog
	placement *placement
	leaving   *leaving
	transfers *transfers
	scrubs    atomic.Int64 // that were asked for
}

type sceneKey struct{}

func world(ts *testscript.TestScript) *scene { return ts.Value(sceneKey{}).(*scene) }

func setup(env *testscript.Env) error {
	tb := env.T().(testing.TB)
	m := apitest.New(tb, "fra", "nyc", "sgp")
	w := &scene{mesh: m, catalog: apitest.OpenCatalog(tb), placement: &placement{at: map[string]mesh.Presence{}}, leaving: &leaving{}, transfers: newTransfers()}
	log := slog.New(slog.DiscardHandler)
	hapi, err := harbor.New(harbor.Config{View: m.State.View, Replica: m, Proposer: m, Access: m.Access, Catalog: w.catalog, Version: "test", Logger: log})
	if err != nil {
		return err
	}
	mapi, err := mesh.New(mesh.Config{
		View: m.State.View, Replica: m, Proposer: m, Access: m.Access, Catalog: apitest.Tags{Catalog: w.catalog}, Placement: w.placement, Self: m.Identity.ID, Site: m.Site,
		Consensus: func() mesh.Consensus {
			c := mesh.Consensus{Leader: m.Identity.ID, LeaderSite: m.Site, Term: 1, Index: 12, Applied: 12, Profile: "lan", Suggested: "wan", RoundTrip: 81.5,
				VotersWanted: m.State.View().Mesh().WantsVoters(),
				RoundTrips:   []mesh.RoundTrip{{From: "fra", To: "nyc", RTT: 81.5}, {From: "fra", To: "sgp", RTT: 162}, {From: "nyc", To: "fra", RTT: 82.25}, {From: "nyc", To: "sgp", RTT: 210.1}}}
			for _, n := range m.State.View().Nodes() {
				c.Voters = append(c.Voters, n.ID)
			}
			return c
		},
		Peer: func(id identity.NodeID) (bool, time.Duration) {
			n, _ := m.State.View().Node(id)
			return !w.leaving.isAway(n.Site), 12500 * time.Microsecond
		},
		TagsWait: func(context.Context, identity.ProjectID) []mesh.TagWait {
			return []mesh.TagWait{{Site: "sgp", Reason: "it does not answer"}}
		},
		StepWaits: func(context.Context, identity.ProjectID, string) string { return "site fra has not yet all entries" },
		Removed:   w.leaving.status, LastCopies: w.leaving.answer,
		JoinToken: func(j mesh.JoinToken) (string, error) { return hex.EncodeToString(j.Secret[:]), nil },
		Backup: func(_ context.Context, out io.Writer) error {
			st := m.State.View().KeyState()
			if st.Recovery == "" {
				return &command.Error{Code: command.CodeConflict, Message: "the mesh has no recovery key to seal a backup to: make one with: portolan keys recovery create"}
			}
			return backup.Write(out, st.Recovery, backup.Source{View: m.State.View(), Site: m.Site, Version: "test", Now: time.Now()})
		},
		CheckRecovery: backup.CheckRecipient,
		CheckRule: func(r state.Rule) (out []mesh.RuleProblem) {
			for _, p := range rules.Check(r) {
				out = append(out, mesh.RuleProblem(p))
			}
			return out
		},
		PreviewRule: preview, Transfers: w.transfers.answer,
		Scrub: func() mesh.Scrub {
			begun := time.Date(2026, 8, 1, 12, 0, int(w.scrubs.Load()), 0, time.UTC)
			return mesh.Scrub{Rate: 8 << 20, Running: w.scrubs.Load() > 0, BegunAt: &begun, Blobs: 12, Bytes: 3 << 20, Damaged: 1, PassedAt: &begun}
		},
		StartScrub: func() { w.scrubs.Add(1) },
		Version:    "test", Now: time.Now, Logger: log, Poll: time.Millisecond,
	})
	if err != nil {
		return err
	}
	s, err := registryapi.New(registryapi.Config{Harbor: hapi, Mesh: mapi, Logger: log})
	if err != nil {
		return err
	}
	srv := httptest.NewServer(s.Handler())
	env.Defer(srv.Close)
	env.Values[sceneKey{}] = w
	env.Setenv("SERVER", srv.URL)
	env.Setenv("HOME", env.WorkDir+"/home")
	env.Setenv("XDG_CONFIG_HOME", "")
	env.Setenv("ADMIN_PASSWORD", apitest.AdminPassword)
	env.Setenv("PORTOLAN_SERVER", srv.URL)
	env.Setenv("PORTOLAN_USERNAME", "admin")
	env.Setenv("PORTOLAN_PASSWORD", apitest.AdminPassword)
	return nil
}

// rotate makes steps that the nodes would: of the gossip key the first, which nyc
// cannot open yet, of the mesh key all.
func (w *scene) rotate(ts *testscript.TestScript) {
	var boxes, allButNYC []*command.KeyBox
	for _, n := range w.mesh.State.View().Nodes() {
		b := &command.KeyBox{NodeId: n.ID[:], Box: []byte("box")}
		if boxes = append(boxes, b); n.Site != "nyc" {
			allButNYC = append(allButNYC, b)
		}
	}
	for _, s := range []*command.KeyStep{
		{Kind: command.KeyKind_KEY_KIND_GOSSIP, Version: 2, Step: command.KeyStep_STEP_ADD, Boxes: allButNYC},
		{Kind: command.KeyKind_KEY_KIND_MESH, Version: 2, Step: command.KeyStep_STEP_ADD, Boxes: boxes},
		{Kind: command.KeyKind_KEY_KIND_MESH, Version: 1, Step: command.KeyStep_STEP_REMOVE},
	} {
		_, err := w.mesh.Propose(context.Background(), "node:x", s)
		ts.Check(err)
	}
}

// placement answers as the script says that sites would.
type placement struct {
	mu     sync.Mutex
	at     map[string]mesh.Presence
	digest digest.Digest
}

func (p *placement) tag(d digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.digest = d
}

func (p *placement) set(site string, words []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := mesh.Presence{Site: site, Total: 3}
	for _, w := range words {
		switch name, n, _ := strings.Cut(w, "="); name {
		case "reachable":
			s.Reachable = true
		case "complete":
			s.Reachable, s.Complete, s.TagDigest = true, true, p.digest
		case "covered":
			s.Covered = true
		case "spare":
			s.Spare = true
		case "evictable":
			s.Evictable = true
		case "torn":
			s.Error = "dial nyc:\n  * refused\n  * timed out"
		case "missing":
			count, _ := strconv.Atoi(n)
			for i := range count {
				s.Missing = append(s.Missing, digest.FromString(strconv.Itoa(i)))
			}
		}
	}
	if !s.Reachable && s.Error == "" {
		s.Error = "site " + site + " did not answer within 4s"
	}
	p.at[site] = s
}

func (p *placement) Presence(_ context.Context, q mesh.Question) ([]mesh.Presence, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []mesh.Presence
	for _, s := range q.Sites {
		v := p.at[s]
		v.Site = s
		out = append(out, v)
	}
	return out, nil
}

// preview says of any rule that it would move the same, so that the script sees
// what was asked and how an answer is shown. What a rule moves is transfer's to
// test.
func preview(_ context.Context, q mesh.PreviewQuestion) (mesh.Preview, error) {
	p := mesh.Preview{Matched: 12, Artifacts: 3, Looked: 40, Partial: q.Rule.Name == "vast",
		Sites: []mesh.PreviewSite{{Site: "nyc", Artifacts: 2, Blobs: 9, Bytes: 250e6, HeldBlobs: 4, HeldBytes: 1e6}, {Site: "sgp", Artifacts: 1, Refused: 5, Dropped: 2}},
		Names: []string{"prod/app:v1", "prod/app@" + digest.FromString("x").String()}, Unseen: []mesh.Unseen{{Project: "secret", Sites: []string{"nyc"}}}}
	p.Names = p.Names[:min(q.Names, len(p.Names))]
	if q.Rule.ID != 0 { // a change
		p.Sites, p.Unseen = p.Sites[:1], nil
	}
	return p, nil
}

var varying = []struct {
	re   *regexp.Regexp
	word string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z`), "TIME"},
	{regexp.MustCompile(`sha256:[0-9a-f]{12,64}`), "DIGEST"},
	{regexp.MustCompile(`age1[0-9a-z]{58}`), "RECIPIENT"},
	{regexp.MustCompile(`12D3KooW[1-9A-HJ-NP-Za-km-z]{44}`), "NODE"},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`"[0-9a-f]{64}"`), `"SECRET"`},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "DIGEST"},
}

// settle writes stdout to the file got, what varies from run to run replaced,
// for cmp.
func settle(ts *testscript.TestScript, _ bool, _ []string) {
	got := ts.ReadFile("stdout")
	for _, n := range world(ts).mesh.State.View().Nodes() {
		got = strings.ReplaceAll(got, n.ID.String(), "NODE")
		got = strings.ReplaceAll(got, n.ID.Short(), "NODE    ") // as wide: tables stay tables
	}
	for _, v := range varying {
		got = v.re.ReplaceAllString(got, v.word)
	}
	lines := strings.Split(got, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	ts.Check(os.WriteFile(ts.MkAbs("got"), []byte(strings.Join(lines, "\n")), 0o600))
}
