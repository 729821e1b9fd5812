package node

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestRun_ThePullOfOneLayerBringsTheOthers: a client that takes one layer after the other
// at a site that has none finds the next ones there. A HEAD brings nothing, and what
// another project has stays where it is.
func TestRun_ThePullOfOneLayerBringsTheOthers(t *testing.T) {
	at, far := newMachine(t), newMachine(t)
	at.start("--site", "ams")
	far.join(at.token("sgp"))
	far.start()
	layers := [][]byte{[]byte(`{"architecture":"amd64"}`), layer(1, 3<<20), layer(2, 5<<20+1), layer(3, 100<<10)}
	other := layer(4, 70<<10)
	at.await("a project", func() error { return at.createProject("other") })
	at.pushImage("library/app", layers)
	at.pushImage("other/app", append(layers[:2:2], other))

	here := func(b []byte) bool {
		d := digest.FromBytes(b).Encoded()
		_, err := os.Stat(filepath.Join(far.dir, storeDir, "blobs", "sha256", d[:2], d))
		return err == nil
	}
	far.await("the image is known", func() error { _, err := far.do(http.MethodHead, "/v2/library/app/manifests/1", nil); return err })
	far.await("the other one, too", func() error { _, err := far.do(http.MethodHead, "/v2/other/app/manifests/1", nil); return err })
	if _, err := far.get("/v2/other/app/manifests/1"); err != nil {
		t.Fatal(err)
	}
	if _, err := far.get("/v2/library/app/manifests/1"); err != nil {
		t.Fatal(err)
	}
	far.await("a blob is known to be elsewhere", func() error {
		_, err := far.do(http.MethodHead, "/v2/library/app/blobs/"+digest.FromBytes(layers[1]).String(), nil)
		return err
	})
	if m, err := far.get("/metrics"); err != nil || bytes.Contains(m, []byte("portolan_transfer_sibling_images_total{")) {
		t.Fatalf("manifests and heads begin something: %v", err)
	}
	got, err := far.get("/v2/library/app/blobs/" + digest.FromBytes(layers[1]).String())
	if err != nil || !bytes.Equal(got, layers[1]) {
		t.Fatalf("%d of %d bytes: %v", len(got), len(layers[1]), err)
	}
	far.await("the config and two layers come", func() error {
		m, err := far.get("/metrics")
		if err == nil && !bytes.Contains(m, []byte(`portolan_transfer_sibling_blobs_total{result="brought"} 3`)) {
			err = errors.New("they are not here")
		}
		return err
	})
	for i, b := range layers[1:] {
		if !here(b) {
			t.Errorf("layer %d is not in the store", i)
		}
	}
	if here(other) {
		t.Error("another project's blob came as well")
	}
}

// pushImage pushes a config and layers.
func (m *machine) pushImage(repo string, blobs [][]byte) {
	m.t.Helper()
	var list []string
	for i, b := range blobs {
		d := digest.FromBytes(b)
		kind := "application/vnd.oci.image.layer.v1.tar"
		if i == 0 {
			kind = "application/vnd.oci.image.config.v1+json"
		}
		list = append(list, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, kind, d, len(b)))
		if _, err := m.send(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", bytes.NewReader(b)); err != nil {
			m.t.Fatal(err)
		}
	}
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, ociManifest, list[0], strings.Join(list[1:], ","))
	if _, err := m.send(http.MethodPut, "/v2/"+repo+"/manifests/1", ociManifest, strings.NewReader(manifest)); err != nil {
		m.t.Fatal(err)
	}
}
