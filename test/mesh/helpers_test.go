package mesh

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/clients"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
)

// receivedMetric counts bytes of content taken from peers.
const receivedMetric = "portolan_transfer_swarm_received_bytes_total"

// mesh adds to cluster.Mesh what these tests ask of it.
type mesh struct{ *cluster.Mesh }

func imageID(t *testing.T, e *clients.Engine, name string) string {
	t.Helper()
	return strings.TrimSpace(e.Run(t, "image", "inspect", "--format", "{{.Id}}", name))
}

// hasTag asks site i for its list of tags.
func (m mesh) hasTag(t *testing.T, i int, repository, tag string) error {
	t.Helper()
	status, body, err := m.Get(t, i, "/v2/"+repository+"/tags/list")
	if err != nil {
		return err
	}
	var list struct{ Tags []string }
	if status == http.StatusOK {
		if err := json.Unmarshal(body, &list); err != nil {
			return err
		}
	}
	if !slices.Contains(list.Tags, tag) {
		return fmt.Errorf("tags/list of %s: %d %s", repository, status, body)
	}
	return nil
}

// status sends a GET with somebody's password.
func (m mesh) status(t *testing.T, i int, path, user, password string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.Sites[i].URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(user, password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// received sums the bytes of content that came to site i over the data plane.
func (m mesh) received(t *testing.T, i int) float64 {
	t.Helper()
	_, body, err := m.Get(t, i, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0 // a node that received nothing yet has no line
	sc := bufio.NewScanner(bytes.NewReader(body))
	for sc.Scan() {
		if rest, ok := strings.CutPrefix(sc.Text(), receivedMetric); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// skopeoPush copies the image of an OCI layout to a repository at site i.
func (m mesh) skopeoPush(t *testing.T, i int, layout, image string) {
	t.Helper()
	clients.Run(t, nil, clients.Need(t, "skopeo"), "copy", "--all", "--dest-tls-verify=false",
		"--dest-creds", m.Username+":"+m.Password, "oci:"+layout, "docker://"+m.Sites[i].Host()+"/"+image)
}

// digest asks site i for the digest of a tag, through skopeo.
func (m mesh) digest(t *testing.T, i int, image string) (string, error) {
	t.Helper()
	out, err := clients.Try(t, nil, clients.Need(t, "skopeo"), "inspect", "--tls-verify=false",
		"--creds", m.Username+":"+m.Password, "--format", "{{.Digest}}", "docker://"+m.Sites[i].Host()+"/"+image)
	return strings.TrimSpace(out), err
}

// otherClients pushes with each client at one site and pulls at another.
func (m mesh) otherClients(t *testing.T, set images.Set) {
	t.Helper()
	skopeo, crane, podman := clients.Need(t, "skopeo"), clients.Need(t, "crane"), clients.Podman(t)
	creds := m.Username + ":" + m.Password

	// skopeo: an index with all its children. It writes the index itself anew.
	m.skopeoPush(t, 0, set.Layout("multi"), "library/multi:1")
	cluster.Eventually(t, cluster.Patience, "the index is listed at site 2", func() error { return m.hasTag(t, 1, "library/multi", "1") })
	back := filepath.Join(t.TempDir(), "multi")
	clients.Run(t, nil, skopeo, "copy", "--all", "--src-tls-verify=false", "--src-creds", creds,
		"docker://"+m.Sites[1].Host()+"/library/multi:1", "oci:"+back+":1")
	index := indexDigest(t, set.Layout("multi"))
	for _, d := range blobs(t, set.Layout("multi")) {
		if !slices.Contains(blobs(t, back), d) && "sha256:"+d != index {
			t.Errorf("skopeo pushed %s and did not get it back", d)
		}
	}

	// crane: copies within the mesh, validates every layer.
	env := []string{"DOCKER_CONFIG=" + t.TempDir()}
	for i := range m.Sites {
		clients.Run(t, env, crane, "auth", "login", m.Sites[i].Host(), "-u", m.Username, "-p", m.Password)
	}
	clients.Run(t, env, crane, "copy", "--insecure", m.Sites[0].Host()+"/library/app:1.0", m.Sites[2].Host()+"/library/copy:1")
	cluster.Eventually(t, cluster.Patience, "crane's copy is listed at site 1", func() error { return m.hasTag(t, 0, "library/copy", "1") })
	clients.Run(t, env, crane, "validate", "--insecure", "--remote", m.Sites[0].Host()+"/library/copy:1")

	clients.Run(t, env, crane, "push", "--insecure", "--index", set.Layout("multi"), m.Sites[2].Host()+"/library/exact:1")
	cluster.Eventually(t, cluster.Patience, "crane's index is listed at site 1", func() error { return m.hasTag(t, 0, "library/exact", "1") })
	// It pushes the layout's own index, one level above.
	want := fmt.Sprintf("sha256:%x", sha256.Sum256(read(t, filepath.Join(set.Layout("multi"), "index.json"))))
	if got := strings.TrimSpace(clients.Run(t, env, crane, "digest", "--insecure", m.Sites[0].Host()+"/library/exact:1")); got != want {
		t.Errorf("crane pushed the index %s, the tag gives %s", want, got)
	}
	clients.Run(t, env, crane, "validate", "--insecure", "--remote", m.Sites[0].Host()+"/library/exact:1")

	// podman: in from one site, out to another, with its own compression.
	podman("pull", "--tls-verify=false", "--creds", creds, m.Sites[1].Host()+"/library/app:1.0")
	podman("push", "--tls-verify=false", "--creds", creds, m.Sites[1].Host()+"/library/app:1.0", "docker://"+m.Sites[2].Host()+"/library/podman:1")
	cluster.Eventually(t, cluster.Patience, "podman's push is listed at site 1", func() error { return m.hasTag(t, 0, "library/podman", "1") })
	podman("pull", "--tls-verify=false", "--creds", creds, m.Sites[0].Host()+"/library/podman:1")
}

// blobs lists what an OCI layout holds; names are digests.
func blobs(t *testing.T, layout string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(layout, "blobs", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// indexDigest is the digest of the one index in an OCI layout.
func indexDigest(t *testing.T, layout string) string {
	t.Helper()
	b := read(t, filepath.Join(layout, "index.json"))
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(b, &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("%s: %v", b, err)
	}
	return index.Manifests[0].Digest
}

// join adds a site on this machine with a token from site i.
func (m mesh) join(t testing.TB, i int, name string) *cluster.Process {
	t.Helper()
	var made struct{ Token string }
	if err := json.Unmarshal([]byte(m.Must(t, i, "token", "create", "--site", name, "--json")), &made); err != nil || made.Token == "" {
		t.Fatalf("token create --json: %v", err)
	}
	base := m.BasePort + 10*len(m.Sites)
	dir := t.TempDir()
	p := cluster.Start(t, nil, "join", made.Token, "--data", dir, "--advertise", "127.0.0.1",
		"--http", "127.0.0.1:"+strconv.Itoa(base), "--gossip-port", strconv.Itoa(base+1),
		"--control-port", strconv.Itoa(base+2), "--data-port", strconv.Itoa(base+3))
	m.Sites = append(m.Sites, cluster.Site{Name: name, URL: "http://127.0.0.1:" + strconv.Itoa(base), Data: dir, PID: p.Cmd.Process.Pid})
	m.WaitReady(t, len(m.Sites)-1)
	return p
}

// loseAndRegain kills a site, works on without it, and brings it back.
func (m mesh) loseAndRegain(t *testing.T, victim int, set images.Set) {
	t.Helper()
	m.KillSite(t, victim)
	a, b := (victim+1)%3, (victim+2)%3
	name := fmt.Sprintf("lost-%d", victim+1)

	// Pulls go on at once; edits within an election.
	if _, err := m.digest(t, a, "prod/app:1.0"); err != nil {
		t.Fatalf("with %s dead, %s does not serve a held image: %v", m.Sites[victim].Name, m.Sites[a].Name, err)
	}
	cluster.Eventually(t, cluster.Patience, "edits go on without "+m.Sites[victim].Name, func() error {
		if r := m.CLI(t, a, "project", "create", name, "--public"); r.Code != 0 {
			return fmt.Errorf("%s", r.Stderr)
		}
		return nil
	})
	image := name + "/app:1"
	m.skopeoPush(t, a, set.Layout("base"), image)
	cluster.Eventually(t, cluster.Patience, "the push is listed at the other living site", func() error { return m.hasTag(t, b, name+"/app", "1") })
	m.skopeoPush(t, b, set.Layout("app"), "prod/app:"+name)

	m.RestartSite(t, victim)
	cluster.Eventually(t, cluster.Patience, "the site that came back has caught up", func() error {
		if err := m.hasTag(t, victim, name+"/app", "1"); err != nil {
			return err
		}
		want, err := m.digest(t, a, image)
		if err != nil {
			return err
		}
		got, err := m.digest(t, victim, image)
		if err == nil && got != want {
			err = fmt.Errorf("digest %s, want %s", got, want)
		}
		return err
	})
	m.Must(t, victim, "wait", "prod/app:"+name, "--sites", "all", "--timeout", "60s")
}
