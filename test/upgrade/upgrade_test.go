package upgrade

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		// `make check` is the quick loop; `make test` and CI run these.
		fmt.Println("whole meshes are not run with -short")
		return
	}
	code := m.Run()
	cluster.RemoveBinary()
	os.Exit(code)
}

// next builds the binary of the next level.
func next(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "portolan")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "portolan_level2", "-o", path, "github.com/portolan/portolan/cmd/portolan").CombinedOutput()
	if err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

type mesh struct {
	*cluster.Mesh
	next string
}

// restart starts site i again from its data directory, with a binary.
func (m mesh) restart(t *testing.T, i int, binary string) *cluster.Process {
	t.Helper()
	p := cluster.StartCommand(t, nil, exec.CommandContext(context.Background(), binary, "serve", "--data", m.Sites[i].Data))
	m.Sites[i].PID = p.Cmd.Process.Pid
	return p
}

// cli runs a verb of the next binary at site i.
func (m mesh) cli(t *testing.T, i int, args ...string) cluster.Result {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), m.next, append(args, "--server", m.Sites[i].URL)...)
	return cluster.RunCommand(t, []string{"PORTOLAN_USERNAME=" + m.Username, "PORTOLAN_PASSWORD=" + m.Password}, cmd)
}

// at says whether the mesh is at a level, as site i sees it.
func (m mesh) at(t *testing.T, i int, want uint32) error {
	t.Helper()
	var s struct{ Level uint32 }
	r := m.cli(t, i, "status", "--json")
	if r.Code != 0 {
		return fmt.Errorf("%s", r.Stderr)
	}
	if err := json.Unmarshal([]byte(r.Stdout), &s); err != nil {
		return err
	}
	if s.Level != want {
		return fmt.Errorf("level %d: %s", s.Level, r.Stdout)
	}
	return nil
}

// TestRollingUpgrade takes a mesh of three from one level to the next, node by
// node, with edits all the way.
func TestRollingUpgrade(t *testing.T) {
	m := mesh{cluster.StartDev(t, 3), next(t)}
	old := cluster.Binary(t)
	token := func(i int, site string) string {
		r := m.cli(t, i, "token", "create", "--json", "--site", site)
		if r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		var made struct{ ID int64 }
		if err := json.Unmarshal([]byte(r.Stdout), &made); err != nil {
			t.Fatal(err)
		}
		return strconv.FormatInt(made.ID, 10)
	}
	edit := func(i int, name string) {
		cluster.Eventually(t, cluster.Patience, "edits go on", func() error {
			if r := m.cli(t, i, "project", "create", name); r.Code != 0 && !strings.Contains(r.Stderr, "exists") {
				return fmt.Errorf("%s", r.Stderr)
			}
			return nil
		})
	}
	id := token(0, "later")
	for i := range m.Sites {
		m.KillSite(t, i)
		m.restart(t, i, m.next)
		m.WaitReady(t, i)
		edit(i, fmt.Sprintf("at-%d-of-3", i+1))
		if i == 2 {
			break
		}
		// A mixed mesh: what is new waits, whoever leads, and says for whom.
		cluster.Eventually(t, cluster.Patience, "the new command is refused with its reason", func() error {
			r := m.cli(t, i, "token", "revoke", id)
			if r.Code == 0 {
				t.Fatalf("a command of level 2 was taken with %d of 3 nodes at it", i+1)
			}
			if !strings.Contains(r.Stderr, "needs command level 2 and the mesh is at 1") {
				return fmt.Errorf("%s", r.Stderr)
			}
			return nil
		})
		if err := m.at(t, i, 1); err != nil {
			t.Fatal(err)
		}
	}
	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "the level rises by itself", func() error { return m.at(t, i, 2) })
	}
	cluster.Eventually(t, cluster.Patience, "the new command is taken", func() error {
		if r := m.cli(t, 1, "token", "revoke", id); r.Code != 0 {
			return fmt.Errorf("%s", r.Stderr)
		}
		return nil
	})

	// The old binary on a directory that has seen the new level ends before it
	// takes part, and says what to do.
	m.KillSite(t, 2)
	p := m.restart(t, 2, old)
	<-p.Exited()
	if p.Err() == nil || !strings.Contains(p.Output(), "start a newer version") {
		t.Fatalf("the old binary ended with %v and said:\n%s", p.Err(), p.Output())
	}
	m.restart(t, 2, m.next)
	m.WaitReady(t, 2)
	edit(2, "after")

	t.Run("an old binary joins", func(t *testing.T) {
		r := m.cli(t, 0, "token", "create", "--json", "--site", "old")
		var made struct{ Token string }
		if err := json.Unmarshal([]byte(r.Stdout), &made); err != nil {
			t.Fatalf("%v: %s", err, r.Stderr)
		}
		base := cluster.BasePort(t, 4)
		r = cluster.RunCLI(t, nil, "join", made.Token, "--no-serve", "--data", filepath.Join(t.TempDir(), "d"), "--advertise", "127.0.0.1", "--bind", "127.0.0.1",
			"--http", "127.0.0.1:"+strconv.Itoa(base), "--gossip-port", strconv.Itoa(base+1), "--control-port", strconv.Itoa(base+2), "--data-port", strconv.Itoa(base+3))
		if r.Code == 0 || !strings.Contains(r.Stderr, "too old") {
			t.Errorf("exit %d: %s", r.Code, r.Stderr)
		}
	})
}
