package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/wire"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/ports"
)

// seat is a machine that a node may be at: a data directory and an address.
type seat struct {
	dir, host string
	base      int
}

// newSeat is an empty one on loopback.
func newSeat(t testing.TB) seat {
	t.Helper()
	return seat{dir: filepath.Join(t.TempDir(), "data"), host: "127.0.0.1", base: cluster.BasePort(t, 4)}
}

func (s seat) flags() []string {
	return []string{"--data", s.dir, "--advertise", s.host, "--bind", s.host, "--http", net.JoinHostPort(s.host, strconv.Itoa(s.base)),
		"--gossip-port", strconv.Itoa(s.base + 1), "--control-port", strconv.Itoa(s.base + 2), "--data-port", strconv.Itoa(s.base + 3)}
}

func (s seat) control() string { return net.JoinHostPort(s.host, strconv.Itoa(s.base+2)) }

// join are the arguments of a join that does not go on to serve.
func (s seat) join(token string, extra ...string) []string {
	return append(append([]string{"join", token, "--no-serve"}, s.flags()...), extra...)
}

// left is what a data directory holds.
func (s seat) left(t testing.TB) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range found {
		found[i] = filepath.Base(f)
	}
	return slices.DeleteFunc(found, func(name string) bool { return name == "lock" }) // who runs here; it is never deleted
}

// tokenAt makes a join token at site i and gives its id and text.
func (m mesh) tokenAt(t testing.TB, i int, site string) (id int64, text string) {
	t.Helper()
	var made struct {
		ID    int64
		Token string
	}
	if err := json.Unmarshal([]byte(m.Must(t, i, "token", "create", "--json", "--site", site)), &made); err != nil {
		t.Fatal(err)
	}
	return made.ID, made.Token
}

