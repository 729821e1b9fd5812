package oracle

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// request is asked of both.
type request struct {
	name   string
	method string
	path   string // {name} stands for a Location that was saved
	query  string // is added to the path, which may have one already
	header []string
	body   []byte
	save   string
}

func d(b []byte) string { return digest.FromBytes(b).String() }

func desc(mediaType string, b []byte, more string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, mediaType, d(b), len(b), more)
}

func image(mediaType string, config []byte, more string, layers ...[]byte) []byte {
	var list []string
	for _, l := range layers {
		list = append(list, desc(v1.MediaTypeImageLayerGzip, l, ""))
	}
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]%s}`, mediaType, desc(v1.MediaTypeImageConfig, config, ""), strings.Join(list, ","), more)
}

const (
	dockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList  = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// requests is a life of two repositories: the ground of the specification, and
// the corners where implementations part.
func requests() []request {
	const repo, other = "/v2/prod/app", "/v2/prod/other"
	config, layer, big, none := []byte(`{"os":"linux"}`), []byte("a layer"), []byte(strings.Repeat("0123456789abcdef", 8192)), []byte("nowhere")
	img, dimg := image(v1.MediaTypeImageManifest, config, "", layer, big), image(dockerImage, config, "", layer)
	ref := image(v1.MediaTypeImageManifest, config, `,"subject":`+desc(v1.MediaTypeImageManifest, img, ""))
	amd64 := `,"platform":{"os":"linux","architecture":"amd64"}`
	idx := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, v1.MediaTypeImageIndex, desc(v1.MediaTypeImageManifest, img, amd64))
	list := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, dockerList, desc(dockerImage, dimg, amd64))
	all := []string{"Accept", v1.MediaTypeImageManifest, "Accept", v1.MediaTypeImageIndex, "Accept", dockerImage, "Accept", dockerList}
	typed := func(mediaType string) []string { return []string{"Content-Type", mediaType} }
	blob, manifest := repo+"/blobs/", repo+"/manifests/"
	rs := []request{
		{name: "base", method: "GET", path: "/v2/"},
		{name: "base without a slash", method: "GET", path: "/v2"},
		{name: "base, wrong method", method: "PUT", path: "/v2/"},
		{name: "no such end", method: "GET", path: repo + "/nothing"},
		{name: "name in upper case", method: "GET", path: "/v2/prod/App/tags/list"},
		{name: "tags of nothing", method: "GET", path: repo + "/tags/list"},
		{name: "tags of no project", method: "GET", path: "/v2/nothere/app/tags/list"},
		{name: "blob unknown", method: "GET", path: blob + d(none)},
		{name: "blob unknown, head", method: "HEAD", path: blob + d(none)},
		{name: "blob by no digest", method: "GET", path: blob + "sha256:12"},
		{name: "manifest unknown", method: "GET", path: manifest + d(none), header: all},
		{name: "tag unknown", method: "GET", path: manifest + "nothing", header: all},
		{name: "manifest by no digest", method: "GET", path: manifest + "sha256:12", header: all},
		{name: "tag that is none", method: "GET", path: manifest + ".x", header: all},
	}
	for i, b := range [][]byte{config, layer, big, {}} {
		name := fmt.Sprint("blob ", i)
		rs = append(rs,
			request{name: name + ", post", method: "POST", path: repo + "/blobs/uploads/", save: "up"},
			request{name: name + ", put", method: "PUT", path: "{up}", query: "digest=" + d(b), body: b, header: typed("application/octet-stream")},
			request{name: name + ", get", method: "GET", path: blob + d(b)},
			request{name: name + ", head", method: "HEAD", path: blob + d(b)},
		)
	}
	for _, spec := range []string{"bytes=14-17", "bytes=131070-", "bytes=-3", "bytes=0-1,4-5", "bytes=200000-", "bytes=5-1", "bytes=x", "bytes=0-0"} {
		rs = append(rs, request{name: "range " + spec, method: "GET", path: blob + d(big), header: []string{"Range", spec}})
	}
	rs = append(rs,
		request{name: "blob, not changed", method: "GET", path: blob + d(big), header: []string{"If-None-Match", `"` + d(big) + `"`}},
		request{name: "blob, changed", method: "GET", path: blob + d(layer), header: []string{"If-None-Match", `"other"`}},
		request{name: "blob, if range", method: "GET", path: blob + d(big), header: []string{"Range", "bytes=0-3", "If-Range", `"other"`}},
		request{name: "blob, wrong method", method: "PUT", path: blob + d(big)},

		request{name: "chunks, post", method: "POST", path: repo + "/blobs/uploads/", save: "up"},
		request{name: "chunks, status of nothing", method: "GET", path: "{up}"},
		request{name: "chunks, first", method: "PATCH", path: "{up}", body: big[:1000], header: []string{"Content-Range", "0-999", "Content-Type", "application/octet-stream"}, save: "up"},
		request{name: "chunks, status", method: "GET", path: "{up}", save: "up"},
		request{name: "chunks, out of order", method: "PATCH", path: "{up}", body: big[2000:3000], header: []string{"Content-Range", "2000-2999"}},
		request{name: "chunks, range that is none", method: "PATCH", path: "{up}", body: big[1000:2000], header: []string{"Content-Range", "x"}},
		request{name: "chunks, range of another length", method: "PATCH", path: "{up}", body: big[1000:2000], header: []string{"Content-Range", "1000-9999"}},
		request{name: "chunks, second", method: "PATCH", path: "{up}", body: big[1000:2000], header: []string{"Content-Range", "1000-1999"}, save: "up"},
		request{name: "chunks, end without a digest", method: "PUT", path: "{up}"},
		request{name: "chunks, end", method: "PUT", path: "{up}", query: "digest=" + d(big[:3000]), body: big[2000:3000], header: []string{"Content-Range", "2000-2999"}},
		request{name: "chunks, status after the end", method: "GET", path: "{up}"},
		request{name: "cancel, post", method: "POST", path: repo + "/blobs/uploads/", save: "up"},
		request{name: "cancel", method: "DELETE", path: "{up}"},
		request{name: "cancel again", method: "DELETE", path: "{up}"},
		request{name: "wrong digest, post", method: "POST", path: repo + "/blobs/uploads/", save: "up"},
		request{name: "wrong digest", method: "PUT", path: "{up}", query: "digest=" + d(none), body: big[:10]},
		request{name: "upload that never was", method: "GET", path: repo + "/blobs/uploads/00000000-0000-0000-0000-000000000000"},
		request{name: "post with a digest", method: "POST", path: repo + "/blobs/uploads/", query: "digest=" + d(big[:7]), body: big[:7]},

		request{name: "mount", method: "POST", path: other + "/blobs/uploads/", query: "mount=" + d(layer) + "&from=prod/app"},
		request{name: "mounted", method: "GET", path: other + "/blobs/" + d(layer)},
		request{name: "mount of nothing", method: "POST", path: other + "/blobs/uploads/", query: "mount=" + d(none) + "&from=prod/app"},
		request{name: "mount without from", method: "POST", path: "/v2/prod/third/blobs/uploads/", query: "mount=" + d(layer)},

		request{name: "manifest of missing blobs", method: "PUT", path: manifest + "1", body: image(v1.MediaTypeImageManifest, config, "", none), header: typed(v1.MediaTypeImageManifest)},
		request{name: "manifest", method: "PUT", path: manifest + "1", body: img, header: typed(v1.MediaTypeImageManifest)},
		request{name: "Docker manifest", method: "PUT", path: manifest + "docker", body: dimg, header: typed(dockerImage)},
		request{name: "index", method: "PUT", path: manifest + "index", body: idx, header: typed(v1.MediaTypeImageIndex)},
		request{name: "Docker list", method: "PUT", path: manifest + "list", body: list, header: typed(dockerList)},
		request{name: "manifest by digest", method: "PUT", path: manifest + d(img), body: img, header: typed(v1.MediaTypeImageManifest)},
		request{name: "manifest by another digest", method: "PUT", path: manifest + d(none), body: img, header: typed(v1.MediaTypeImageManifest)},
		request{name: "manifest without a type", method: "PUT", path: manifest + "untyped", body: img},
		request{name: "manifest of a wrong type", method: "PUT", path: manifest + "wrong", body: img, header: typed(dockerImage)},
		request{name: "manifest that is no JSON", method: "PUT", path: manifest + "wrong", body: []byte("<html>"), header: typed(v1.MediaTypeImageManifest)},
		request{name: "manifest of an unknown type", method: "PUT", path: manifest + "odd", body: []byte("x"), header: typed("application/vnd.example.odd")},
		request{name: "manifest under a tag that is none", method: "PUT", path: manifest + ".x", body: img, header: typed(v1.MediaTypeImageManifest)},
		request{name: "manifest that is too large", method: "PUT", path: manifest + "large", body: []byte(string(img) + strings.Repeat(" ", 4<<20)), header: typed(v1.MediaTypeImageManifest)},
		request{name: "manifest with a subject", method: "PUT", path: manifest + d(ref), body: ref, header: typed(v1.MediaTypeImageManifest)},
		request{name: "manifest by digest with tags", method: "PUT", path: manifest + d(img), query: "tag=t1&tag=t2", body: img, header: typed(v1.MediaTypeImageManifest)},
		request{name: "referrers", method: "GET", path: repo + "/referrers/" + d(img)},
	)
	for _, tag := range []struct {
		name string
		body []byte
	}{{"1", img}, {"docker", dimg}, {"index", idx}, {"list", list}} {
		for _, at := range []string{tag.name, d(tag.body)} {
			rs = append(rs,
				request{name: "get " + tag.name, method: "GET", path: manifest + at, header: all},
				request{name: "head " + tag.name, method: "HEAD", path: manifest + at, header: all},
				request{name: "get " + tag.name + ", no Accept", method: "GET", path: manifest + at},
				request{name: "get " + tag.name + ", Docker images alone", method: "GET", path: manifest + at, header: []string{"Accept", dockerImage}},
				request{name: "get " + tag.name + ", OCI images alone", method: "GET", path: manifest + at, header: []string{"Accept", v1.MediaTypeImageManifest}},
				request{name: "get " + tag.name + ", not changed", method: "GET", path: manifest + at, header: append([]string{"If-None-Match", `"` + d(tag.body) + `"`}, all...)},
			)
		}
	}
	rs = append(rs, request{name: "get a part of a manifest", method: "GET", path: manifest + "1", header: append([]string{"Range", "bytes=0-9"}, all...)})
	for _, query := range []string{"", "n=2", "n=2&last=docker", "n=2&last=list", "last=index", "n=0", "n=-1", "n=x", "n=100000", "last=zzz"} {
		rs = append(rs, request{name: "tags " + query, method: "GET", path: repo + "/tags/list", query: query})
	}
	for _, query := range []string{"", "n=1", "n=1&last=prod/app", "n=0", "n=-1", "n=x", "n=100000", "last=zzz"} {
		rs = append(rs, request{name: "catalog " + query, method: "GET", path: "/v2/_catalog", query: query})
	}
	return append(rs,
		request{name: "delete a tag", method: "DELETE", path: manifest + "docker"},
		request{name: "delete it again", method: "DELETE", path: manifest + "docker"},
		request{name: "its manifest is there", method: "GET", path: manifest + d(dimg), header: all},
		request{name: "delete a blob that is needed", method: "DELETE", path: blob + d(big)},
		request{name: "delete a blob", method: "DELETE", path: blob + d(big[:3000])},
		request{name: "it is gone", method: "GET", path: blob + d(big[:3000])},
		request{name: "delete a blob again", method: "DELETE", path: blob + d(big[:3000])},
		request{name: "delete a manifest", method: "DELETE", path: manifest + d(img)},
		request{name: "it is gone, by tag", method: "GET", path: manifest + "1", header: all},
		request{name: "delete a manifest again", method: "DELETE", path: manifest + d(img)},
		request{name: "the index that names it", method: "GET", path: manifest + "index", header: all},
	)
}
