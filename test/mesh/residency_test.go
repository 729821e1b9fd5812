package mesh

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

// standing is what a site is to a project, as site i says.
func (m mesh) standing(t *testing.T, i int, project, site string) (string, error) {
	t.Helper()
	r := m.CLI(t, i, "project", "sites", project, "--json")
	if r.Code != 0 {
		return "", fmt.Errorf("%s", r.Stderr)
	}
	var out struct {
		States []struct{ Site, State, Reason string }
	}
	if err := json.Unmarshal([]byte(r.Stdout), &out); err != nil {
		return "", err
	}
	for _, s := range out.States {
		if s.Site == site {
			return s.State, nil
		}
	}
	return "", fmt.Errorf("no site %s in %s", site, r.Stdout)
}

// pusher pushes one tag after the other to a project at one site.
type pusher struct {
	site  int
	stop  chan struct{}
	mu    sync.Mutex
	taken map[string]string // tag -> digest, as answered with 201
	no    []answer          // other answers
}

func (p *pusher) run(t *testing.T, m mesh) {
	for n := 0; ; n++ {
		select {
		case <-p.stop:
			return
		default:
		}
		tag := fmt.Sprintf("s%d-%d", p.site, n)
		a, err := m.put(t, p.site, "prod/app", tag, tag, nil)
		p.mu.Lock()
		switch {
		case err != nil: // the site is down
		case a.status == http.StatusCreated && a.digest != "":
			p.taken[tag] = a.digest
		case a.status != http.StatusCreated:
			p.no = append(p.no, a)
		}
		p.mu.Unlock()
	}
}

func (p *pusher) refused() (answer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.no) == 0 {
		return answer{}, false
	}
	return p.no[0], true
}

// TestResidency_RealMesh: a site leaves a project under traffic and is killed on
// its way; nothing that was answered is lost, nothing is left at the site, and it
// comes back.
func TestResidency_RealMesh(t *testing.T) {
	m := mesh{cluster.StartDev(t, 3)}
	const leaver = 2
	m.Must(t, 0, "project", "create", "prod")
	pushers := make([]*pusher, len(m.Sites))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range pushers {
		pushers[i] = &pusher{site: i, stop: stop, taken: map[string]string{}}
		wg.Go(func() { pushers[i].run(t, m) })
	}
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	count := func(i int) int {
		pushers[i].mu.Lock()
		defer pushers[i].mu.Unlock()
		return len(pushers[i].taken)
	}
	cluster.Eventually(t, cluster.Patience, "pushes at all sites", func() error {
		for i := range pushers {
			if count(i) < 5 {
				return fmt.Errorf("%d at site %d", count(i), i+1)
			}
		}
		return nil
	})

	m.Must(t, 0, "project", "sites", "prod", "site1,site2")
	cluster.Eventually(t, cluster.Patience, "the site that leaves refuses pushes", func() error {
		if _, ok := pushers[leaver].refused(); !ok {
			return fmt.Errorf("%d were taken", count(leaver))
		}
		return nil
	})
	m.KillSite(t, leaver)
	if a, _ := pushers[leaver].refused(); a.status != http.StatusForbidden || !strings.Contains(a.body, "site1, site2") || !strings.Contains(a.body, "DENIED") {
		t.Errorf("a push at the site that leaves: %d %s", a.status, a.body)
	}
	before := []int{count(0), count(1)}
	cluster.Eventually(t, cluster.Patience, "the others go on", func() error {
		for i, n := range before {
			if count(i) < n+5 {
				return fmt.Errorf("%d at site %d", count(i), i+1)
			}
		}
		return nil
	})
	m.RestartSite(t, leaver)
	cluster.Eventually(t, cluster.Patience, "the site has left", func() error {
		s, err := m.standing(t, 0, "prod", "site3")
		if err == nil && s != "out" {
			err = fmt.Errorf("it is %s: %s", s, m.Must(t, 0, "project", "sites", "prod"))
		}
		return err
	})
	end()

	t.Run("nothing that was answered is lost", func(t *testing.T) {
		for i, p := range pushers {
			for tag, digest := range p.taken {
				for _, at := range []int{0, 1} {
					cluster.Eventually(t, cluster.Patience, tag+" at "+m.Sites[at].Name, func() error {
						got, err := m.says(t, at, "prod/app", tag, false)
						if err == nil && got != digest {
							err = fmt.Errorf("pushed at site %d as %s, is %q", i+1, digest, got)
						}
						return err
					})
				}
				m.pulls(t, 0, "prod/app", tag)
			}
		}
	})
	t.Run("nothing is left at the site", func(t *testing.T) {
		status, body, err := m.Get(t, leaver, "/v2/prod/app/tags/list")
		if err != nil || status != http.StatusForbidden || !strings.Contains(string(body), "site1, site2") {
			t.Errorf("a pull at a site outside: %d %s %v", status, body, err)
		}
		cluster.Eventually(t, cluster.Patience, "its store is empty", func() error {
			if files := contentOf(t, m.Sites[leaver].Data); len(files) > 0 {
				return fmt.Errorf("%d files, %s first", len(files), files[0])
			}
			return nil
		})
	})
	t.Run("it comes back", func(t *testing.T) {
		m.Must(t, 1, "project", "sites", "prod", "all")
		var tag string
		for tag = range pushers[0].taken {
			break
		}
		cluster.Eventually(t, cluster.Patience, "the site is a member", func() error {
			// 403 while it does not know, 503 while it takes in; never "not there".
			status, body, err := m.Do(t, leaver, "GET", "/v2/prod/app/manifests/"+tag, http.Header{"Accept": {manifestType}}, nil)
			if err == nil && status != http.StatusOK {
				if !slices.Contains([]int{http.StatusForbidden, http.StatusServiceUnavailable}, status) {
					t.Fatalf("a site that takes a project in answers %d %s", status, body)
				}
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
		for _, p := range pushers {
			for tag, digest := range p.taken {
				if got, err := m.says(t, leaver, "prod/app", tag, false); err != nil || got != digest {
					t.Errorf("%s is %q (%v), not %s", tag, got, err, digest)
				}
			}
		}
		m.mustPut(t, leaver, "prod/app", "again", "again")
	})
}

// pulls checks that all blobs of an image are to be had at site i.
func (m mesh) pulls(t *testing.T, i int, repository, tag string) {
	t.Helper()
	_, body, err := m.Do(t, i, "GET", "/v2/"+repository+"/manifests/"+tag, http.Header{"Accept": {manifestType}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Layers []struct{ Digest string } }
	if err := json.Unmarshal(body, &manifest); err != nil || len(manifest.Layers) == 0 {
		t.Fatalf("%s: %v", body, err)
	}
	for _, l := range manifest.Layers {
		if status, body, err := m.Get(t, i, "/v2/"+repository+"/blobs/"+l.Digest); err != nil || status != http.StatusOK {
			t.Errorf("layer of %s: %d %.200s %v", tag, status, body, err)
		}
	}
}

// contentOf lists files of blobs below a node's data directory.
func contentOf(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); !d.IsDir() && len(name) >= 64 && strings.Trim(name[:64], "0123456789abcdef") == "" {
			out = append(out, path)
		}
		return nil
	})
	if err != nil && !strings.Contains(err.Error(), "no such file") {
		t.Fatal(err)
	}
	return out
}
