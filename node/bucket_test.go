package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/test/bucket"
)

// onBucket are the options of a node whose blobs are in server.
func onBucket(server *bucket.Server) []string {
	args := []string{"--store-driver", "s3"}
	for k, v := range server.Parameters() {
		args = append(args, "--store-parameters", k+"="+v)
	}
	return args
}

// pushChunks pushes an image of one layer as docker does.
func (m *machine) pushChunks(repo, tag string, layer []byte) digest.Digest {
	m.t.Helper()
	d, empty := digest.FromBytes(layer), []byte("{}")
	must := func(method, at, kind string, body io.Reader, status int) *http.Response {
		m.t.Helper()
		if !strings.HasPrefix(at, "http") {
			at = m.url() + at
		}
		req, err := http.NewRequestWithContext(m.t.Context(), method, at, body)
		if err != nil {
			m.t.Fatal(err)
		}
		req.SetBasicAuth("admin", testPassword)
		req.Header.Set("Content-Type", kind)
		resp, err := m.http.Do(req)
		if err != nil {
			m.t.Fatal(err)
		}
		said, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != status {
			m.t.Fatalf("%s %s: %s: %s", method, at, resp.Status, said)
		}
		return resp
	}
	const stream = "application/octet-stream"
	at := must(http.MethodPost, "/v2/"+repo+"/blobs/uploads/", stream, nil, 202).Header.Get("Location")
	for chunk := range slices.Chunk(layer, 5<<20) {
		at = must(http.MethodPatch, at, stream, bytes.NewReader(chunk), 202).Header.Get("Location")
	}
	sep := "?"
	if strings.Contains(at, "?") {
		sep = "&"
	}
	must(http.MethodPut, at+sep+"digest="+d.String(), stream, nil, 201)
	must(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+digest.FromBytes(empty).String(), stream, bytes.NewReader(empty), 201)
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":2},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ociManifest, "application/vnd.oci.empty.v1+json", digest.FromBytes(empty), "application/vnd.oci.image.layer.v1.tar", d, len(layer))
	must(http.MethodPut, "/v2/"+repo+"/manifests/"+tag, ociManifest, strings.NewReader(manifest), 201)
	return d
}

func (m *machine) pulls(repo, tag string, layer []byte) {
	m.t.Helper()
	if _, err := m.get("/v2/" + repo + "/manifests/" + tag); err != nil {
		m.t.Fatal(err)
	}
	got, err := m.get("/v2/" + repo + "/blobs/" + digest.FromBytes(layer).String())
	if err != nil || !bytes.Equal(got, layer) {
		m.t.Fatalf("%d of %d bytes: %v", len(got), len(layer), err)
	}
}

func layer(seed byte, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// TestRun_OnABucket: a node keeps its blobs in S3, restarts with and without it,
// and replicates both ways with a site that has a disk.
func TestRun_OnABucket(t *testing.T) {
	server := bucket.Start(t)
	onS3, onDisk := newMachine(t), newMachine(t)
	options := onBucket(server)
	onS3.start(append(options, "--site", "fra")...)
	first, second := layer(1, 23<<20), layer(2, 12<<20)
	d := onS3.pushChunks("library/app", "1", first)
	onS3.pulls("library/app", "1", first)
	onS3.mustStop()
	onS3.start(options...)
	onS3.pulls("library/app", "1", first)

	onDisk.join(onS3.token("mum"))
	onDisk.start()
	onS3.await("a rule", func() error {
		_, err := onS3.do(http.MethodPost, mesh.Prefix+"/rules", mesh.RuleRequest{Name: "everywhere", Projects: []string{"library"}, Sites: []string{"all"}})
		return err
	})
	file := filepath.Join(onDisk.dir, storeDir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
	onDisk.await("the image comes to the disk", func() error { _, err := os.Stat(file); return err })
	d2 := onDisk.pushChunks("library/other", "1", second)
	object := server.Path("store/blobs/sha256/" + d2.Encoded()[:2] + "/" + d2.Encoded())
	onS3.await("the other comes to the bucket", func() error { _, err := os.Stat(object); return err })
	onS3.await("and is served from there", func() error {
		_, err := onS3.get("/v2/library/other/manifests/1")
		return err
	})
	onS3.pulls("library/other", "1", second)

	// Without its bucket the site starts, and serves what is in its catalogue.
	onS3.mustStop()
	server.Kill()
	onS3.start(options...)
	if _, err := onS3.get("/v2/library/app/manifests/1"); err != nil {
		t.Error(err)
	}
	if _, err := onS3.get("/v2/library/app/blobs/" + d.String()); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), `S3 bucket \"layers\"`) {
		t.Errorf("a blob while the bucket is away: %v", err)
	}
	onDisk.pulls("library/app", "1", first)
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	onS3.pulls("library/app", "1", first)
	if m, err := onS3.get("/metrics"); err != nil || !bytes.Contains(m, []byte(`portolan_blobs_bucket_calls_total{call="read",result="unavailable"}`)) {
		t.Errorf("metrics: %v", err)
	}
	onS3.mustStop()

	// It does not start anywhere else.
	if err := onS3.run(t.Context()); err == nil || !strings.Contains(err.Error(), `keeps its blobs in "s3 layers/store", not on its disk`) {
		t.Errorf("without its bucket's name: %v", err)
	}
	if err := onS3.run(t.Context(), "--store-driver", "s3"); err == nil || !strings.Contains(err.Error(), `needs the parameter "bucket"`) {
		t.Errorf("without parameters: %v", err)
	}
	var shown []string
	for name, text := range map[string]string{"the log": onS3.log.String(), "the directory": grep(t, onS3.dir, "a-secret-of-the-tests")} {
		if strings.Contains(text, "a-secret-of-the-tests") {
			shown = append(shown, name)
		}
	}
	if len(shown) > 0 {
		t.Errorf("the secret is in %v", shown)
	}
}

// grep gives secret if any file below dir has it.
func grep(t *testing.T, dir, secret string) string {
	t.Helper()
	found := ""
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if bytes.Contains(b, []byte(secret)) {
			found = secret
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
