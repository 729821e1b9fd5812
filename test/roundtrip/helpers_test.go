package roundtrip

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/images"
)

// The project is private, so that every request of every client has to find
// its way through the challenge; who pulls may not push.
const (
	project  = "trips"
	pusher   = "carol"
	puller   = "gil"
	password = "Given-secret-1"
)

// bed is a mesh with two people and a project.
type bed struct {
	*cluster.Mesh
	set images.Set
}

// newBed starts three sites; what was edited at the first holds at all.
func newBed(t *testing.T) *bed {
	t.Helper()
	b := &bed{cluster.StartDev(t, 3), images.Make(t)}
	b.Must(t, 0, "project", "create", project)
	for name, role := range map[string]string{pusher: "developer", puller: "guest"} {
		b.Must(t, 0, "user", "create", name, "--password", password)
		b.Must(t, 0, "project", "member", "set", project, name, role)
	}
	for i := range b.Sites {
		for _, name := range []string{pusher, puller} {
			cluster.Eventually(t, cluster.Patience, name+" is known at "+b.Sites[i].Name, func() error {
				status, body, err := b.get(t.Context(), i, name, "/v2/"+project+"/nothing/tags/list")
				if err == nil && status != http.StatusNotFound { // else 401 or 403
					err = fmt.Errorf("%d %s", status, body)
				}
				return err
			})
		}
	}
	return b
}

// name is an image's name as clients of site i spell it.
func (b *bed) name(i int, repository string) string {
	return b.Sites[i].Host() + "/" + project + "/" + repository
}

// accept is every manifest type that clients push here.
var accept = []string{
	ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest,
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
}

// get asks site i as one of the two.
func (b *bed) get(ctx context.Context, i int, who, path string) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, cluster.Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.Sites[i].URL+path, nil)
	if err != nil {
		return 0, nil, err
	}
	req.SetBasicAuth(who, password)
	req.Header["Accept"] = accept
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// content is what a site gives for a tag: the digest of its manifest, and the
// size of every manifest and blob that it leads to.
type content struct {
	root   string
	config string // of an image; "" for an index
	sizes  map[string]int64
}

func (c content) String() string {
	return fmt.Sprintf("%s: %v", c.root, slices.Sorted(maps.Keys(c.sizes)))
}

// content reads all of an artifact, by tag or digest, from site i and hashes
// every byte.
func (b *bed) content(t *testing.T, i int, repository, reference string) content {
	t.Helper()
	c := content{sizes: map[string]int64{}}
	c.root = b.walk(t, i, repository, reference, unknownSize, &c)
	return c
}

const unknownSize = -1

// walk reads a manifest and what it names, and gives its digest.

func (b *bed) walk(t *testing.T, i int, repository, reference string, size int64, c *content) string {
	t.Helper()
	body := b.fetch(t, i, "/v2/"+project+"/"+repository+"/manifests/"+reference)
	digest := digestOf(body)
	if strings.HasPrefix(reference, "sha256:") && digest != reference || size != unknownSize && int64(len(body)) != size {
		t.Fatalf("%s gave %d bytes %s for %s, %d bytes", b.Sites[i].Name, len(body), digest, reference, size)
	}
	c.sizes[digest] = int64(len(body))
	var m struct {
		Manifests, Layers []ocispec.Descriptor
		Config            *ocispec.Descriptor
	}
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	for _, child := range m.Manifests {
		b.walk(t, i, repository, child.Digest.String(), child.Size, c)
	}
	blobs := m.Layers
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
		c.config = m.Config.Digest.String()
	}
	for _, d := range blobs {
		if _, done := c.sizes[d.Digest.String()]; done {
			continue
		}
		body := b.fetch(t, i, "/v2/"+project+"/"+repository+"/blobs/"+d.Digest.String())
		if got := digestOf(body); got != d.Digest.String() || int64(len(body)) != d.Size {
			t.Fatalf("%s gave %d bytes %s for the blob %s, %d bytes", b.Sites[i].Name, len(body), got, d.Digest, d.Size)
		}
		c.sizes[d.Digest.String()] = d.Size
	}
	return digest
}

func (b *bed) fetch(t *testing.T, i int, path string) []byte {
	t.Helper()
	status, body, err := b.get(t.Context(), i, puller, path)
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s, %s: %d %v %s", b.Sites[i].Name, path, status, err, body)
	}
	return body
}

// same reads an artifact at two sites and fails if a byte differs.
func (b *bed) same(t *testing.T, from, to int, repository, reference string) content {
	t.Helper()
	here, there := b.content(t, from, repository, reference), b.content(t, to, repository, reference)
	if here.root != there.root || !maps.Equal(here.sizes, there.sizes) {
		t.Errorf("%s:%s is %v at %s, %v at %s", repository, reference, here, b.Sites[from].Name, there, b.Sites[to].Name)
	}
	return here
}

// referrers asks site i what refers to a manifest.
func (b *bed) referrers(t *testing.T, i int, repository, digest string) []ocispec.Descriptor {
	t.Helper()
	var index ocispec.Index
	body := b.fetch(t, i, "/v2/"+project+"/"+repository+"/referrers/"+digest)
	if err := json.Unmarshal(body, &index); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return index.Manifests
}

func digestOf(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// layoutRoot is the digest of the one manifest that an OCI layout lists.
func layoutRoot(t *testing.T, layout string) string {
	t.Helper()
	var index ocispec.Index
	if err := json.Unmarshal(read(t, filepath.Join(layout, "index.json")), &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("%s lists %d manifests, %v", layout, len(index.Manifests), err)
	}
	return index.Manifests[0].Digest.String()
}

// layoutBlobs hashes what an OCI layout holds.
func layoutBlobs(t *testing.T, layout string) map[string]int64 {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(layout, "blobs", "sha256", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s is empty: %v", layout, err)
	}
	held := map[string]int64{}
	for _, f := range files {
		b := read(t, f)
		if d := digestOf(b); d != "sha256:"+filepath.Base(f) {
			t.Errorf("%s holds %s", f, d)
		}
		held["sha256:"+filepath.Base(f)] = int64(len(b))
	}
	return held
}

// exact compares three things: the layout that was pushed, what the site gives
// for the tag, and the layout that was pulled.
func exact(t *testing.T, pushed string, got content, pulled string) {
	t.Helper()
	if want := layoutRoot(t, pushed); got.root != want {
		t.Errorf("pushed %s, the tag gives %s", want, got.root)
	}
	if want := layoutRoot(t, pulled); got.root != want {
		t.Errorf("the tag gives %s, pulled %s", got.root, want)
	}
	want := layoutBlobs(t, pushed)
	if !maps.Equal(want, got.sizes) {
		t.Errorf("pushed %v, the tag leads to %v", want, got)
	}
	back := layoutBlobs(t, pulled)
	for d, size := range want {
		if back[d] != size {
			t.Errorf("%s has %d bytes, %d came back", d, size, back[d])
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// in joins environments.
func in(envs ...[]string) []string { return slices.Concat(envs...) }
