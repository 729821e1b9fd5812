package mesh

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/clients"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
)

// shellBlock is a block of commands in README.md.
var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

// TestReadme_ToursCommandsWork runs the tour of README.md as it stands there,
// at other ports and in another directory.
func TestReadme_ToursCommandsWork(t *testing.T) {
	src, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := shellBlock.FindAllStringSubmatch(string(src), -1)
	if len(blocks) < 3 {
		t.Fatalf("README.md has %d blocks of commands, want the tour, a new site and a real mesh", len(blocks))
	}
	tour, newSite := blocks[0][1], blocks[1][1]

	set := images.Make(t)
	engine := clients.Docker(t)
	engine.Load(t, set.Layout("base"), "alpine:latest") // any image will do
	dir := t.TempDir()
	m := mesh{cluster.DevIn(t, filepath.Join(dir, "data"), 3)}

	// The commands as they stand, with this test's ports for the defaults.
	here := func(script string) string {
		for i := range 4 {
			for off := range 4 {
				script = strings.ReplaceAll(script, fmt.Sprint(5000+10*i+off), fmt.Sprint(m.BasePort+10*i+off))
			}
		}
		return script
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(cluster.Binary(t), filepath.Join(bin, "portolan")); err != nil {
		t.Fatal(err)
	}
	shell := func(script string) string {
		return clients.Run(t, append(engine.Env(), "HOME="+dir), "/bin/bash", "-euc", "cd "+dir+"\n"+here(script))
	}
	out := shell(tour)
	for _, s := range m.Sites {
		if !strings.Contains(out, s.Name) {
			t.Errorf("the tour does not show %s at its end:\n%s", s.Name, out)
		}
	}

	// The new site runs until the test ends: the token by the shell, the join by us.
	token, join, ok := strings.Cut(newSite, "\nportolan join")
	if !ok {
		t.Fatalf("the second block does not join:\n%s", newSite)
	}
	env, _, ok := strings.Cut(tour, "docker login")
	if !ok {
		t.Fatal("the tour does not log docker in")
	}
	text := strings.TrimSpace(shell(env + token + "\necho \"$TOKEN\""))
	args := strings.Fields(strings.NewReplacer("\\\n", " ", `"$TOKEN"`, text, "./sgp", filepath.Join(dir, "sgp")).Replace(here(join)))
	cluster.Start(t, nil, append([]string{"join"}, args...)...)
	m.Sites = append(m.Sites, cluster.Site{Name: "sgp", URL: fmt.Sprintf("http://127.0.0.1:%d", m.BasePort+30)})
	m.WaitReady(t, 3)
	m.Must(t, 0, "wait", "prod/app:1.0", "--sites", "all", "--timeout", "60s")
}