// tokenState is what the list says of a token.
func (m mesh) tokenState(t testing.TB, i int, id int64) string {
	t.Helper()
	var list []struct {
		ID    int64
		State string
	}
	if err := json.Unmarshal([]byte(m.Must(t, i, "token", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, tok := range list {
		if tok.ID == id {
			return tok.State
		}
	}
	return "gone"
}

// siteNames lists the sites as site i sees them, sorted.
func (m mesh) siteNames(t *testing.T, i int) []string {
	t.Helper()
	var names []string
	for _, s := range m.meshStatus(t, i).Sites {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	return names
}

// bent changes where a token sends who joins.
func bent(t testing.TB, text string, bend func(*consensus.Token)) string {
	t.Helper()
	tok, err := consensus.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	bend(&tok)
	return tok.String()
}

// at sends it to an address alone.
func at(addr string) func(*consensus.Token) {
	return func(tok *consensus.Token) {
		tok.Nodes = []consensus.TokenNode{{Addr: addr, ID: tok.Nodes[0].ID}}
	}
}

// silent is an address that takes connections and says nothing.
func silent(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // what was not accepted goes with it
	return l.Addr().String()
}

// TestJoin_Refused joins wrongly, with the real binary: it ends with a sentence
// that says what is wrong and what to do, leaves nothing behind at either side,
// and a good token joins from the same directory afterwards.
func TestJoin_Refused(t *testing.T) {
	m := mesh{cluster.StartDev(t, 1)}
	other := mesh{cluster.StartDev(t, 1)}
	foreign := newSeat(t)
	_, text := other.tokenAt(t, 0, "elsewhere")
	if r := cluster.RunCLI(t, nil, foreign.join(text)...); r.Code != 0 {
		t.Fatalf("join of the other mesh: %s", r.Stderr)
	}

	token := func(site string) string {
		_, text := m.tokenAt(t, 0, site)
		return text
	}
	again := token("nyc") // two of a name, while neither has joined
	if r := cluster.RunCLI(t, nil, newSeat(t).join(token("nyc"))...); r.Code != 0 {
		t.Fatalf("join: %s", r.Stderr)
	}
	revoked, revokedText := m.tokenAt(t, 0, "osl")
	m.Must(t, 0, "token", "revoke", strconv.FormatInt(revoked, 10))
	deleted, deletedText := m.tokenAt(t, 0, "rom")
	m.Must(t, 0, "token", "delete", strconv.FormatInt(deleted, 10))
	sgp := token("sgp")
	otherNode, err := consensus.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	nobody := net.JoinHostPort("127.0.0.1", strconv.Itoa(ports.Free(t)))

	const stays = "what was asked may have been heard: the key stays"
	for _, c := range []struct {
		name, token string
		on          seat
		extra       []string
		keeps       string // why something stays in the directory; empty: nothing does
		says        []string
	}{
		{"revoked", revokedText, newSeat(t), nil, "", []string{"was revoked at", "portolan token create --site osl"}},
		{"deleted", deletedText, newSeat(t), nil, "", []string{"not known here", "portolan token create"}},
		{"name taken since", again, newSeat(t), nil, "", []string{`"nyc" is taken`}},
		{"another name beside it", sgp, newSeat(t), []string{"--site", "tyo"}, "", []string{`site "sgp"`, `"tyo"`}},
		{"another mesh's node at the address", bent(t, sgp, at(other.port(t, 0, controlPort))), newSeat(t), nil, stays,
			[]string{"another node than the token names", other.port(t, 0, controlPort), "make a new token"}},
		{"another mesh's node, as it is", bent(t, sgp, func(tok *consensus.Token) { tok.Nodes = otherNode.Nodes }), newSeat(t), nil, "",
			[]string{"for another mesh", "make a new token"}},
		{"directory of another mesh", sgp, foreign, nil, "it was joined before", []string{"belongs to mesh", "empty directory"}},
		{"something else at the address", bent(t, sgp, at(m.Sites[0].Host())), newSeat(t), nil, stays,
			[]string{"is not the control port of a portolan node", m.Sites[0].Host()}},
		{"nothing at the address", bent(t, sgp, at(nobody)), newSeat(t), nil, stays, []string{"cannot be reached", nobody, "open to this machine"}},
		{"no such name", bent(t, sgp, at("no-such-host.invalid:7947")), newSeat(t), nil, stays, []string{"cannot be reached", "no-such-host.invalid:7947"}},
		{"an address that says nothing", bent(t, sgp, at(silent(t))), newSeat(t), nil, stays, []string{"gives no answer", "firewall", "run the same join again"}},
		{"cut short", sgp[:len(sgp)-4], newSeat(t), nil, "", []string{"damaged", "copy all of it"}},
		{"of a newer version", "portolan2" + strings.TrimPrefix(sgp, "portolan1"), newSeat(t), nil, "", []string{"newer version", "install that version"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, sites := c.on.left(t), m.siteNames(t, 0)
			r := cluster.RunCLI(t, nil, c.on.join(c.token, c.extra...)...)
			t.Log(strings.TrimSpace(r.Stderr))
			if r.Code == 0 {
				t.Fatal("it joined")
			}
			for _, s := range c.says {
				if !strings.Contains(r.Stderr, s) {
					t.Errorf("%q is not in: %s", s, r.Stderr)
				}
			}
			if last := r.Stderr[strings.LastIndex(strings.TrimSpace(r.Stderr), "\n")+1:]; strings.Contains(last, "rpc error") || strings.Contains(r.Stderr, "goroutine ") {
				t.Errorf("that is no sentence: %s", last)
			}
			if after := c.on.left(t); c.keeps == "" && !slices.Equal(before, after) {
				t.Errorf("the directory had %v and has %v", before, after)
			} else if slices.Contains(after, "format") && !slices.Contains(before, "format") {
				t.Error("the directory belongs to a mesh now")
			}
			if after := m.siteNames(t, 0); !slices.Equal(sites, after) {
				t.Errorf("the mesh had %v and has %v", sites, after)
			}
		})
	}

	t.Run("a good token afterwards", func(t *testing.T) {
		s := newSeat(t)
		if r := cluster.RunCLI(t, nil, s.join(revokedText)...); r.Code == 0 {
			t.Fatal("a revoked token joined")
		}
		r := cluster.RunCLI(t, nil, s.join(sgp)...)
		for _, line := range []string{"asking the node at ", "the mesh has taken this node in as site sgp", "joined mesh ", "portolan serve --data"} {
			if r.Code != 0 || !strings.Contains(r.Stderr, line) {
				t.Errorf("exit %d, %q is not told: %s", r.Code, line, r.Stderr)
			}
		}
	})
}

// TestJoin_ClockAndVersion: what the binary can't be made to be, wrong about the
// time or too new, is said to a real node by the calls that the binary makes.
func TestJoin_ClockAndVersion(t *testing.T) {
	m := mesh{cluster.StartDev(t, 1)}
	id, _, err := identity.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tokenID, text := m.tokenAt(t, 0, "sgp")
	tok, err := consensus.ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	store := identity.NewStoreID()
	record := func() *command.Node {
		return consensus.Record(id, &command.Node{StoreId: store[:], Host: "127.0.0.1", GossipPort: 1, ControlPort: 2, DataPort: 3,
			RegistryUrl: "http://127.0.0.1:4", Version: "test", Level: command.Level})
	}
	for _, wrong := range []time.Duration{time.Hour, -time.Hour} {
		_, err := consensus.Join(t.Context(), consensus.JoinConfig{Token: tok, Identity: id, Node: record(), Now: func() time.Time { return time.Now().Add(wrong) }})
		if err == nil || !strings.Contains(err.Error(), "clocks differ by 1h0m0s") || !strings.Contains(err.Error(), "NTP") {
			t.Errorf("a clock that is wrong by %s: %v", wrong, err)
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+tok.Nodes[0].Addr, grpc.WithTransportCredentials(wire.Credentials(id, tok.Nodes[0].ID)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), cluster.Patience)
	defer cancel()
	_, err = consensus.NewControlClient(conn).Join(ctx, &consensus.JoinRequest{MeshId: tok.Mesh[:], TokenId: tok.ID, Secret: tok.Secret[:], Site: tok.Site,
		Node: record(), NowUnixNs: time.Now().UnixNano(), MinLevel: command.Level + 1})
	if said := status.Convert(err).Message(); !strings.Contains(said, "too new") || !strings.Contains(said, "upgrade the other sites first") {
		t.Errorf("a version that needs more than the mesh has: %v", err)
	}
	if s := m.tokenState(t, 0, tokenID); s != "open" {
		t.Errorf("the token is %s after refusals", s)
	}
	if got := m.siteNames(t, 0); len(got) != 1 {
		t.Errorf("the mesh has %v", got)
	}
}

// TestMove: a stopped node's data directory goes to another place and starts
// there with another address, as README.md says. It comes back as the site that
// it was; the others find it, take its content and its edits; none restarts.
func TestMove(t *testing.T) {
	m := mesh{cluster.StartDev(t, 2)}
	_, text := m.tokenAt(t, 0, "sgp")
	from := newSeat(t)
	p := cluster.Start(t, nil, append([]string{"join", text}, from.flags()...)...)
	const sgp = 2
	m.Sites = append(m.Sites, cluster.Site{Name: "sgp", URL: "http://127.0.0.1:" + strconv.Itoa(from.base), Data: from.dir})
	m.WaitReady(t, sgp)
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "three vote", func() error { return m.votingSites(t, i) })
	}
	blob := m.pushBlob(t, sgp, "library/kept", "1")
	before, err := identity.Load(from.dir)
	if err != nil {
		t.Fatal(err)
	}
	p.Stop(t)
	to := newSeat(t)
	to.host = "127.0.0.2"
	copyData(t, from.dir, to.dir)
	if err := os.RemoveAll(from.dir); err != nil {
		t.Fatal(err)
	}
	// An edit that it misses on its way.
	m.edits(t, 0, "meanwhile")

	p = cluster.Start(t, nil, append([]string{"serve"}, to.flags()...)...)
	m.Sites[sgp].URL, m.Sites[sgp].Data = "http://"+net.JoinHostPort(to.host, strconv.Itoa(to.base)), to.dir
	m.WaitReady(t, sgp)
	for i := range 2 {
		cluster.Eventually(t, cluster.Patience, m.Sites[i].Name+" finds it where it is", func() error {
			for _, s := range m.meshStatus(t, i).Sites {
				if s.Name == "sgp" && len(s.Nodes) == 1 && s.Nodes[0].Alive {
					return nil
				}
			}
			return fmt.Errorf("%+v", m.meshStatus(t, i))
		})
		if code, out, err := m.Get(t, i, "/api/mesh/v1/sites/sgp"); err != nil || !strings.Contains(string(out), "127.0.0.2") {
			t.Errorf("%s does not show where it is: %d %s %v", m.Sites[i].Name, code, out, err)
		}
		cluster.Eventually(t, cluster.Patience, "what it holds comes from there", func() error {
			code, _, err := m.Get(t, i, "/v2/library/kept/blobs/"+blob)
			if err == nil && code != 200 {
				err = fmt.Errorf("status %d", code)
			}
			return err
		})
		cluster.Eventually(t, cluster.Patience, "three vote", func() error { return m.votingSites(t, i) })
	}
	cluster.Eventually(t, cluster.Patience, "it has the edit that it missed", func() error { return m.hasProjects(t, sgp, "meanwhile") })
	m.edits(t, sgp, "moved")
	cluster.Eventually(t, cluster.Patience, "its edit is there", func() error { return m.hasProjects(t, 0, "moved") })
	if after, err := identity.Load(to.dir); err != nil || after.ID != before.ID {
		t.Errorf("it has become another node: %v", err)
	}
	// Its new place was kept: the next start needs no word of it.
	p.Stop(t)
	if err := said(p, "the node is at another place than before"); err != nil {
		t.Error(err)
	}
	m.RestartSite(t, sgp)
	if code, out, err := m.Get(t, 0, "/api/mesh/v1/sites/sgp"); err != nil || !strings.Contains(string(out), "127.0.0.2") {
		t.Errorf("after a restart it is not where it was: %d %s %v", code, out, err)
	}
	// Both other nodes go, and come back: they know the new address from their own disks.
	for i := range 2 {
		m.KillSite(t, i)
	}
	for i := range 2 {
		m.RestartSite(t, i)
	}
	m.edits(t, 1, "after-a-restart")
	cluster.Eventually(t, cluster.Patience, "it follows", func() error { return m.hasProjects(t, sgp, "after-a-restart") })
}
