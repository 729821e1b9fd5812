package mesh

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

// showProject gives all of the project but its state at each site of the mesh: a
// restored mesh has other sites.
func showProject(t *testing.T, m mesh) string {
	t.Helper()
	var p map[string]any
	if err := json.Unmarshal([]byte(m.Must(t, 0, "project", "show", "prod", "--json")), &p); err != nil {
		t.Fatal(err)
	}
	residency, ok := p["residency"].(map[string]any)
	if states, has := residency["states"].([]any); !ok || !has || len(states) == 0 {
		t.Fatalf("the project says of no site where it is: %v", p)
	}
	delete(residency, "states")
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestBackup_RestoredWithNoOldNodeLeft makes a mesh with users, projects and
// rules, backs it up, destroys all of it, and restores it on a fresh directory.
func TestBackup_RestoredWithNoOldNodeLeft(t *testing.T) {
	dir := t.TempDir()
	m := mesh{cluster.DevIn(t, filepath.Join(dir, "old"), 2)}
	at := func(name string) string { return filepath.Join(dir, name) }
	m.Must(t, 0, "user", "create", "ann", "--password", "Harbour-5678")
	m.Must(t, 1, "project", "create", "prod")
	m.Must(t, 0, "project", "member", "set", "prod", "ann", "maintainer")
	m.Must(t, 1, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	m.Must(t, 0, "token", "create", "--site", "late")
	m.Must(t, 0, "keys", "recovery", "create", "-o", at("mesh.key"))
	// Any node makes the backup, and a rotation before it changes nothing.
	m.Must(t, 1, "keys", "rotate")
	m.Must(t, 1, "backup", "-o", at("mesh.backup"))
	said := m.Must(t, 0, "backup", "--check", at("mesh.backup"), "--recovery-key", at("mesh.key"))
	if !strings.Contains(said, "2 users, 2 projects") {
		t.Fatalf("check says:\n%s", said)
	}
	users, projects := m.Must(t, 0, "user", "list", "--json"), showProject(t, m)
	rule := m.Must(t, 0, "rule", "show", "everywhere", "--json")
	sites := m.Sites
	m.Dev.Stop(t)
	old := sites[1].Data

	data := at("new")
	base := cluster.BasePort(t, 10)
	args := func(data string) []string {
		site := "osl"
		if data == old {
			site = sites[1].Name
		}
		return []string{"--data", data, "--site", site, "--advertise", "127.0.0.1", "--http", "127.0.0.1:" + strconv.Itoa(base),
			"--gossip-port", strconv.Itoa(base + 1), "--control-port", strconv.Itoa(base + 2), "--data-port", strconv.Itoa(base + 3)}
	}
	restore := func(file, key, data string) []string {
		return append([]string{"restore", file, "--recovery-key", key}, args(data)...)
	}
	whole, err := os.ReadFile(at("mesh.backup"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte) string {
		t.Helper()
		if err := os.WriteFile(at(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}
	changed := append([]byte{}, whole...)
	changed[len(changed)/2] ^= 1
	key, err := os.ReadFile(at("mesh.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, file, key, data, says string }{
		{"cut", write("cut", whole[:len(whole)-1]), at("mesh.key"), data, "the backup is damaged"},
		{"changed", write("changed", changed), at("mesh.key"), data, "the backup is damaged"},
		{"no backup", write("text", []byte("hello")), at("mesh.key"), data, "this is not a backup of portolan"},
		{"no key", at("mesh.backup"), write("nokey", key[:40]), data, "this is not a recovery key"},
		{"not empty", at("mesh.backup"), at("mesh.key"), old, "is not empty: it belongs to mesh"},
	} {
		r := cluster.RunCLI(t, nil, restore(c.file, c.key, c.data)...)
		if r.Code == 0 || !strings.Contains(r.Stderr, c.says) {
			t.Errorf("%s: exit %d, %s", c.name, r.Code, r.Stderr)
		}
		if _, err := os.Stat(data); err == nil {
			t.Errorf("%s: a refused restore made the data directory", c.name)
		}
	}
	if err := os.RemoveAll(sites[0].Data); err != nil {
		t.Fatal(err)
	}

	p := cluster.Start(t, nil, restore(at("mesh.backup"), at("mesh.key"), data)...)
	m.Sites = []cluster.Site{{Name: "osl", URL: "http://127.0.0.1:" + strconv.Itoa(base), Data: data, PID: p.Cmd.Process.Pid}}
	m.WaitReady(t, 0)
	check := func() {
		t.Helper()
		// The old passwords, ids and versions.
		for password, want := range map[string]int{"Harbour-5678": http.StatusOK, "Harbour-8765": http.StatusUnauthorized} {
			if s := m.status(t, 0, "/api/v2.0/users/current", "ann", password); s != want {
				t.Errorf("ann's login with %q: %d", password, s)
			}
		}
		if got := m.Must(t, 0, "user", "list", "--json"); got != users {
			t.Errorf("users are\n%s, were\n%s", got, users)
		}
		if got := showProject(t, m); got != projects {
			t.Errorf("the project is\n%s, was\n%s", got, projects)
		}
		if got := m.Must(t, 0, "rule", "show", "everywhere", "--json"); got != rule {
			t.Errorf("the rule is\n%s, was\n%s", got, rule)
		}
		if got := m.Must(t, 0, "token", "list"); strings.Contains(got, "late") {
			t.Errorf("an invitation to the old mesh is there:\n%s", got)
		}
		if got := m.Must(t, 0, "status"); !strings.Contains(got, "1 of 1 nodes") {
			t.Errorf("status:\n%s", got)
		}
	}
	check()
	// A new gossip key and a new mesh key are there without being asked for.
	cluster.Eventually(t, cluster.Patience, "new keys", func() error {
		if got := m.Must(t, 0, "keys", "list"); !strings.Contains(got, "nothing") {
			return fmt.Errorf("keys:\n%s", got)
		}
		return nil
	})
	// A site of the old mesh that nobody will join as: it is there without a node
	// until somebody removes it.
	if got := m.Must(t, 0, "site", "list"); !strings.Contains(got, sites[0].Name) {
		t.Errorf("sites:\n%s", got)
	}
	m.Must(t, 0, "site", "remove", sites[0].Name)
	if got := m.Must(t, 0, "site", "list"); strings.Contains(got, sites[0].Name) {
		t.Errorf("site %s was removed, and is there:\n%s", sites[0].Name, got)
	}
	m.Must(t, 0, "project", "create", "after")
	m.Must(t, 0, "backup", "-o", at("again.backup")) // sealed to the same recovery key
	m.Must(t, 0, "backup", "--check", at("again.backup"), "--recovery-key", at("mesh.key"))

	// A power cut, and again from the directory alone.
	p.Kill()
	m.RestartSite(t, 0)
	check()
	m.Must(t, 0, "project", "show", "after")
}

// TestKeys_RotatedWhileANodeIsDown: the node starts with keys that nobody uses
// any more; it learns the new ones over the control port and is seen again.
func TestKeys_RotatedWhileANodeIsDown(t *testing.T) {
	m := mesh{cluster.StartDev(t, 3)}
	alive := func(i int, want int) func() error {
		return func() error {
			if got := strings.Count(m.Must(t, i, "status"), " alive "); got != want {
				return fmt.Errorf("%d alive", got)
			}
			return nil
		}
	}
	cluster.Eventually(t, cluster.Patience, "all are seen", alive(0, 3))
	m.KillSite(t, 2)
	cluster.Eventually(t, cluster.Patience, "a rotation without it", func() error {
		if r := m.CLI(t, 1, "keys", "rotate"); r.Code != 0 {
			return fmt.Errorf("%s", r.Stderr) // it may have led
		}
		return nil
	})
	if got := m.Must(t, 0, "keys", "list"); !strings.Contains(got, "nothing") || strings.Contains(got, "secondary") {
		t.Fatalf("keys:\n%s", got)
	}
	m.RestartSite(t, 2)
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "all are seen at "+m.Sites[i].Name, alive(i, 3))
	}
}
