package oci

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var manifestScenarios = []scenario{
	{name: "manifest by tag", rows: func(k *kit) []exchange {
		config, layer := k.bytes("config", 64), k.bytes("layer", 100)
		m, n := k.image(config, [][]byte{layer}), k.image(config, nil)
		// A tag alone does not say which algorithm is meant.
		d := digest.FromBytes(m).String()
		put := func(name string, body []byte, tag string, header ...string) exchange {
			return exchange{name: name, do: "PUT " + k.at("manifests/"+tag), body: body, header: header, code: 201}
		}
		tagged := put("put", m, "1", "Content-Type", v1.MediaTypeImageManifest)
		tagged.want = []string{"Location", "/v2/" + k.repo + "/manifests/" + d, "Docker-Content-Digest", d, "Oci-Subject", "", "Warning", ""}
		untyped := put("put without a type", m, "2", "Content-Type", "")
		untyped.want = []string{"Docker-Content-Digest", d, "Warning", `299 - "the Content-Type sent names no type of manifest: this was taken for ` + v1.MediaTypeImageManifest + "*"}
		long := strings.Repeat("t", 128)
		return slices.Concat(k.given(config, layer), rows(
			tagged,
			exchange{name: "get", do: "GET " + k.at("manifests/1"), code: 200, exact: whole(m), want: []string{"Content-Type", v1.MediaTypeImageManifest, "Docker-Content-Digest", d, "Etag", `"` + d + `"`, "Vary", "Accept", "Cache-Control", "no-cache"}},
			exchange{name: "head", do: "HEAD " + k.at("manifests/1"), code: 200, want: []string{"Content-Type", v1.MediaTypeImageManifest, "Docker-Content-Digest", d, "Content-Length", fmt.Sprint(len(m))}},
			exchange{name: "by digest", do: "GET " + k.at("manifests/"+d), code: 200, exact: whole(m), want: []string{"Vary", "", "Cache-Control", privateForGood}},
			exchange{name: "a part", do: "GET " + k.at("manifests/1"), header: []string{"Range", "bytes=0-9"}, code: 206, exact: whole(m[:10])},
			put("parameters of the type", m, "1", "Content-Type", v1.MediaTypeImageManifest+"; charset=utf-8"),
			exchange{name: "are not kept", do: "HEAD " + k.at("manifests/1"), code: 200, want: []string{"Content-Type", v1.MediaTypeImageManifest}},
			untyped,
			put("the longest tag", m, long, "Content-Type", v1.MediaTypeImageManifest),
			put("again, another", n, "1", "Content-Type", v1.MediaTypeImageManifest),
			exchange{name: "the tag moved", do: "GET " + k.at("manifests/1"), code: 200, exact: whole(n)},
			exchange{name: "the other did not", do: "GET " + k.at("manifests/2"), code: 200, exact: whole(m)},
			exchange{name: "a tag that is none", do: "PUT " + k.at("manifests/.x"), body: m, header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 400, text: "TAG_INVALID"},
			exchange{name: "a tag that is too long", do: "PUT " + k.at("manifests/"+long+"t"), body: m, header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 400, text: "TAG_INVALID"},
		))
	}},
	{name: "manifest by digest", covers: []string{"bad-digest-image", "invalid-digest-format/manifest-put", "invalid-digest-format/manifest-get"}, rows: func(k *kit) []exchange {
		config := k.bytes("config", 64)
		m := k.image(config, nil)
		typed := []string{"Content-Type", v1.MediaTypeImageManifest}
		tags := make([]string, 65)
		for i := range tags {
			tags[i] = fmt.Sprint("t", i)
		}
		return slices.Concat(k.given(config), rows(
			exchange{name: "of something else", do: "PUT " + k.manifest(m), body: append(slices.Clone(m), "  "...), header: typed, code: 400, text: "DIGEST_INVALID"},
			exchange{name: "put by no digest", do: "PUT " + k.at("manifests/"+k.alg.String()+":baddigeststring"), body: m, header: typed, code: 400, text: "DIGEST_INVALID"},
			exchange{name: "get by no digest", do: "GET " + k.at("manifests/"+k.alg.String()+":baddigeststring"), code: 400, text: "DIGEST_INVALID"},
			exchange{name: "nothing is there", do: "GET " + k.manifest(m), code: 404, text: "MANIFEST_UNKNOWN"},
			k.put("put", m),
			k.put("put with tags", m, "a", "b"),
			k.put("put with as many tags as are taken", m, tags[:64]...),
			exchange{name: "put with more", do: "PUT " + k.manifest(m) + "?tag=" + strings.Join(tags, "&tag="), body: m, header: typed, code: 400, text: "TAG_INVALID"},
			exchange{name: "put with a tag that is none", do: "PUT " + k.manifest(m) + "?tag=ok&tag=.x", body: m, header: typed, code: 400, text: "TAG_INVALID"},
			exchange{name: "then none is set", do: "HEAD " + k.at("manifests/ok"), code: 404},
			exchange{name: "a tag of those", do: "GET " + k.at("manifests/t63"), code: 200, exact: whole(m), want: []string{"Docker-Content-Digest", k.d(m)}},
		))
	}},
	{name: "what a manifest names", rows: func(k *kit) []exchange {
		config, layer, missing := k.bytes("config", 64), k.bytes("layer", 100), k.bytes("missing", 100)
		m := k.image(config, [][]byte{layer})
		refused := func(name string, body []byte, mediaType, text string) exchange {
			return exchange{name: name, do: "PUT " + k.at("manifests/1"), body: body, header: []string{"Content-Type", mediaType}, code: 400, text: text}
		}
		image := func(edit func(*v1.Manifest)) []byte { return k.image(config, [][]byte{layer}, edit) }
		return slices.Concat(k.given(config, layer), rows(
			refused("a layer that is not there", k.image(config, [][]byte{missing}), v1.MediaTypeImageManifest, "MANIFEST_BLOB_UNKNOWN"),
			refused("which", k.image(config, [][]byte{missing}), v1.MediaTypeImageManifest, k.d(missing)),
			refused("a config that is not there", k.image(missing, nil), v1.MediaTypeImageManifest, k.d(missing)),
			refused("a child that is not there", k.index([]v1.Descriptor{k.platform("amd64", m)}), v1.MediaTypeImageIndex, k.d(m)),
			refused("a wrong size", image(func(m *v1.Manifest) { m.Layers[0].Size++ }), v1.MediaTypeImageManifest, "MANIFEST_INVALID"),
			refused("a negative size", image(func(m *v1.Manifest) { m.Layers[0].Size = -1 }), v1.MediaTypeImageManifest, "MANIFEST_INVALID"),
			refused("a digest that is none", image(func(m *v1.Manifest) { m.Layers[0].Digest = "x" }), v1.MediaTypeImageManifest, "MANIFEST_INVALID"),
			refused("data of something else", image(func(m *v1.Manifest) { m.Layers[0].Data = missing }), v1.MediaTypeImageManifest, "MANIFEST_INVALID"),
			refused("two types", m, dockerImage, "MANIFEST_INVALID"),
			refused("another schema", image(func(m *v1.Manifest) { m.SchemaVersion = 3 }), v1.MediaTypeImageManifest, "MANIFEST_INVALID"),
			refused("a list", []byte("[]"), v1.MediaTypeImageManifest, "it is not a JSON object"),
			refused("a size that is text", []byte(`{"schemaVersion":2,"config":{"size":"1"}}`), v1.MediaTypeImageManifest, `\"config.size\" can't be a JSON string`),
			refused("no JSON", []byte("<html>"), v1.MediaTypeImageManifest, "MANIFEST_INVALID"),
			refused("nothing", nil, v1.MediaTypeImageManifest, "MANIFEST_INVALID"),
			refused("a type that is none", m, "a/b/c", "MANIFEST_INVALID"),
			refused("an index with layers", []byte(`{"schemaVersion":2,"manifests":[],"layers":[]}`), v1.MediaTypeImageIndex, "MANIFEST_INVALID"),
			refused("Docker schema 1", []byte(`{"schemaVersion":1,"fsLayers":[]}`), "application/vnd.docker.distribution.manifest.v1+prettyjws", "Docker schema 1 is too old"),
			refused("Docker schema 1 that does not say so", []byte(`{"schemaVersion":1,"fsLayers":[]}`), "", "Docker schema 1 is too old"),
			exchange{name: "nothing of all this is there", do: "GET " + k.at("tags/list"), code: 404, text: "NAME_UNKNOWN"},
			exchange{name: "too large", do: "PUT " + k.at("manifests/1"), body: slices.Concat(m, []byte(strings.Repeat(" ", 4<<20))), header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 413, text: "SIZE_INVALID"},
			exchange{name: "too large, and nobody says so", do: "PUT " + k.at("manifests/1"), stream: true, body: slices.Concat(m, []byte(strings.Repeat(" ", 4<<20))), header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 413, text: "SIZE_INVALID"},
			k.put("the largest", slices.Concat(m, []byte(strings.Repeat(" ", 4<<20-len(m)))), "large"),
			exchange{name: "blobs of another project are not here", do: "PUT /v2/" + k.shut + "/manifests/1", body: m, header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 400, text: "MANIFEST_BLOB_UNKNOWN"},
			exchange{name: "blobs of the project, of a wrong size", do: "PUT /v2/" + k.other + "/manifests/1", body: image(func(m *v1.Manifest) { m.Layers[0].Size++ }), header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 400, text: "MANIFEST_INVALID"},
			exchange{name: "blobs of the project are", do: "PUT /v2/" + k.other + "/manifests/1", body: m, header: []string{"Content-Type", v1.MediaTypeImageManifest}, code: 201},
			exchange{name: "and become the repository's", do: "GET /v2/" + k.other + "/blobs/" + k.d(layer), code: 200, exact: whole(layer)},
		))
	}},
	{name: "artifacts", rows: func(k *kit) []exchange {
		config, layer := []byte("{}"), k.bytes("layer", 100)
		odd := k.bytes("odd", 100)
		untyped := k.image(config, [][]byte{layer}, func(m *v1.Manifest) { m.Config.MediaType = v1.MediaTypeEmptyJSON })
		put := func(name string, body []byte, mediaType, warning string) exchange {
			return exchange{name: name, do: "PUT " + k.at("manifests/1"), body: body, header: []string{"Content-Type", mediaType}, code: 201, want: []string{"Warning", warning}}
		}
		old := fmt.Appendf(nil, `{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","artifactType":"x/y","blobs":[%s]}`, marshal(k.descriptor("x/y", layer)))
		elsewhere := k.image(config, nil, artifact("application/vnd.example.one"), func(m *v1.Manifest) {
			d := k.descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", odd)
			d.URLs = []string{"https://store.example.com/1"}
			m.Layers = append(m.Layers, d)
		})
		return slices.Concat(k.given(config, layer), rows(
			put("of a type that nobody knows", odd, "application/vnd.example.odd", ""),
			put("of a type that a browser would show", []byte("<html>"), "text/html", ""),
			exchange{name: "is no page of this host", do: "GET " + k.at("manifests/1"), code: 200, exact: whole([]byte("<html>")),
				want: []string{"Content-Type", "text/html", "X-Content-Type-Options", "nosniff", "Content-Security-Policy", "default-src 'none'; sandbox"}},
			exchange{name: "and neither is a blob", do: "GET " + k.blob(layer), code: 200,
				want: []string{"Content-Type", "application/octet-stream", "X-Content-Type-Options", "nosniff", "Content-Security-Policy", "default-src 'none'; sandbox"}},
			put("of a type that nobody knows, again", odd, "application/vnd.example.odd", ""),
			exchange{name: "is as it was", do: "GET " + k.at("manifests/1"), code: 200, exact: whole(odd), want: []string{"Content-Type", "application/vnd.example.odd"}},
			put("the empty config and no type", untyped, v1.MediaTypeImageManifest, `299 - "a manifest with the empty config should have an artifactType*`),
			put("what OCI took back", old, "application/vnd.oci.artifact.manifest.v1+json", `299 - "application/vnd.oci.artifact.manifest.v1+json is not in the image specification any more*`),
			put("layers that are elsewhere", elsewhere, v1.MediaTypeImageManifest, `299 - "layers that may not be distributed*`),
		))
	}},
	{name: "old clients", rows: func(k *kit) []exchange {
		config, layer := k.bytes("config", 64), k.bytes("layer", 100)
		oci, dock := k.image(config, [][]byte{layer}), k.image(config, [][]byte{layer}, docker)
		arm, armDock := k.image(config, nil), k.image(config, nil, docker)
		index := k.index([]v1.Descriptor{k.platform("arm64", arm), k.platform("amd64", oci)})
		list := k.index([]v1.Descriptor{k.platform("arm64", armDock), k.platform("amd64", dock)}, func(m *v1.Index) { m.MediaType = dockerList })
		mixed := k.index([]v1.Descriptor{k.platform("amd64", oci), k.platform("amd64", dock)})
		arms := k.index([]v1.Descriptor{k.platform("arm64", arm)})
		get := func(name, ref string, want []byte, accept ...string) []exchange {
			var header []string
			for _, a := range accept {
				header = append(header, "Accept", a)
			}
			warning := ""
			if ref[0] >= 'a' && !strings.Contains(ref, ":") && (k.d(want) == k.d(oci) || k.d(want) == k.d(dock)) {
				warning = `299 - "` + ref + " names an index, which this client does not accept*"
			}
			headers := []string{"Docker-Content-Digest", k.d(want), "Etag", `"` + k.d(want) + `"`, "Content-Length", fmt.Sprint(len(want)), "Warning", warning}
			at := k.at("manifests/" + ref)
			return rows(exchange{name: name, do: "GET " + at, header: header, code: 200, exact: whole(want), want: headers},
				exchange{name: name + ", head", do: "HEAD " + at, header: header, code: 200, want: headers})
		}
		image := v1.MediaTypeImageManifest
		return slices.Concat(k.given(config, layer), rows(
			k.put("image", oci), k.put("image", dock), k.put("image", arm), k.put("image", armDock),
			k.put("index", index, "index"), k.put("list", list, "list"), k.put("mixed", mixed, "mixed"), k.put("no amd64", arms, "arms"),
		),
			get("no Accept", "index", index),
			get("anything", "index", index, "*/*"),
			get("any application", "list", list, "application/*"),
			get("indexes too", "index", index, image+", "+v1.MediaTypeImageIndex),
			get("indexes too, on lines of their own", "list", list, dockerImage, dockerList),
			get("indexes too, with parameters", "index", index, image+";q=0.5,"+v1.MediaTypeImageIndex+"; q=0.1"),
			get("images alone", "index", oci, image),
			get("images of both kinds", "index", oci, dockerImage, image),
			get("images, and no indexes", "index", oci, image+", "+v1.MediaTypeImageIndex+";q=0"),
			get("Docker images alone", "list", dock, dockerImage),
			get("Docker images alone, where there are both", "mixed", dock, dockerImage),
			get("images, where there are both", "mixed", oci, image),
			get("images of the other kind", "index", index, dockerImage),
			get("no image for that platform", "arms", arms, image),
			get("nothing that can be had", "index", index, "text/html"),
			get("by digest", k.d(index), index, image),
			get("by digest, Docker", k.d(list), list, dockerImage),
			rows(exchange{name: "has it", do: "GET " + k.at("manifests/index"), header: []string{"Accept", image, "If-None-Match", `"` + k.d(oci) + `"`}, code: 304},
				exchange{name: "has the index", do: "GET " + k.at("manifests/index"), header: []string{"Accept", image, "If-None-Match", `"` + k.d(index) + `"`}, code: 200, exact: whole(oci)}))
	}},
}
