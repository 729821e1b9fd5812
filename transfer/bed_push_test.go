package transfer_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/manifest"
)

// project makes a project and gives its id.
func (b *bed) project(name string, sites ...string) identity.ProjectID {
	b.t.Helper()
	pid := identity.NewProjectID()
	b.propose(&command.ProjectCreate{ProjectId: pid[:], Name: name, Sites: sites})
	return pid
}

func (b *bed) rule(r *command.Rule) int64 {
	b.t.Helper()
	return b.propose(&command.RuleCreate{Rule: r})
}

// image is what was pushed.
type image struct {
	digest digest.Digest
	body   []byte
	blobs  []digest.Digest
}

// push does what registryapi does for an image with a config, a small layer and
// one of several units.
func (n *site) push(pid identity.ProjectID, repo string, tags ...string) image {
	n.t.Helper()
	layer := make([]byte, 2<<20+12345)
	_, _ = rand.Read(layer)
	return n.pushLayers(pid, repo, "", tags, []byte("small layer "+repo+strings.Join(tags, ",")+rand.Text()), layer)
}

func (n *site) pushLayers(pid identity.ProjectID, repo string, subject digest.Digest, tags []string, layers ...[]byte) image {
	n.t.Helper()
	m := n.manifestOf(pid, repo, v1.MediaTypeImageConfig, layers...)
	if subject != "" {
		m.Subject = &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: subject, Size: 1}
		m.ArtifactType = "application/vnd.test.signature"
	}
	return n.put(pid, repo, m, tags)
}

// manifestOf uploads a config and layers.
func (n *site) manifestOf(pid identity.ProjectID, repo, configType string, layers ...[]byte) v1.Manifest {
	n.t.Helper()
	ctx := context.Background()
	put := func(mediaType string, b []byte) v1.Descriptor {
		d, err := n.store.PutBytes(ctx, b, store.Link{PID: pid, Repo: repo})
		must(n.t, err)
		return v1.Descriptor{MediaType: mediaType, Digest: d.Digest, Size: d.Size}
	}
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: put(configType, []byte(`{"os":"linux","r":"`+rand.Text()+`"}`))}
	m.SchemaVersion = 2
	for _, l := range layers {
		m.Layers = append(m.Layers, put(v1.MediaTypeImageLayer, l))
	}
	return m
}

// index pushes an index of manifests.
func (n *site) pushIndex(pid identity.ProjectID, repo, tag string, children ...image) image {
	n.t.Helper()
	m := v1.Index{MediaType: v1.MediaTypeImageIndex}
	m.SchemaVersion = 2
	for _, c := range children {
		m.Manifests = append(m.Manifests, v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: c.digest, Size: int64(len(c.body))})
	}
	return n.put(pid, repo, m, []string{tag})
}

// put writes a manifest's entry as registryapi does.
func (n *site) put(pid identity.ProjectID, repo string, body any, tags []string) image {
	n.t.Helper()
	raw, err := json.Marshal(body)
	must(n.t, err)
	m, err := manifest.Parse("", raw)
	must(n.t, err)
	out := image{digest: digest.FromBytes(raw), body: raw}
	p := catalog.Put{PID: pid, Repo: repo, Digest: out.digest, MediaType: m.MediaType, Size: int64(len(raw)), Bytes: raw,
		ArtifactType: m.ArtifactType, Tags: tags, Home: n.name, Actor: "user:admin"}
	if m.Subject != nil {
		p.Subject = m.Subject.Digest
	}
	for _, b := range m.Blobs() {
		p.Refs = append(p.Refs, catalog.Ref{Digest: b.Digest, Size: b.Size, Kind: catalog.RefBlob})
		out.blobs = append(out.blobs, b.Digest)
	}
	for _, c := range m.Manifests {
		p.Refs = append(p.Refs, catalog.Ref{Digest: c.Digest, Size: c.Size, Kind: catalog.RefManifest})
	}
	if len(raw) > catalog.MaxInlineManifest {
		_, err := n.store.PutBytes(context.Background(), raw, store.Link{PID: pid, Repo: repo})
		must(n.t, err)
		p.Bytes = nil
	}
	_, err = n.store.Catalog().PutManifest(context.Background(), p)
	must(n.t, err)
	n.rec.Pushed(pid, repo, out.digest)
	return out
}
