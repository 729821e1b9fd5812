package oci

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// content is what the conformance tool calls a data test: blobs, manifests in
// the order in which they can be pushed, with their tags, and what is a referrer
// of what.
type content struct {
	blobs     [][]byte
	manifests [][]byte
	tags      map[int][]string // by place in manifests
	referrers map[string][]v1.Descriptor
}

// add gives the place of a manifest that is put behind the others.
func (c *content) add(m []byte, tags ...string) []byte {
	if len(tags) > 0 {
		if c.tags == nil {
			c.tags = map[int][]string{}
		}
		c.tags[len(c.manifests)] = tags
	}
	c.manifests = append(c.manifests, m)
	return m
}

// image adds an image with blobs of its own.
func (c *content) image(k *kit, name string, edits ...func(*v1.Manifest)) []byte {
	config, layers := k.bytes(name+" config", 64), [][]byte{k.bytes(name+" layer", 300), k.bytes(name+" layer 2", 150_000)}
	c.blobs = append(append(c.blobs, config), layers...)
	return k.image(config, layers, edits...)
}

// artifact adds one with the empty config and the layers given.
func (c *content) artifact(k *kit, artifactType string, layers [][]byte, edits ...func(*v1.Manifest)) []byte {
	c.blobs = append(append(c.blobs, []byte("{}")), layers...)
	return k.image([]byte("{}"), layers, append([]func(*v1.Manifest){artifact(artifactType)}, edits...)...)
}

