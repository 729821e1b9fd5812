package mesh

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
)

// hasProjects asks site i for projects.
func (m mesh) hasProjects(t *testing.T, i int, names ...string) error {
	t.Helper()
	r := m.CLI(t, i, "project", "list", "--json")
	if r.Code != 0 {
		return fmt.Errorf("%s", r.Stderr)
	}
	for _, name := range names {
		if !strings.Contains(r.Stdout, fmt.Sprintf("%q", name)) {
			return fmt.Errorf("no project %s: %s", name, r.Stdout)
		}
	}
	return nil
}

// votingSites asks site i how many voters there are.
func (m mesh) votingSites(t *testing.T, i int) error {
	t.Helper()
	var s struct{ Voters []string }
	r := m.CLI(t, i, "status", "--json")
	if r.Code != 0 {
		return fmt.Errorf("%s", r.Stderr)
	}
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		return err
	}
	if len(s.Voters) != 3 {
		return fmt.Errorf("%d voters: %s", len(s.Voters), r.Stdout)
	}
	return nil
}

func asides(t *testing.T, data, mark string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(data, "raft."+mark+"-*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// copyData copies a data directory as an image of its disk would, modes and all.
func copyData(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}

// TestRecover loses two of three sites for ever, brings the mesh back at the
// third, and has the lost ones come back after all.
func TestRecover(t *testing.T) {
	set := images.Make(t)
	m := mesh{cluster.StartDev(t, 3)}
	m.skopeoPush(t, 0, set.Layout("base"), "library/kept:1")
	m.Must(t, 0, "project", "create", "before")
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "the mesh has settled", func() error {
			if err := m.hasTag(t, i, "library/kept", "1"); err != nil {
				return err
			}
			if err := m.votingSites(t, i); err != nil {
				return err
			}
			return m.hasProjects(t, i, "before")
		})
	}
	last := m.Sites[2]
	recover := []string{"recover", "--data", last.Data, "--lost", "site1,site2", "--i-have-stopped-all-others"}
	refused(t, recover, "in use by another process")
	m.KillSite(t, 2)
	refused(t, recover, "nothing is lost")
	m.KillSite(t, 0)
	m.KillSite(t, 1)
	refused(t, []string{"recover", "--data", last.Data, "--lost", "site1", "--i-have-stopped-all-others"}, "site2")
	refused(t, recover[:5], "--i-have-stopped-all-others")

	var shown struct {
		Site        string
		Term, Entry uint64
	}
	r := cluster.RunCLI(t, nil, "recover", "--data", last.Data, "--show", "--json")
	if err := json.Unmarshal([]byte(r.Stdout), &shown); err != nil || shown.Site != "site3" || shown.Term == 0 || shown.Entry == 0 {
		t.Fatalf("--show: %v %+v\n%s%s", err, shown, r.Stdout, r.Stderr)
	}
	if r = cluster.RunCLI(t, nil, "recover", "--data", last.Data, "--show"); r.Code != 0 || !strings.Contains(r.Stdout, "site1") {
		t.Fatalf("--show: %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if r = cluster.RunCLI(t, nil, recover...); r.Code != 0 {
		t.Fatalf("recover: %s", r.Stderr)
	}
	t.Log(r.Stderr)
	if len(asides(t, last.Data, "replaced")) != 1 {
		t.Errorf("what was replaced is not kept: %v", asides(t, last.Data, "replaced"))
	}

	m.RestartSite(t, 2)
	cluster.Eventually(t, cluster.Patience, "edits go on", func() error {
		if r := m.CLI(t, 2, "project", "create", "after"); r.Code != 0 && !strings.Contains(r.Stderr, "exists") {
			return fmt.Errorf("%s", r.Stderr)
		}
		return nil
	})
	if err := m.hasProjects(t, 2, "before", "after"); err != nil {
		t.Error(err)
	}
	// The lost ones were only away. They take the control state that is now, and
	// keep their images.
	for i := range 2 {
		m.RestartSite(t, i)
		cluster.Eventually(t, cluster.Patience, m.Sites[i].Name+" is back", func() error { return m.hasProjects(t, i, "before", "after") })
		if len(asides(t, m.Sites[i].Data, "aside")) != 1 {
			t.Errorf("%s has not kept what it set aside", m.Sites[i].Name)
		}
		if err := m.hasTag(t, i, "library/kept", "1"); err != nil {
			t.Error(err)
		}
	}
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "three vote again", func() error { return m.votingSites(t, i) })
	}
	m.Must(t, 0, "project", "create", "later")
}

