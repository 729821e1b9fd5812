package mesh

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

// TestRot flips a bit in a file on the disk of one of two real nodes. Who pulls
// there gets the right bytes, the file is put aside and comes back from the other
// site, and log and metric say so.
func TestRot(t *testing.T) {
	m := mesh{cluster.StartDev(t, 2)}
	layer := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{'r', 'o', 't'}).Read(layer)
	m.Must(t, 0, "project", "create", "prod", "--public")
	m.Must(t, 0, "rule", "create", "everywhere", "--projects", "prod", "--sites", "all")
	m.pushLayer(t, 0, "prod/app", "1", layer)
	m.Must(t, 0, "wait", "prod/app:1", "--sites", "all", "--timeout", "60s")

	for i, site := range m.Sites {
		hex := strings.TrimPrefix(digestOf(layer), "sha256:")
		path := filepath.Join(site.Data, "store", "blobs", "sha256", hex[:2], hex)
		rotten := bytes.Clone(layer)
		rotten[2<<20+99] ^= 1
		if err := os.WriteFile(path, rotten, 0o600); err != nil { // #nosec G306 -- in place: the file is the same one
			t.Fatal(err)
		}
		status, got, err := m.Get(t, i, "/v2/prod/app/blobs/"+digestOf(layer))
		if err != nil || status != http.StatusOK || !bytes.Equal(got, layer) {
			t.Fatalf("%s served %d bytes with status %d, %v; right: %v", site.Name, len(got), status, err, bytes.Equal(got, layer))
		}
		cluster.Eventually(t, cluster.Patience, "the file is whole again at "+site.Name, func() error {
			b, err := os.ReadFile(path)
			if err == nil && !bytes.Equal(b, layer) {
				err = fmt.Errorf("%s has other bytes", path)
			}
			return err
		})
		if n := damaged(t, m, i); n != "1" {
			t.Errorf("%s counts %s damaged blobs, want 1", site.Name, n)
		}
	}
	for _, says := range []string{"a stored blob is damaged", "a damaged blob is served from another site"} {
		if !strings.Contains(m.Dev.Output(), says) {
			t.Errorf("the log does not say %q", says)
		}
	}
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// pushLayer pushes an image of one layer.
func (m mesh) pushLayer(t *testing.T, site int, repo, tag string, layer []byte) {
	t.Helper()
	config := []byte("{}")
	put := func(method, path, mediaType string, b []byte) {
		t.Helper()
		status, body, err := m.Do(t, site, method, path, http.Header{"Content-Type": {mediaType}}, bytes.NewReader(b))
		if err != nil || status != http.StatusCreated {
			t.Fatalf("%s %s: %d %s, %v", method, path, status, body, err)
		}
	}
	for _, b := range [][]byte{config, layer} {
		put("POST", "/v2/"+repo+"/blobs/uploads/?digest="+digestOf(b), "application/octet-stream", b)
	}
	const image = "application/vnd.oci.image.manifest.v1+json"
	put("PUT", "/v2/"+repo+"/manifests/"+tag, image, fmt.Appendf(nil,
		`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
			`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]}`,
		image, digestOf(config), len(config), digestOf(layer), len(layer)))
}

// damaged is what a site's metric says.
func damaged(t *testing.T, m mesh, i int) string {
	t.Helper()
	_, body, err := m.Get(t, i, "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for sc := bufio.NewScanner(bytes.NewReader(body)); sc.Scan(); {
		if n, ok := strings.CutPrefix(sc.Text(), "portolan_store_damaged_blobs_total "); ok {
			return n
		}
	}
	return "no"
}
