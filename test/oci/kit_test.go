package oci

import (
	"crypto/sha256"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	dockerImage  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList   = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig = "application/vnd.docker.container.image.v1+json"
	dockerLayer  = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// scenario is a sequence of exchanges in repositories of its own.
type scenario struct {
	name   string
	covers []string // checks of the conformance tool, see conformance_test.go
	rows   func(k *kit) []exchange
}

// kit makes content and requests for one scenario and one digest algorithm.
type kit struct {
	alg   digest.Algorithm
	url   string
	repo  string // in project conf
	other string // in the same project
	shut  string // in project shut
}

// d is the digest of b.
func (k *kit) d(b []byte) string { return k.alg.FromBytes(b).String() }

// at is the path of an end of the scenario's repository.
func (k *kit) at(end string) string { return "/v2/" + k.repo + "/" + end }

func (k *kit) blob(b []byte) string     { return k.at("blobs/" + k.d(b)) }
func (k *kit) manifest(b []byte) string { return k.at("manifests/" + k.d(b)) }

// bytes makes content that no other scenario has.
func (k *kit) bytes(name string, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(k.repo + "\x00" + name))).Read(b) // never fails
	return b
}

// given pushes blobs to the scenario's repository.
func (k *kit) given(blobs ...[]byte) []exchange { return k.givenIn(k.repo, blobs...) }

func (k *kit) givenIn(repo string, blobs ...[]byte) []exchange {
	var out []exchange
	for _, b := range blobs {
		out = append(out, exchange{name: "given a blob", do: "POST /v2/" + repo + "/blobs/uploads/?digest=" + k.d(b), body: b, code: 201})
	}
	return out
}

// put pushes a manifest by its digest, and tags as parameters.
func (k *kit) put(name string, m []byte, tags ...string) exchange {
	query := ""
	if len(tags) > 0 {
		query = "?tag=" + strings.Join(tags, "&tag=")
	}
	var typed struct {
		MediaType string `json:"mediaType"`
	}
	_ = json.Unmarshal(m, &typed) // "" for what is no JSON
	return exchange{name: name, do: "PUT " + k.manifest(m) + query, body: m, header: []string{"Content-Type", typed.MediaType}, code: 201,
		want: []string{"Location", "/v2/" + k.repo + "/manifests/" + k.d(m), "Docker-Content-Digest", k.d(m), "Oci-Tag", strings.Join(tags, ", ")}}
}

func (k *kit) descriptor(mediaType string, b []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: k.alg.FromBytes(b), Size: int64(len(b))}
}

// platform is the descriptor of an image in an index.
func (k *kit) platform(arch string, m []byte) v1.Descriptor {
	var typed struct {
		MediaType string `json:"mediaType"`
	}
	_ = json.Unmarshal(m, &typed)
	d := k.descriptor(typed.MediaType, m)
	if arch != "" {
		d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
	}
	return d
}

// image makes an image manifest; edits change it before it becomes bytes.
func (k *kit) image(config []byte, layers [][]byte, edits ...func(*v1.Manifest)) []byte {
	m := &v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: k.descriptor(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{}}
	for _, l := range layers {
		m.Layers = append(m.Layers, k.descriptor(v1.MediaTypeImageLayerGzip, l))
	}
	for _, edit := range edits {
		edit(m)
	}
	return marshal(m)
}

func (k *kit) index(children []v1.Descriptor, edits ...func(*v1.Index)) []byte {
	if children == nil {
		children = []v1.Descriptor{}
	}
	m := &v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: children}
	for _, edit := range edits {
		edit(m)
	}
	return marshal(m)
}

// docker makes it Docker's schema 2.
func docker(m *v1.Manifest) {
	m.MediaType, m.Config.MediaType = dockerImage, dockerConfig
	for i := range m.Layers {
		m.Layers[i].MediaType = dockerLayer
	}
}

// artifact makes it an artifact of a type, with the empty config.
func artifact(artifactType string) func(*v1.Manifest) {
	return func(m *v1.Manifest) { m.ArtifactType, m.Config.MediaType = artifactType, v1.MediaTypeEmptyJSON }
}

// of makes it a referrer of a subject, with a note.
func (k *kit) of(subject []byte, note string) func(*v1.Manifest) {
	return func(m *v1.Manifest) {
		d := k.descriptor(v1.MediaTypeImageManifest, subject)
		m.Subject, m.Annotations = &d, map[string]string{"note": note}
	}
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // structs of strings
	}
	return b
}

func whole(b []byte) *string {
	s := string(b)
	return &s
}

// rows makes a list.
func rows(list ...exchange) []exchange { return list }

var scenarios = slices.Concat(baseScenarios, blobScenarios, uploadScenarios, dataScenarios, manifestScenarios, referrerScenarios, listScenarios, deleteScenarios, accessScenarios)

func TestScenarios_HaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range scenarios {
		if seen[s.name] {
			t.Errorf("two scenarios are called %q: they would share repositories", s.name)
		}
		seen[s.name] = true
	}
}