// TestRecover_Killed: a recovery that is killed at any moment leaves a directory
// that the same command recovers, and that serves.
func TestRecover_Killed(t *testing.T) {
	m := mesh{cluster.StartDev(t, 2)}
	m.Must(t, 1, "project", "create", "before")
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "the edit is everywhere", func() error { return m.hasProjects(t, i, "before") })
	}
	m.KillSite(t, 0)
	m.KillSite(t, 1)
	from := m.Sites[1].Data
	args := func(dir string) []string {
		return []string{"recover", "--data", dir, "--lost", "site1", "--i-have-stopped-all-others"}
	}
	work := t.TempDir()
	copied := func(name string) string {
		// Without the store: a recovery does not look at it.
		dir := filepath.Join(work, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"format", "identity.key", "raft"} {
			copyData(t, filepath.Join(from, part), filepath.Join(dir, part))
		}
		return dir
	}
	began := time.Now()
	if r := cluster.RunCLI(t, nil, args(copied("whole"))...); r.Code != 0 {
		t.Fatalf("recover: %s", r.Stderr)
	}
	whole := time.Since(began)
	const rounds = 12
	killed := 0
	var last string
	for i := range rounds {
		last = copied(fmt.Sprint(i))
		cmd := exec.CommandContext(t.Context(), cluster.Binary(t), args(last)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(whole * time.Duration(i) / (2 * rounds)):
			_ = cmd.Process.Kill()
			<-done
			killed++
		}
		if r := cluster.RunCLI(t, nil, args(last)...); r.Code != 0 {
			t.Fatalf("round %d: recover after a kill: %s", i, r.Stderr)
		}
		if n := len(asides(t, last, "replaced")); n != 1 {
			t.Errorf("round %d: %d directories were kept", i, n)
		}
	}
	t.Logf("%d of %d were killed; a whole one takes %s", killed, rounds, whole)
	if killed == 0 {
		t.Error("none was killed")
	}
	if err := os.RemoveAll(filepath.Join(from, "raft")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(last, "raft"), filepath.Join(from, "raft")); err != nil {
		t.Fatal(err)
	}
	m.RestartSite(t, 1)
	cluster.Eventually(t, cluster.Patience, "edits go on", func() error { return m.hasProjects(t, 1, "before") })
	m.Must(t, 1, "project", "create", "after")
}

// TestOldImage puts a voter's directory back to what it was, as a restored disk
// would: the node is told apart, begins its control state anew and votes again.
func TestOldImage(t *testing.T) {
	m := mesh{cluster.StartDev(t, 3)}
	m.Must(t, 0, "project", "create", "in-image")
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "the mesh has settled", func() error {
			if err := m.votingSites(t, i); err != nil {
				return err
			}
			return m.hasProjects(t, i, "in-image")
		})
	}
	data := m.Sites[1].Data
	m.KillSite(t, 1)
	image := filepath.Join(t.TempDir(), "image")
	copyData(t, data, image)
	p := m.RestartSite(t, 1)
	names := []string{"in-image"}
	for i := range 5 {
		names = append(names, fmt.Sprintf("later-%d", i))
		cluster.Eventually(t, cluster.Patience, "edits go on", func() error {
			if r := m.CLI(t, i%3, "project", "create", names[len(names)-1]); r.Code != 0 && !strings.Contains(r.Stderr, "exists") {
				return fmt.Errorf("%s", r.Stderr)
			}
			return nil
		})
	}
	cluster.Eventually(t, cluster.Patience, "the edits are there", func() error { return m.hasProjects(t, 1, names...) })
	p.Kill()
	m.KillSite(t, 2) // and a restart among those that remember
	m.RestartSite(t, 2)
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	copyData(t, image, data)
	p = m.RestartSite(t, 1)
	cluster.Eventually(t, cluster.Patience, "it has begun anew", func() error {
		if k := asides(t, data, "aside"); len(k) != 1 {
			return fmt.Errorf("%v is kept", k)
		}
		return m.hasProjects(t, 1, names...)
	})
	if !strings.Contains(p.Output(), "its disk was put back") {
		t.Errorf("it does not say why:\n%s", p.Output())
	}
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "three vote again", func() error { return m.votingSites(t, i) })
	}
	m.Must(t, 1, "project", "create", "after")
}