// exchanges pushes all, looks at all in every way that there is, and deletes all.
func (c *content) exchanges(k *kit) []exchange {
	var out []exchange
	blobs := slices.Clone(c.blobs)
	slices.SortFunc(blobs, func(a, b []byte) int { return strings.Compare(k.d(a), k.d(b)) })
	blobs = slices.CompactFunc(blobs, func(a, b []byte) bool { return k.d(a) == k.d(b) })
	for i, b := range blobs {
		if i%2 == 0 {
			out = append(out, k.given(b)...)
			continue
		}
		out = append(out, exchange{name: "post", do: "POST " + k.at("blobs/uploads/"), code: 202, save: "up"},
			exchange{name: "put", do: "PUT {up}?digest=" + k.d(b), body: b, code: 201})
	}
	var all []string
	for i, m := range c.manifests {
		e := k.put("push", m, c.tags[i]...)
		for subject, list := range c.referrers {
			if slices.ContainsFunc(list, func(d v1.Descriptor) bool { return d.Digest.String() == k.d(m) }) {
				e.want = append(e.want, "Oci-Subject", subject)
			}
		}
		out = append(out, e)
		all = append(all, c.tags[i]...)
	}
	slices.Sort(all)
	if len(all) > 0 {
		out = append(out, exchange{name: "tags", do: "GET " + k.at("tags/list"), code: 200, exact: whole(marshal(map[string]any{"name": k.repo, "tags": all}))},
			exchange{name: "tags behind one", do: "GET " + k.at("tags/list?last="+all[0]), code: 200, text: `"tags":` + string(marshal(all[1:]))})
	}
	for i, m := range c.manifests {
		for _, ref := range append([]string{k.d(m)}, c.tags[i]...) {
			at, want := k.at("manifests/"+ref), []string{"Docker-Content-Digest", k.d(m), "Content-Length", fmt.Sprint(len(m)), "Etag", `"` + k.d(m) + `"`, "Content-Type", "application/vnd.*"}
			out = append(out, exchange{name: "head", do: "HEAD " + at, code: 200, want: want}, exchange{name: "get", do: "GET " + at, code: 200, want: want, exact: whole(m)})
		}
	}
	for _, b := range blobs {
		out = append(out, exchange{name: "blob", do: "GET " + k.blob(b), code: 200, exact: whole(b)}, exchange{name: "head of a blob", do: "HEAD " + k.blob(b), code: 200})
	}
	for subject, list := range c.referrers {
		slices.SortFunc(list, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
		at := k.at("referrers/" + subject)
		out = append(out, exchange{name: "referrers", do: "GET " + at, code: 200, exact: whole(k.index(list)), want: []string{"Content-Type", v1.MediaTypeImageIndex, "Oci-Filters-Applied", "", "Link", ""}})
		for _, d := range list {
			if d.ArtifactType == "" {
				continue
			}
			same := slices.DeleteFunc(slices.Clone(list), func(o v1.Descriptor) bool { return o.ArtifactType != d.ArtifactType })
			for _, query := range []string{d.ArtifactType, url.QueryEscape(d.ArtifactType)} { // a plus sign is escaped or not
				out = append(out, exchange{name: "referrers of a type", do: "GET " + at + "?artifactType=" + query, code: 200, exact: whole(k.index(same)), want: []string{"Oci-Filters-Applied", "artifactType"}})
			}
		}
	}
	for i, m := range c.manifests {
		for _, t := range c.tags[i] {
			out = append(out, exchange{name: "delete the tag", do: "DELETE " + k.at("manifests/"+t), code: 202}, exchange{name: "the tag is gone", do: "HEAD " + k.at("manifests/"+t), code: 404})
		}
		out = append(out, exchange{name: "the manifest is not", do: "HEAD " + k.manifest(m), code: 200})
	}
	for _, m := range slices.Backward(c.manifests) {
		out = append(out, exchange{name: "delete the manifest", do: "DELETE " + k.manifest(m), code: 202}, exchange{name: "it is gone", do: "GET " + k.manifest(m), code: 404})
	}
	for _, b := range blobs {
		out = append(out, exchange{name: "delete the blob", do: "DELETE " + k.blob(b), code: 202}, exchange{name: "it is gone", do: "HEAD " + k.blob(b), code: 404})
	}
	return out
}

// listed is how a referrer is listed.
func (k *kit) listed(m []byte, mediaType, artifactType string, annotations map[string]string) v1.Descriptor {
	d := k.descriptor(mediaType, m)
	d.ArtifactType, d.Annotations = artifactType, annotations
	return d
}

func data(name string, covers string, fill func(k *kit, c *content)) scenario {
	return scenario{name: name, covers: strings.Fields(covers), rows: func(k *kit) []exchange {
		c := &content{}
		fill(k, c)
		return c.exchanges(k)
	}}
}

var dataScenarios = []scenario{
	data("image", "image image-uncompressed sha512", func(k *kit, c *content) { c.add(c.image(k, "a"), "image", "another") }),
	data("Docker image", "", func(k *kit, c *content) { c.add(c.image(k, "a", docker), "1") }),
	data("large manifest", "large-manifest", func(k *kit, c *content) {
		c.add(c.image(k, "a", func(m *v1.Manifest) {
			m.Annotations = map[string]string{}
			for i := range 390 {
				m.Annotations[fmt.Sprintf("large-annotation-%d", i)] = strings.Repeat("A", 10_000)
			}
		}), "large")
	}),
	data("index", "index tag-param-sha256 tag-param-sha512", func(k *kit, c *content) {
		a, b := c.add(c.image(k, "a"), "only-amd64"), c.add(c.image(k, "b"))
		c.add(k.index([]v1.Descriptor{k.platform("amd64", a), k.platform("arm64", b)}), "index", "latest")
	}),
	data("Docker list", "", func(k *kit, c *content) {
		a, b := c.add(c.image(k, "a", docker)), c.add(c.image(k, "b", docker))
		c.add(k.index([]v1.Descriptor{k.platform("amd64", a), k.platform("arm64", b)}, func(m *v1.Index) { m.MediaType = dockerList }), "list")
	}),
	data("nested index", "nested-index", func(k *kit, c *content) {
		var inner []v1.Descriptor
		for _, name := range []string{"a", "b"} {
			m := c.add(c.image(k, name))
			i := c.add(k.index([]v1.Descriptor{k.platform("amd64", m)}))
			inner = append(inner, k.platform("", i))
		}
		c.add(k.index(inner), "index-of-index")
	}),
	data("empty index", "empty-index", func(k *kit, c *content) { c.add(k.index(nil), "index") }),
	data("artifact", "artifact", func(k *kit, c *content) {
		c.add(c.artifact(k, "application/vnd.example.one", [][]byte{k.bytes("layer", 100)}), "artifact")
	}),
	data("artifact index", "artifact-index", func(k *kit, c *content) {
		a := c.add(c.artifact(k, "application/vnd.example.one", [][]byte{k.bytes("layer", 100)}))
		c.add(k.index([]v1.Descriptor{k.platform("", a)}, func(m *v1.Index) { m.ArtifactType = "application/vnd.example.one" }), "artifact-index")
	}),
	data("artifact without layers", "artifact-without-layers", func(k *kit, c *content) {
		c.add(c.artifact(k, "application/vnd.example.one", [][]byte{[]byte("{}")}), "artifact")
	}),
	data("artifacts with a subject", "artifacts-with-subject", func(k *kit, c *content) {
		subject := c.add(c.image(k, "subject"), "image")
		note := func(s string) map[string]string { return map[string]string{"note": s} }
		plain := c.add(c.image(k, "plain", k.of(subject, "plain")))
		one := c.add(c.artifact(k, "application/vnd.example.one", [][]byte{k.bytes("one", 100)}, k.of(subject, "one")), "tagged")
		two := c.add(c.artifact(k, "application/vnd.example.two", [][]byte{k.bytes("two", 100)}, k.of(subject, "two")))
		c.referrers = map[string][]v1.Descriptor{k.d(subject): {
			// Without an artifact type of its own, an image's is that of its config.
			k.listed(plain, v1.MediaTypeImageManifest, v1.MediaTypeImageConfig, note("plain")),
			k.listed(one, v1.MediaTypeImageManifest, "application/vnd.example.one", note("one")),
			k.listed(two, v1.MediaTypeImageManifest, "application/vnd.example.two", note("two")),
		}}
	}),
	data("indexes with a subject", "index-with-subject", func(k *kit, c *content) {
		subject := c.add(k.index([]v1.Descriptor{k.platform("amd64", c.add(c.image(k, "a")))}), "index")
		with := func(artifactType string) []byte {
			return c.add(k.index(nil, func(m *v1.Index) {
				d := k.descriptor(v1.MediaTypeImageIndex, subject)
				m.ArtifactType, m.Subject, m.Annotations = artifactType, &d, map[string]string{"note": "x" + artifactType}
			}))
		}
		typed, plain := with("application/vnd.example.one"), with("")
		c.referrers = map[string][]v1.Descriptor{k.d(subject): {
			k.listed(typed, v1.MediaTypeImageIndex, "application/vnd.example.one", map[string]string{"note": "xapplication/vnd.example.one"}),
			k.listed(plain, v1.MediaTypeImageIndex, "", map[string]string{"note": "x"}),
		}}
	}),
	data("missing subject", "missing-subject", func(k *kit, c *content) {
		subject := k.bytes("never pushed", 123)
		one := c.add(c.artifact(k, "application/vnd.example.one", [][]byte{k.bytes("one", 100)}, k.of(subject, "one")), "tagged")
		c.referrers = map[string][]v1.Descriptor{k.d(subject): {k.listed(one, v1.MediaTypeImageManifest, "application/vnd.example.one", map[string]string{"note": "one"})}}
	}),
	data("data field", "data-field", func(k *kit, c *content) {
		layer := k.bytes("layer", 100)
		c.add(c.artifact(k, "application/vnd.example.one", [][]byte{layer}, func(m *v1.Manifest) { m.Config.Data, m.Layers[0].Data = []byte("{}"), layer }), "data")
	}),
	data("non-distributable layers", "non-distributable-layers", func(k *kit, c *content) {
		c.add(c.image(k, "a", func(m *v1.Manifest) {
			for i, mediaType := range []string{v1.MediaTypeImageLayerNonDistributableGzip, v1.MediaTypeImageLayerNonDistributable} { //nolint:staticcheck // deprecated, and still pushed
				d := k.descriptor(mediaType, k.bytes(fmt.Sprint("elsewhere", i), 1000))
				d.URLs = []string{"https://store.example.com/blobs/" + d.Digest.Encoded()}
				m.Layers = append(m.Layers, d)
			}
		}), "1")
	}),
	data("custom fields", "custom-fields", func(k *kit, c *content) {
		a := c.image(k, "a")
		a = c.add([]byte(strings.Replace(string(a), "{", `{"org.example.field":{"x":[1,"\u00e9"]},`, 1)))
		i := k.index([]v1.Descriptor{k.platform("amd64", a)})
		c.add([]byte(strings.Replace(string(i), "{", "{\n  \"org.example.field\" : \"x\",", 1)), "custom")
	}),
	data("no layers", "no-layers", func(k *kit, c *content) {
		config := k.bytes("config", 64)
		c.blobs = append(c.blobs, config)
		c.add(k.image(config, nil), "1")
	}),
}
