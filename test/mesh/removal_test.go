package mesh

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

// gone is the sentence of a node that was removed.
const gone = "was removed from the mesh at "

// TestRemoval: a living site is removed once it holds no last copy, and goes on
// running; a lost one is removed and comes back; its name is given out again.
func TestRemoval(t *testing.T) {
	m := mesh{cluster.StartDev(t, 3)}
	sgp := m.join(t, 0, "sgp")
	osl := m.join(t, 1, "osl")
	const atSgp, atOsl = 3, 4
	m.Must(t, 0, "project", "create", "prod", "--public")
	blob := m.pushBlob(t, atSgp, "prod/app", "1.0")

	t.Run("the last copy keeps a site", func(t *testing.T) {
		cluster.Eventually(t, cluster.Patience, "the push is known at site 1", func() error { return m.hasTag(t, 0, "prod/app", "1.0") })
		r := m.CLI(t, 0, "site", "remove", "sgp")
		if r.Code != 1 || !strings.Contains(r.Stderr, "prod/app") || !strings.Contains(r.Stderr, "of 1 images") {
			t.Fatalf("exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		if !strings.Contains(m.Must(t, 1, "site", "list"), "sgp") {
			t.Fatal("it was removed all the same")
		}
		// Within the patience of this, not when two minutes are over.
		m.pushBlob(t, atSgp, "library/more", "1.0")
		cluster.Eventually(t, cluster.Patience, "what was pushed is deleted there", func() error {
			status, body, err := m.Do(t, atSgp, http.MethodDelete, "/api/v2.0/projects/library/repositories/more", nil, nil)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
	})

	t.Run("a living site is removed", func(t *testing.T) {
		m.Must(t, 0, "rule", "create", "two", "--projects", "prod", "--sites", "site1,sgp")
		m.Must(t, 0, "wait", "prod/app:1.0", "--sites", "site1", "--timeout", "60s")
		m.Must(t, 0, "token", "create", "--site", "ber") // another name's: it stays open
		out := m.Must(t, 1, "site", "remove", "sgp")
		for _, want := range []string{"two", "password hashes"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not told:\n%s", want, out)
			}
		}
		m.isCutOff(t, sgp, atSgp, []int{0, 1, 2, atOsl}, blob)
		if rules := m.Must(t, 2, "rule", "list"); !strings.Contains(rules, "sgp (gone)") {
			t.Errorf("the rule does not say that the site is gone:\n%s", rules)
		}
	})

	t.Run("it starts again and is still out", func(t *testing.T) {
		sgp.Stop(t)
		if err := sgp.Err(); err != nil {
			t.Fatalf("the removed node ended with %v", err)
		}
		again := cluster.Start(t, nil, "serve", "--data", m.Sites[atSgp].Data)
		m.isCutOff(t, again, atSgp, []int{0, 1, 2, atOsl}, blob)
	})

	t.Run("a lost site is removed", func(t *testing.T) {
		only := m.pushBlob(t, atOsl, "library/only", "1") // no rule brings it elsewhere
		cluster.Eventually(t, cluster.Patience, "the push is known at site 1", func() error { return m.hasTag(t, 0, "library/only", "1") })
		osl.Kill()
		r := m.CLI(t, 0, "site", "remove", "osl")
		if r.Code != 1 || !strings.Contains(r.Stderr, "site osl does not answer") {
			t.Fatalf("without --lost: exit %d\n%s", r.Code, r.Stderr)
		}
		cluster.Eventually(t, cluster.Patience, "gossip has noticed, and it is said how a lost site goes", func() error {
			if r = m.CLI(t, 0, "site", "remove", "osl"); r.Code != 1 || !strings.Contains(r.Stderr, "portolan site remove osl --lost") {
				return fmt.Errorf("without --lost: exit %d\n%s", r.Code, r.Stderr)
			}
			return nil
		})
		cluster.Eventually(t, cluster.Patience, "the site is removed", func() error {
			if r = m.CLI(t, 0, "site", "remove", "osl", "--lost"); r.Code != 0 {
				return fmt.Errorf("%s", r.Stderr)
			}
			return nil
		})
		if !strings.Contains(r.Stdout, "library/only") {
			t.Errorf("what had its only copy there is not listed:\n%s", r.Stdout)
		}
		if strings.Contains(r.Stdout, "do not answer") || strings.Contains(r.Stdout, "are at other sites") || !strings.Contains(r.Stdout, "never left it") && !strings.Contains(r.Stdout, "No push or delete that it told site") {
			t.Errorf("what never left it is not told, or there is an all-clear with last copies:\n%s", r.Stdout)
		}
		back := cluster.Start(t, nil, "serve", "--data", m.Sites[atOsl].Data)
		m.isCutOff(t, back, atOsl, []int{0, 1, 2}, only)
	})

	t.Run("its name is free", func(t *testing.T) {
		m.join(t, 2, "osl")
		cluster.Eventually(t, cluster.Patience, "the new site is alive", func() error {
			s := m.meshStatus(t, 0)
			if i := slices.IndexFunc(s.Sites, func(x siteStatus) bool { return x.Name == "osl" }); i < 0 || !s.Sites[i].Nodes[0].Alive {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	})

	t.Run("the leader's site is removed", func(t *testing.T) {
		leader := m.meshStatus(t, 0).LeaderSite
		by := 0
		if m.Sites[by].Name == leader {
			by = 1
		}
		// It may be home to what the tests before pushed.
		m.Must(t, by, "site", "remove", leader, "--force")
		cluster.Eventually(t, cluster.Patience, "edits go on", func() error {
			if r := m.CLI(t, by, "project", "create", "after-"+leader); r.Code != 0 && !strings.Contains(r.Stderr, "already") {
				return fmt.Errorf("%s", r.Stderr)
			}
			return nil
		})
	})
}

// isCutOff checks that a removed node which runs says so, serves what it has and
// takes nothing, and that no other site has a connection to it.
func (m mesh) isCutOff(t *testing.T, p *cluster.Process, removed int, rest []int, blob string) {
	t.Helper()
	name := m.Sites[removed].Name
	cluster.Eventually(t, cluster.Patience, name+" says that it was removed", func() error {
		if !strings.Contains(p.Output(), "this node was site "+name+" and "+gone) {
			return fmt.Errorf("its log does not")
		}
		r := m.CLI(t, removed, "status")
		if r.Code != 0 || !strings.Contains(r.Stdout, "this node was site "+name+" and "+gone) {
			return fmt.Errorf("its status does not: %s%s", r.Stdout, r.Stderr)
		}
		return nil
	})
	cluster.Eventually(t, cluster.Patience, name+" has no connection left", func() error {
		if n := m.metric(t, removed, "portolan_transfer_peer_connections"); n != 0 {
			return fmt.Errorf("%v data connections", n)
		}
		for _, i := range rest {
			if n := m.metric(t, i, `portolan_gossip_members_count{state="alive"}`); int(n) != len(rest) {
				return fmt.Errorf("%s sees %v nodes alive, want %d", m.Sites[i].Name, n, len(rest))
			}
			if n := m.metric(t, i, "portolan_transfer_peer_connections"); int(n) >= len(rest) {
				return fmt.Errorf("%s has %v data connections", m.Sites[i].Name, n)
			}
			for _, s := range m.meshStatus(t, i).Sites {
				if s.Name == name {
					return fmt.Errorf("%s still lists it", m.Sites[i].Name)
				}
			}
		}
		return nil
	})
	if status, body, err := m.Get(t, removed, "/readyz"); err != nil || status != http.StatusServiceUnavailable || !strings.Contains(string(body), "was removed from the mesh") {
		t.Errorf("readyz of the removed node: %d %s %v", status, body, err)
	}
	if status, _, err := m.Get(t, removed, "/v2/prod/app/blobs/"+blob); err != nil || (status != http.StatusOK && status != http.StatusNotFound) {
		t.Errorf("a pull of what it has: %d %v", status, err)
	}
	status, body, err := m.Do(t, removed, http.MethodPost, "/v2/prod/app/blobs/uploads/", nil, nil)
	if err != nil || status != http.StatusForbidden || !strings.Contains(string(body), gone) {
		t.Errorf("a push to it: %d %s %v", status, body, err)
	}
	if r := m.CLI(t, removed, "project", "create", "late"); r.Code == 0 || !strings.Contains(r.Stderr, gone) {
		t.Errorf("an edit there: exit %d %s", r.Code, r.Stderr)
	}
}

// metric gives one value of site i's metrics; 0 if it has no line.
func (m mesh) metric(t *testing.T, i int, name string) float64 {
	t.Helper()
	_, body, err := m.Get(t, i, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			var v float64
			if _, err := fmt.Sscan(rest, &v); err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

type siteStatus struct {
	Name  string
	Nodes []struct{ Alive bool }
}

type meshStatus struct {
	LeaderSite string `json:"leader_site"`
	Sites      []siteStatus
}

func (m mesh) meshStatus(t *testing.T, i int) (s meshStatus) {
	t.Helper()
	if err := json.Unmarshal([]byte(m.Must(t, i, "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// pushBlob pushes an image with one blob too large for the catalogue, and gives
// the blob's digest.
func (m mesh) pushBlob(t *testing.T, i int, repository, tag string) string {
	t.Helper()
	blob := bytes.Repeat([]byte(repository+":"+tag+" "), 10<<10)
	config := []byte("{}")
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:%x","size":2},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%x","size":%d}]}`, sha256.Sum256(config), sha256.Sum256(blob), len(blob))
	octets := http.Header{"Content-Type": {"application/octet-stream"}}
	for _, r := range []struct {
		method, path string
		header       http.Header
		body         []byte
	}{
		{"POST", fmt.Sprintf("/v2/%s/blobs/uploads/?digest=sha256:%x", repository, sha256.Sum256(blob)), octets, blob},
		{"POST", fmt.Sprintf("/v2/%s/blobs/uploads/?digest=sha256:%x", repository, sha256.Sum256(config)), octets, config},
		{"PUT", "/v2/" + repository + "/manifests/" + tag, http.Header{"Content-Type": {"application/vnd.oci.image.manifest.v1+json"}}, manifest},
	} {
		cluster.Eventually(t, cluster.Patience, r.method+" "+r.path, func() error {
			status, body, err := m.Do(t, i, r.method, r.path, r.header, bytes.NewReader(r.body))
			if err == nil && status != http.StatusCreated {
				err = fmt.Errorf("%d %s", status, body)
			}
			return err
		})
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(blob))
}
