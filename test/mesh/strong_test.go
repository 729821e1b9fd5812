package mesh

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

const octets, manifestType = "application/octet-stream", "application/vnd.oci.image.manifest.v1+json"

// answer is what a site said to a push.
type answer struct {
	status int
	body   string
	digest string // of the manifest
}

// put pushes a small image by tag at site i, once: whatever is answered.
func (m mesh) put(t *testing.T, i int, repository, tag, text string, header http.Header) (answer, error) {
	t.Helper()
	blob, config := bytes.Repeat([]byte(text+" "), 10<<10), []byte("{}")
	for _, b := range [][]byte{blob, config} {
		status, body, err := m.Do(t, i, "POST", fmt.Sprintf("/v2/%s/blobs/uploads/?digest=sha256:%x", repository, sha256.Sum256(b)),
			http.Header{"Content-Type": {octets}}, bytes.NewReader(b))
		if err != nil || status != http.StatusCreated {
			return answer{status: status, body: string(body)}, err
		}
	}
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:%x","size":2},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%x","size":%d}]}`, manifestType, sha256.Sum256(config), sha256.Sum256(blob), len(blob))
	h := http.Header{"Content-Type": {manifestType}}
	maps.Copy(h, header)
	status, body, err := m.Do(t, i, "PUT", "/v2/"+repository+"/manifests/"+tag, h, bytes.NewReader(manifest))
	return answer{status: status, body: string(body), digest: fmt.Sprintf("sha256:%x", sha256.Sum256(manifest))}, err
}

// mustPut repeats a push until it is taken.
func (m mesh) mustPut(t *testing.T, i int, repository, tag, text string) (digest string) {
	t.Helper()
	cluster.Eventually(t, cluster.Patience, "push "+repository+":"+tag+" at "+m.Sites[i].Name, func() error {
		a, err := m.put(t, i, repository, tag, text, nil)
		if err == nil && a.status != http.StatusCreated {
			err = fmt.Errorf("%d %s", a.status, a.body)
		}
		digest = a.digest
		return err
	})
	return digest
}

// says is what a tag says at site i; strict asks the mesh.
func (m mesh) says(t *testing.T, i int, repository, tag string, strict bool) (string, error) {
	t.Helper()
	h := http.Header{"Accept": {manifestType}}
	if strict {
		h.Set("X-Portolan-Consistency", "strict")
	}
	status, body, err := m.Do(t, i, "GET", "/v2/"+repository+"/manifests/"+tag, h, nil)
	switch {
	case err != nil:
		return "", err
	case status == http.StatusNotFound:
		return "", nil
	case status != http.StatusOK:
		return "", fmt.Errorf("%d %s", status, body)
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(body)), nil
}

func (m mesh) leader(t *testing.T, ask int) int {
	t.Helper()
	name := m.meshStatus(t, ask).LeaderSite
	return slices.IndexFunc(m.Sites, func(s cluster.Site) bool { return s.Name == name })
}

// unavailable checks an OCI error body.
func unavailable(a answer, words ...string) error {
	var body struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(a.body), &body); err != nil || len(body.Errors) != 1 || a.status != http.StatusServiceUnavailable || body.Errors[0].Code != "UNAVAILABLE" {
		return fmt.Errorf("%d %s", a.status, a.body)
	}
	for _, w := range words {
		if !strings.Contains(body.Errors[0].Message, w) {
			return fmt.Errorf("%q is not in %s", w, a.body)
		}
	}
	return nil
}

// TestStrong_RealMesh: three processes, a project with strong tags.
func TestStrong_RealMesh(t *testing.T) {
	m := mesh{cluster.StartDev(t, 3)}
	m.WaitVoters(t, 0, 3)
	m.Must(t, 1, "project", "create", "prod", "--tags", "strong")
	restart := func(i int) { m.RestartSite(t, i) } // a process lives as long as the test that started it
	strict := func(i int, tag, want string) {
		t.Helper()
		cluster.Eventually(t, cluster.Patience, "a strict read", func() error {
			got, err := m.says(t, i, "prod/app", tag, true)
			if err == nil && got != want {
				t.Fatalf("a strict read of %s at %s gives %q, not %q", tag, m.Sites[i].Name, got, want)
			}
			return err
		})
	}

	t.Run("what one site wrote, it and all others read", func(t *testing.T) {
		for i := range m.Sites {
			d := m.mustPut(t, i, "prod/app", "latest", fmt.Sprint("from ", i))
			if got, err := m.says(t, i, "prod/app", "latest", false); err != nil || got != d {
				t.Errorf("read your writes at %s: %q, %v; want %q", m.Sites[i].Name, got, err, d)
			}
			for k := range m.Sites {
				strict(k, "latest", d)
			}
		}
	})
	t.Run("of writers who saw the same one wins", func(t *testing.T) {
		for round := range 3 {
			base, err := m.says(t, 0, "prod/app", "latest", true)
			if err != nil {
				t.Fatal(err)
			}
			answers := make([]answer, len(m.Sites))
			var wg sync.WaitGroup
			for i := range m.Sites {
				wg.Go(func() {
					answers[i], err = m.put(t, i, "prod/app", "latest", fmt.Sprint("race ", round, i), http.Header{"If-Match": {`"` + base + `"`}})
				})
			}
			wg.Wait()
			won := ""
			for i, a := range answers {
				switch {
				case a.status == http.StatusCreated && won == "":
					won = a.digest
				case a.status == http.StatusConflict || a.status == http.StatusPreconditionFailed:
				default:
					t.Errorf("%s: %d %s", m.Sites[i].Name, a.status, a.body)
				}
			}
			for i := range m.Sites {
				strict(i, "latest", won)
			}
		}
		if a, err := m.put(t, 1, "prod/app", "latest", "new", http.Header{"If-None-Match": {"*"}}); err != nil || a.status != http.StatusPreconditionFailed {
			t.Errorf("a tag that is there is made new: %d %s %v", a.status, a.body, err)
		}
	})
	t.Run("a deletion takes what its author saw, or nothing", func(t *testing.T) {
		one := m.mustPut(t, 0, "prod/app", "going", "one")
		two := m.mustPut(t, 1, "prod/app", "going", "two")
		for _, c := range []struct {
			at     int
			seen   string
			status int
		}{{2, one, http.StatusPreconditionFailed}, {2, two, http.StatusAccepted}, {1, two, http.StatusNotFound}, {0, one, http.StatusNotFound}} {
			status, body, err := m.Do(t, c.at, "DELETE", "/v2/prod/app/manifests/going", http.Header{"If-Match": {`"` + c.seen + `"`}}, nil)
			if err != nil || status != c.status {
				t.Errorf("DELETE at %s of %s: %d %s %v, want %d", m.Sites[c.at].Name, c.seen, status, body, err, c.status)
			}
		}
	})
	t.Run("a manifest that a tag names is not deleted", func(t *testing.T) {
		d := m.mustPut(t, 0, "prod/kept", "1", "kept")
		if status, body, err := m.Do(t, 0, "DELETE", "/v2/prod/kept/manifests/"+d, nil, nil); err != nil || status != http.StatusConflict || !strings.Contains(string(body), "(1)") {
			t.Errorf("%d %s %v", status, body, err)
		}
		for _, ref := range []string{"1", d} {
			if status, body, err := m.Do(t, 0, "DELETE", "/v2/prod/kept/manifests/"+ref, nil, nil); err != nil || status != http.StatusAccepted {
				t.Errorf("delete %s: %d %s %v", ref, status, body, err)
			}
		}
	})
	t.Run("the leader is killed under pushes", func(t *testing.T) {
		leader := m.leader(t, 0)
		by := (leader + 1) % 3
		last := m.mustPut(t, by, "prod/app", "under-fire", "before")
		began := make(chan struct{})
		done := make(chan error, 1)
		go func() {
			for k := 0; ; k++ {
				if k == 1 {
					close(began)
				}
				a, err := m.put(t, by, "prod/app", "under-fire", fmt.Sprint("fire ", k), nil)
				switch {
				case err != nil:
					done <- err
					return
				case a.status == http.StatusCreated:
					last = a.digest
				case a.status != http.StatusServiceUnavailable:
					done <- fmt.Errorf("%d %s", a.status, a.body)
					return
				default: // perhaps made, perhaps not: the same again must be taken in the end
					last = m.mustPut(t, by, "prod/app", "under-fire", fmt.Sprint("fire ", k))
				}
				select {
				case <-began:
					if k > 20 {
						done <- nil
						return
					}
				default:
				}
			}
		}()
		<-began
		m.KillSite(t, leader)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		restart(leader)
		for i := range m.Sites {
			strict(i, "under-fire", last)
		}
	})
	t.Run("without a majority tags stand still", func(t *testing.T) {
		kept := m.mustPut(t, 2, "prod/app", "stands", "stands")
		m.mustPut(t, 2, "library/plain", "1", "plain")
		m.KillSite(t, 0)
		m.KillSite(t, 1)
		cluster.Eventually(t, cluster.Patience, "pushes by tag are refused", func() error {
			a, err := m.put(t, 2, "prod/app", "stands", "other", nil)
			return errors.Join(err, unavailable(a))
		})
		cluster.Eventually(t, cluster.Patience, "strict reads and deletions are refused, with the sites", func() error {
			status, body, err := m.Do(t, 2, "GET", "/v2/prod/app/manifests/stands", http.Header{"X-Portolan-Consistency": {"strict"}}, nil)
			if err := errors.Join(err, unavailable(answer{status: status, body: string(body)}, "site1", "site2")); err != nil {
				return err
			}
			status, body, err = m.Do(t, 2, "DELETE", "/v2/prod/app/manifests/stands", nil, nil)
			return errors.Join(err, unavailable(answer{status: status, body: string(body)}, "site1", "site2", "nothing was changed"))
		})
		if got, err := m.says(t, 2, "prod/app", "stands", false); err != nil || got != kept {
			t.Errorf("a pull alone: %q, %v", got, err)
		}
		m.mustPut(t, 2, "library/plain", "2", "an ordinary push")
		restart(0)
		restart(1)
		d := m.mustPut(t, 2, "prod/app", "stands", "after")
		strict(0, "stands", d)
	})
	t.Run("to eventual and back while it is pushed to", func(t *testing.T) {
		pushed := map[string]told{}
		for _, mode := range []string{"eventual", "strong"} {
			end := m.pushing(t, "prod/moving", mode, pushed, 0, 1, 2)
			m.Must(t, 1, "project", "tags", "prod", mode, "--wait")
			for i := range m.Sites {
				m.mustPut(t, i, "prod/moving", fmt.Sprint("after-", i), fmt.Sprint(mode, i))
			}
			pushed = end()
			for tag, want := range pushed {
				for k := range m.Sites {
					cluster.Eventually(t, cluster.Patience, tag+" is everywhere", func() error {
						d, err := m.says(t, k, "prod/moving", tag, false)
						if err == nil && d != want.last && !slices.Contains(want.unsure, d) {
							err = fmt.Errorf("%s is %q at %s, answered was %q, unsure are %v", tag, d, m.Sites[k].Name, want.last, want.unsure)
						}
						return err
					})
				}
			}
		}
	})
}

// TestDurable_RealMesh: a push to two sites of two, one of which is away.
func TestDurable_RealMesh(t *testing.T) {
	m := mesh{cluster.StartDev(t, 2)}
	m.Must(t, 0, "project", "create", "prod", "--durability", "2")
	first := m.mustPut(t, 0, "prod/app", "1", "first")
	m.KillSite(t, 1)
	cluster.Eventually(t, cluster.Patience, "a push with a site away is refused", func() error {
		a, err := m.put(t, 0, "prod/app", "2", "second", nil)
		return errors.Join(err, unavailable(a, "stored at 1 of 2", "site2", "push again"))
	})
	if got, err := m.says(t, 0, "prod/app", "2", false); err != nil || got != "" {
		t.Errorf("something of it is visible: %q, %v", got, err)
	}
	m.RestartSite(t, 1)
	second := m.mustPut(t, 0, "prod/app", "2", "second")
	// What was answered outlives the site that took it.
	m.KillSite(t, 0)
	for tag, want := range map[string]string{"1": first, "2": second} {
		if got, err := m.says(t, 1, "prod/app", tag, false); err != nil || got != want {
			t.Errorf("the tag %s at the other site: %q, %v; want %q", tag, got, err, want)
		}
		status, body, err := m.Get(t, 1, fmt.Sprintf("/v2/prod/app/blobs/sha256:%x", sha256.Sum256(bytes.Repeat([]byte(map[string]string{"1": "first ", "2": "second "}[tag]), 10<<10))))
		if err != nil || status != http.StatusOK {
			t.Errorf("its layer: %d %d bytes %v", status, len(body), err)
		}
	}
	m.RestartSite(t, 0)
}
