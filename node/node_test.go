package node

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/config"
	"github.com/portolan/portolan/registryapi/mesh"
)

// TestRun_OneNode_StopsWithoutTrace: start, stop, start again on the same
// directory; neither leaves a goroutine or an open file.
func TestRun_OneNode_StopsWithoutTrace(t *testing.T) {
	m := newMachine(t)
	known := goleak.IgnoreCurrent()
	before := -1
	for i, args := range [][]string{{"--site", "ams"}, nil, nil} {
		m.start(args...)
		if i == 0 {
			if err := m.createProject("kept"); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.hasProject("kept"); err != nil {
			t.Errorf("start %d: %v", i+1, err)
		}
		m.mustStop()
		if i == 0 {
			// The runtime keeps some (epoll, cgroup) from the first use on.
			before = descriptors(t)
		}
		m.nothingLeft(before, known)
	}
	for _, line := range []string{"level=WARN", "level=ERROR"} {
		for l := range strings.Lines(m.log.String()) {
			if strings.Contains(l, line) && !strings.Contains(l, "plain HTTP") {
				t.Errorf("%s", l)
			}
		}
	}
}

// TestRun_ThreeNodes_StopWithoutTrace: a mesh grows by joining, an edit at one
// node is seen at all, all stop at once and start again.
func TestRun_ThreeNodes_StopWithoutTrace(t *testing.T) {
	all := []*machine{newMachine(t), newMachine(t), newMachine(t)}
	known := goleak.IgnoreCurrent()
	before := -1
	for round := range 2 {
		if round == 0 {
			all[0].start("--site", "ams")
			for i, site := range []string{"fra", "sgp"} {
				all[i+1].join(all[i].token(site))
				all[i+1].start()
			}
		} else {
			for _, m := range all {
				m.launch()
			}
			for _, m := range all {
				m.await("ready again", func() error { _, err := m.get("/readyz"); return err })
			}
		}
		project := []string{"first", "second"}[round]
		all[1].await("an edit", func() error { return all[1].createProject(project) })
		for _, m := range all {
			m.await("the edit is seen", func() error { return m.hasProject(project) })
			m.await("three voters", func() error {
				s, err := m.status()
				if err == nil && len(s.Voters) != 3 {
					err = errors.New(s.Role)
				}
				return err
			})
			m.await("all that is known is applied", func() error {
				s, err := m.status()
				if err == nil && s.Applied != s.Index {
					err = errors.New("not yet")
				}
				return err
			})
		}
		var wg sync.WaitGroup
		for _, m := range all {
			wg.Go(func() {
				if err := m.stop(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if round == 0 {
			before = descriptors(t)
		}
		all[0].nothingLeft(before, known)
	}
}

// TestRun_HalfMade: a first start that was killed between two of its steps
// begins anew, with the key and the password that it had.
func TestRun_HalfMade(t *testing.T) {
	m := newMachine(t)
	m.start("--site", "ams")
	first, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	m.mustStop()
	for name, undo := range map[string][]string{
		"before the format file":     {"format"},
		"before the settings":        {"format", config.SettingsName},
		"in the midst of the log":    {"format", config.SettingsName, filepath.Join(raftDir, "wal", "wal-meta.db")},
		"before the log":             {"format", config.SettingsName, raftDir},
		"before anything but a lock": {"format", config.SettingsName, raftDir, storeDir, "identity.key"},
	} {
		for _, path := range undo {
			if err := os.RemoveAll(filepath.Join(m.dir, path)); err != nil {
				t.Fatal(err)
			}
		}
		m.start("--site", "ams")
		s, err := m.status()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s.Mesh == first.Mesh || len(s.Sites) != 1 || s.Site != "ams" {
			t.Errorf("%s: %+v", name, s)
		}
		if _, key := os.Stat(filepath.Join(m.dir, "identity.key")); key != nil {
			t.Errorf("%s: %v", name, key)
		}
		m.mustStop()
	}
}

// TestJoin_CutShort: the mesh took the node in, and the node's machine lost
// power before it had written what it needs. The same command again heals it.
func TestJoin_CutShort(t *testing.T) {
	a, b := newMachine(t), newMachine(t)
	a.start("--site", "ams")
	token := a.token("sgp")
	for _, undo := range [][]string{{"format"}, {"format", config.SettingsName}, {"format", config.SettingsName, raftDir}} {
		b.join(token)
		for _, path := range undo {
			if err := os.RemoveAll(filepath.Join(b.dir, path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Long after the token's end: the mesh knows the node again.
	a.ahead.Store(int64(2 * time.Hour))
	b.ahead.Store(int64(2 * time.Hour))
	b.join(token)
	b.start()
	s, err := b.status()
	if err != nil || s.Site != "sgp" || len(s.Sites) != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	b.mustStop()

	// On a directory that has joined already, join changes nothing and serves.
	b.join(token)
	b.start()
	if err := b.hasProject("library"); err != nil {
		t.Error(err)
	}
	b.mustStop()
	if err := b.tryJoin(a.token("nyc")); err == nil || !strings.Contains(err.Error(), `"sgp"`) || !strings.Contains(err.Error(), "--data") {
		t.Errorf("a token for another site on a joined directory: %v", err)
	}
}

// TestJoin_Refused: each wrong join says why, leaves the directory nobody's and
// the mesh as it was.
func TestJoin_Refused(t *testing.T) {
	a, other := newMachine(t), newMachine(t)
	a.start("--site", "ams")
	other.start("--site", "ams")
	foreign := newMachine(t)
	foreign.join(other.token("nyc"))

	taken, second := a.token("fra"), a.token("fra")
	newMachine(t).join(taken)
	expired, lost := a.token("late"), gone(t)
	revoked := a.token("osl")
	a.await("revoked", func() error {
		for _, tok := range a.tokens() {
			if tok.Site == "osl" {
				_, err := a.do(http.MethodPost, fmt.Sprintf("%s/tokens/%d/revoke", mesh.Prefix, tok.ID), nil)
				return err
			}
		}
		return errors.New("no token for osl")
	})
	for name, c := range map[string]struct {
		on    *machine
		token string
		mesh  time.Duration // the mesh's clock is ahead by that
		node  time.Duration // the node's
		says  []string
	}{
		"used by another":                  {newMachine(t), taken, 0, 0, []string{"used already", "portolan token create --site fra"}},
		"name of a site that is there":     {newMachine(t), second, 0, 0, []string{"fra"}},
		"expired":                          {newMachine(t), expired, 2 * time.Hour, 2 * time.Hour, []string{"expired", "portolan token create --site late"}},
		"clock an hour ahead":              {newMachine(t), a.token("sgp"), 0, time.Hour, []string{"clock", "1h0m0s"}},
		"clock an hour behind":             {newMachine(t), a.token("sgp"), 0, -time.Hour, []string{"clock", "1h0m0s"}},
		"a directory of another mesh":      {foreign, a.token("sgp"), 0, 0, []string{"belongs to mesh", "empty directory"}},
		"revoked":                          {newMachine(t), revoked, 0, 0, []string{"revoked at", "portolan token create --site osl"}},
		"text that is no token":            {newMachine(t), "portolan1_x", 0, 0, []string{"token"}},
		"a token of a mesh that is not up": {newMachine(t), lost, 0, 0, []string{"cannot be reached", "127.0.0.1:"}},
	} {
		t.Run(name, func(t *testing.T) {
			was := c.on.made()
			before := entries(t, c.on.dir)
			a.ahead.Store(int64(c.mesh))
			c.on.ahead.Store(int64(c.node))
			err := c.on.tryJoin(c.token)
			a.ahead.Store(0)
			if err == nil {
				t.Fatal("it joined")
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q is not in: %v", s, err)
				}
			}
			if c.on.made() != was {
				t.Error("the directory belongs to a mesh now")
			}
			// What nobody answered may have been heard: there the key must stay.
			if after := entries(t, c.on.dir); c.token != lost && !slices.Equal(before, after) {
				t.Errorf("the directory had %q, and has %q now", before, after)
			}
		})
	}
	s, err := a.status()
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Sites) != 2 {
		t.Errorf("the mesh has %d sites, want ams and fra", len(s.Sites))
	}
}

// gone gives a token of a mesh that has stopped.
func gone(t *testing.T) string {
	t.Helper()
	m := newMachine(t)
	m.start("--site", "ams")
	token := m.token("sgp")
	m.mustStop()
	return token
}

// TestRun_WrongSite: settings that were lost or copied do not make a node serve
// under another site's name.
func TestRun_WrongSite(t *testing.T) {
	m := newMachine(t)
	m.start("--site", "ams")
	m.mustStop()
	if err := os.Remove(filepath.Join(m.dir, config.SettingsName)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--site", "fra"}} {
		err := m.run(t.Context(), args...)
		if err == nil || !strings.Contains(err.Error(), `"ams"`) {
			t.Errorf("%v: %v", args, err)
		}
	}
	m.start("--site", "ams")
}

// TestRun_PortInUse: TCP and UDP, each error names the port and its option, and
// nothing is made before all are free.
func TestRun_PortInUse(t *testing.T) {
	m := newMachine(t)
	for i, option := range []string{"--http", "--gossip-port", "--control-port", "--data-port"} {
		for _, network := range []string{"tcp", "udp"} {
			if network == "udp" && option != "--gossip-port" {
				continue
			}
			free := take(t, network, m.ports[i])
			err := m.run(t.Context(), "--site", "ams")
			free()
			if err == nil || !strings.Contains(err.Error(), option) || !strings.Contains(err.Error(), strconv.Itoa(m.ports[i])) {
				t.Errorf("%s port %d of %s: %v", network, m.ports[i], option, err)
			}
			if m.made() {
				t.Fatalf("%s: a mesh was made", option)
			}
		}
	}
	m.start("--site", "ams")
}

// take occupies a port.
func take(t *testing.T, network string, port int) (free func()) {
	t.Helper()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	var c io.Closer
	var err error
	if network == "tcp" {
		c, err = net.Listen(network, addr)
	} else {
		c, err = net.ListenPacket(network, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _ = c.Close() }
}

// TestRun_OtherPorts: a node that starts with other ports is found there by the
// mesh: control, gossip, data and registry, and without the others' restart.
func TestRun_OtherPorts(t *testing.T) {
	a, b, c := newMachine(t), newMachine(t), newMachine(t)
	a.start("--site", "ams")
	b.join(a.token("fra"))
	b.start()
	c.join(a.token("sgp"))
	c.start()
	for _, m := range []*machine{b, a} { // a learner or voter, and the mesh's first node
		m.mustStop()
		m.freePorts()
		m.start()
		others := []*machine{c, b}
		if m == b {
			others = []*machine{a, c}
		}
		site, err := m.status()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range others {
			o.await(site.Site+" is alive at its new ports", func() error {
				s, err := o.status()
				if err != nil {
					return err
				}
				for _, x := range s.Sites {
					if n := x.Nodes[0]; x.Name == site.Site && (!n.Alive || n.RegistryURL != m.url()) {
						return fmt.Errorf("%+v, want %s\n%s", n, m.url(), m.log.String())
					}
				}
				return nil
			})
		}
		repo := "library/" + site.Site
		d := m.push(repo, "1")
		for _, o := range others {
			o.await("what was pushed at "+site.Site+" comes over the data plane", func() error {
				if _, err := o.get("/v2/" + repo + "/manifests/1"); err != nil {
					return err
				}
				_, err := o.get("/v2/" + repo + "/blobs/" + d)
				return err
			})
			o.await("an edit", func() error {
				return o.createProject("by-" + strconv.Itoa(o.ports[0]) + "-" + strconv.Itoa(m.ports[0]))
			})
		}
	}
}

// TestRun_MovesToAnotherMachine: the data directory of a stopped node goes to a
// machine with another address, and starts there with it; the others find it.
func TestRun_MovesToAnotherMachine(t *testing.T) {
	a, b, c := newMachine(t), newMachine(t), newMachine(t)
	a.start("--site", "ams")
	b.join(a.token("fra"))
	b.start()
	c.join(a.token("sgp"))
	c.start()
	before := b.push("library/before", "1")
	b.mustStop()
	moved := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Rename(b.dir, moved); err != nil {
		t.Fatal(err)
	}
	b.dir = moved
	b.freePorts()
	b.start("--advertise", "127.0.0.2", "--bind", "127.0.0.2")
	for _, o := range []*machine{a, c} {
		o.await("the moved site is alive where it is now", func() error {
			s, err := o.status()
			if err != nil {
				return err
			}
			for _, x := range s.Sites {
				if n := x.Nodes[0]; x.Name == "fra" && (!n.Alive || n.Host != "127.0.0.2") {
					return fmt.Errorf("%+v", n)
				}
			}
			return nil
		})
		o.await("what it had comes from there", func() error {
			_, err := o.get("/v2/library/before/blobs/" + before)
			return err
		})
	}
	b.await("an edit at the moved site", func() error { return b.createProject("moved") })
	a.await("that edit", func() error { return a.hasProject("moved") })
	if out, err := a.get("/api/mesh/v1/sites/fra"); err != nil || !strings.Contains(string(out), "127.0.0.2") {
		t.Errorf("%s %v", out, err)
	}
}
