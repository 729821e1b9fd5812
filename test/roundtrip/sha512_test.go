package roundtrip

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/test/cluster"
)

// longNames pushes an artifact whose every part is named by sha512 at one site
// and reads it at the other, with plain HTTP: most clients cannot choose the
// algorithm. The layers arrive there in units, one of them by each way to push.
func longNames(t *testing.T, b *bed, from, to int) {
	const repository = "long"
	blob := func(seed byte, size int) []byte {
		content := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
		return content
	}
	config := []byte(`{"architecture":"amd64","os":"linux"}`)
	layers := [][]byte{blob(1, 5<<20+11), blob(2, 3<<20), blob(3, 100_000)}

	base := "/v2/" + project + "/" + repository
	b.put(t, from, http.MethodPost, base+"/blobs/uploads/?digest="+longDigest(config).String(), nil, config, http.StatusCreated)
	for i, query := range []string{"", "?digest-algorithm=sha512", ""} {
		l := layers[i]
		at := b.put(t, from, http.MethodPost, base+"/blobs/uploads/"+query, nil, nil, http.StatusAccepted)
		if i < 2 {
			at = b.put(t, from, http.MethodPatch, at, nil, l[:len(l)/2], http.StatusAccepted)
			l = l[len(l)/2:]
		}
		b.put(t, from, http.MethodPut, at+"?digest="+longDigest(layers[i]).String(), nil, l, http.StatusCreated)
	}

	image := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: long(ocispec.MediaTypeImageConfig, config)}
	for _, l := range layers {
		image.Layers = append(image.Layers, long(ocispec.MediaTypeImageLayer, l))
	}
	imageBytes := marshal(t, image)
	index := marshal(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{long(ocispec.MediaTypeImageManifest, imageBytes)}})
	subject := long(ocispec.MediaTypeImageManifest, imageBytes)
	note := marshal(t, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.example.note", Config: long(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{}, Subject: &subject})
	for _, m := range []struct {
		mediaType, query string
		body             []byte
	}{
		{ocispec.MediaTypeImageManifest, "", imageBytes},
		{ocispec.MediaTypeImageIndex, "?tag=1.0", index},
		{ocispec.MediaTypeImageManifest, "", note},
	} {
		b.put(t, from, http.MethodPut, base+"/manifests/"+longDigest(m.body).String()+m.query, http.Header{"Content-Type": {m.mediaType}}, m.body, http.StatusCreated)
	}

	// The other site is asked at once, for all of it, by tag first.
	for reference, want := range map[string][]byte{
		"1.0": index, longDigest(imageBytes).String(): imageBytes, longDigest(note).String(): note,
	} {
		if got := b.fetch(t, to, base+"/manifests/"+reference); !bytes.Equal(got, want) {
			t.Errorf("manifest %s is another at %s: %d bytes, want %d", reference, b.Sites[to].Name, len(got), len(want))
		}
	}
	for i, want := range append([][]byte{config}, layers...) {
		if got := b.fetch(t, to, base+"/blobs/"+longDigest(want).String()); !bytes.Equal(got, want) {
			t.Errorf("blob %d is another at %s: %d bytes, want %d", i, b.Sites[to].Name, len(got), len(want))
		}
	}
	cluster.Eventually(t, cluster.Patience, "the referrer is listed at the other site", func() error {
		if got := b.referrers(t, to, repository, longDigest(imageBytes).String()); len(got) != 1 || got[0].Digest != longDigest(note) {
			return fmt.Errorf("referrers: %v", got)
		}
		return nil
	})

	// The mesh knows it by these names, too: a rule brings it everywhere, and it is
	// waited for and found by its digest.
	name := project + "/" + repository + "@" + longDigest(index).String()
	b.Must(t, to, "rule", "create", "long-everywhere", "--projects", project, "--repositories", repository, "--sites", "all")
	b.Must(t, to, "wait", name, "--sites", "all", "--timeout", "60s")
	for i := range b.Sites {
		if out := b.Must(t, i, "where", name); !strings.Contains(out, longDigest(index).String()) {
			t.Errorf("where at %s:\n%s", b.Sites[i].Name, out)
		}
	}
}

func longDigest(b []byte) digest.Digest {
	return digest.Digest(fmt.Sprintf("sha512:%x", sha512.Sum512(b)))
}

func long(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: longDigest(b), Size: int64(len(b))}
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put sends a request of a push to site i and gives the answer's Location, as a
// path.
func (b *bed) put(t *testing.T, i int, method, path string, header http.Header, body []byte, want int) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, b.Sites[i].URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.SetBasicAuth(pusher, password)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != want {
		t.Fatalf("%s %s: %d, want %d: %s %v", method, path, resp.StatusCode, want, said, err)
	}
	if u, err := url.Parse(path); want == http.StatusCreated && err == nil {
		d := u.Query().Get("digest")
		if d == "" {
			d = u.Path[strings.LastIndex(u.Path, "/")+1:]
		}
		if got := resp.Header.Get("Docker-Content-Digest"); got != d {
			t.Errorf("%s %s: stored as %s", method, path, got)
		}
	}
	return resp.Header.Get("Location")
}
