package mesh

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

// pushBytes makes an artifact of one layer at site i, without a client.
func (m mesh) pushBytes(t *testing.T, i int, repository, tag string, layer []byte) {
	t.Helper()
	blob := func(b []byte) string {
		d := fmt.Sprintf("sha256:%x", sha256.Sum256(b))
		status, body, err := m.Do(t, i, http.MethodPost, "/v2/"+repository+"/blobs/uploads/?digest="+d,
			http.Header{"Content-Type": {"application/octet-stream"}}, bytes.NewReader(b))
		if err != nil || status != http.StatusCreated {
			t.Fatalf("push of a blob at %s: %d %s, %v", m.Sites[i].Name, status, body, err)
		}
		return d
	}
	const kind = "application/vnd.oci.image.manifest.v1+json"
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},`+
		`"layers":[{"mediaType":"application/octet-stream","digest":%q,"size":%d}]}`, kind, blob([]byte("{}")), blob(layer), len(layer))
	status, body, err := m.Do(t, i, http.MethodPut, "/v2/"+repository+"/manifests/"+tag, http.Header{"Content-Type": {kind}}, strings.NewReader(manifest))
	if err != nil || status != http.StatusCreated {
		t.Fatalf("push of a manifest at %s: %d %s, %v", m.Sites[i].Name, status, body, err)
	}
}

// edits waits until edits go on at site i.
func (m mesh) edits(t *testing.T, i int, project string) {
	t.Helper()
	cluster.Eventually(t, cluster.Patience, "edits go on at "+m.Sites[i].Name, func() error {
		if r := m.CLI(t, i, "project", "create", project); r.Code != 0 {
			return fmt.Errorf("%s", r.Stderr)
		}
		return nil
	})
}

// TestWitness_TwoDatacenters: two sites with content and a witness, each a
// process. Either site may be lost, or the witness, and edits go on; the witness
// never gets a byte of content, and nobody waits for it to have some.
func TestWitness_TwoDatacenters(t *testing.T) {
	m := mesh{cluster.StartDev(t, 2)}
	var made struct{ Token string }
	if err := json.Unmarshal([]byte(m.Must(t, 0, "token", "create", "--site", "wit", "--json")), &made); err != nil {
		t.Fatal(err)
	}
	base := m.BasePort + 10*len(m.Sites)
	dir := t.TempDir()
	at := []string{"--data", dir, "--advertise", "127.0.0.1", "--bind", "127.0.0.1", "--http", "127.0.0.1:" + strconv.Itoa(base),
		"--gossip-port", strconv.Itoa(base + 1), "--control-port", strconv.Itoa(base + 2)}
	if r := cluster.RunCLI(t, nil, append([]string{"serve", "--witness", "--site", "wit"}, at...)...); r.Code == 0 || !strings.Contains(r.Stderr, "a witness makes no mesh") {
		t.Fatalf("a witness made a mesh of its own: %d %s", r.Code, r.Stderr)
	}
	join := append([]string{"join", made.Token, "--witness"}, at...)
	p := cluster.Start(t, nil, join...)
	const wit = 2
	m.Sites = append(m.Sites, cluster.Site{Name: "wit", URL: "http://127.0.0.1:" + strconv.Itoa(base), Data: dir, PID: p.Cmd.Process.Pid})
	m.WaitReady(t, wit)

	for i := range m.Sites {
		cluster.Eventually(t, cluster.Patience, "three vote, as "+m.Sites[i].Name+" sees it", func() error {
			r := m.CLI(t, i, "status")
			if r.Code != 0 || !strings.Contains(r.Stdout, "3 of 3 nodes") || strings.Count(r.Stdout, ",witness") != 1 {
				return fmt.Errorf("%s%s", r.Stdout, r.Stderr)
			}
			return nil
		})
	}

	// Content goes everywhere, and that is not where the witness is.
	layer := bytes.Repeat([]byte("no witness has seen this. "), 8<<10)
	m.Must(t, 0, "project", "create", "prod")
	m.Must(t, 0, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	if r := m.CLI(t, 0, "rule", "create", "there", "--projects", "prod", "--sites", "wit"); r.Code == 0 || !strings.Contains(r.Stderr, "witness") {
		t.Errorf("a rule wants content at the witness: %d %s", r.Code, r.Stderr)
	}
	m.pushBytes(t, 0, "prod/app", "1", layer)
	m.Must(t, 1, "wait", "prod/app:1", "--sites", "all", "--timeout", "60s")
	if where := m.Must(t, 1, "where", "prod/app:1"); strings.Contains(where, "wit") || !strings.Contains(where, "site1") || !strings.Contains(where, "site2") {
		t.Errorf("where:\n%s", where)
	}
	if r := m.CLI(t, 0, "wait", "prod/app:1", "--sites", "site1,wit", "--timeout", "5s"); r.Code == 0 || !strings.Contains(r.Stderr, "holds no content") {
		t.Errorf("waiting for the witness: %d %s", r.Code, r.Stderr)
	}
	for path, want := range map[string]int{"/v2/": 404, "/v2/prod/app/manifests/1": 404, "/service/token": 404, "/api/v2.0/projects": 404, "/api/mesh/v1/tags?repository=prod/app": 404,
		"/healthz": 200, "/readyz": 200, "/metrics": 200, "/api/mesh/v1/status": 200, "/api/mesh/v1/sites": 200} {
		if status, body, err := m.Get(t, wit, path); err != nil || status != want {
			t.Errorf("the witness answers %s with %d, want %d: %s, %v", path, status, want, body, err)
		}
	}

	// A site with content is lost.
	m.KillSite(t, 1)
	m.edits(t, 0, "without-site2")
	m.pushBytes(t, 0, "prod/app", "2", append([]byte("second: "), layer...))
	m.RestartSite(t, 1)
	cluster.Eventually(t, cluster.Patience, "the tag is listed at the site that came back", func() error { return m.hasTag(t, 1, "prod/app", "2") })
	m.Must(t, 1, "wait", "prod/app:2", "--sites", "all", "--timeout", "60s")

	// The witness is lost, and comes back without being told again what it is.
	m.KillSite(t, wit)
	<-p.Exited()
	for i := range 2 {
		m.edits(t, i, fmt.Sprintf("without-witness-%d", i))
	}
	m.pushBytes(t, 1, "prod/app", "3", append([]byte("third: "), layer...))
	m.Must(t, 0, "wait", "prod/app:3", "--sites", "all", "--timeout", "60s")
	if r := cluster.RunCLI(t, nil, "serve", "--data", dir, "--witness=false"); r.Code == 0 || !strings.Contains(r.Stderr, "does not change its kind") {
		t.Errorf("a witness was started as a node with content: %d %s", r.Code, r.Stderr)
	}
	back := m.RestartSite(t, wit)
	cluster.Eventually(t, cluster.Patience, "the witness has what it missed", func() error {
		var s struct{ Index, Applied uint64 }
		_, body, err := m.Get(t, wit, "/api/mesh/v1/status")
		if err == nil {
			err = json.Unmarshal(body, &s)
		}
		if err == nil && (s.Index == 0 || s.Applied != s.Index) {
			err = fmt.Errorf("%d of %d", s.Applied, s.Index)
		}
		return err
	})
	back.Stop(t)

	if _, err := os.Stat(filepath.Join(dir, "store")); err == nil {
		t.Error("the witness has a store")
	}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, layer[:64]) {
			t.Errorf("%s has content", path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
