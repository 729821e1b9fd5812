package oci

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const privateForGood = "private, max-age=31536000, immutable"

var baseScenarios = []scenario{
	{name: "base", covers: []string{"ping"}, rows: func(k *kit) []exchange {
		return rows(
			exchange{name: "who are you", as: "-", do: "GET /v2/", code: 401, text: "UNAUTHORIZED",
				want: []string{"Www-Authenticate", `Bearer realm="` + k.url + `/service/token",service="portolan"`, "Cache-Control", "no-store"}},
			exchange{name: "base", do: "GET /v2/", code: 200, text: "{}"},
			exchange{name: "base, head", do: "HEAD /v2/", code: 200},
			exchange{name: "base without a slash", do: "GET /v2", code: 200},
			exchange{name: "wrong method", do: "DELETE /v2/", code: 405, want: []string{"Allow", "GET, HEAD"}, text: "UNSUPPORTED"},
			exchange{name: "no such end", do: "GET " + k.at("things/1"), code: 404, text: "UNSUPPORTED"},
			exchange{name: "a name in upper case", do: "GET /v2/conf/UPPER/tags/list", code: 400, text: "NAME_INVALID"},
		)
	}},
	{name: "empty repository", covers: []string{"empty/tag list", "empty/referrers", "missing-manifest/by-digest", "missing-manifest/by-tag"}, rows: func(k *kit) []exchange {
		nothing := k.bytes("nothing", 10)
		return rows(
			exchange{name: "tags", do: "GET " + k.at("tags/list"), code: 404, text: "NAME_UNKNOWN"},
			exchange{name: "referrers", do: "GET " + k.at("referrers/"+k.d(nothing)), code: 200, text: `"manifests":[]`, want: []string{"Content-Type", v1.MediaTypeImageIndex}},
			exchange{name: "a manifest by digest", do: "GET " + k.manifest(nothing), code: 404, text: "MANIFEST_UNKNOWN"},
			exchange{name: "a manifest by tag", do: "GET " + k.at("manifests/missing"), code: 404, text: "MANIFEST_UNKNOWN"},
			exchange{name: "its head", do: "HEAD " + k.at("manifests/missing"), code: 404},
			exchange{name: "its deletion", do: "DELETE " + k.at("manifests/missing"), code: 404, text: "MANIFEST_UNKNOWN"},
		)
	}},
}

var blobScenarios = []scenario{
	{name: "blob", covers: []string{"blobs/get-missing", "blobs/empty", "blobs/emptyJSON"}, rows: func(k *kit) []exchange {
		b, empty, object := k.bytes("b", 512), []byte{}, []byte("{}")
		out := rows(
			exchange{name: "unknown", do: "GET " + k.blob(b), code: 404, text: "BLOB_UNKNOWN"},
			exchange{name: "head of unknown", do: "HEAD " + k.blob(b), code: 404},
			exchange{name: "delete of unknown", do: "DELETE " + k.blob(b), code: 404, text: "BLOB_UNKNOWN"},
			exchange{name: "no digest", do: "GET " + k.at("blobs/"+k.alg.String()+":12"), code: 400, text: "DIGEST_INVALID"},
			exchange{name: "no algorithm that is known", do: "GET " + k.at("blobs/md5:d41d8cd98f00b204e9800998ecf8427e"), code: 400, text: "DIGEST_INVALID"},
		)
		for _, content := range [][]byte{b, empty, object} {
			out = append(out, k.given(content)...)
			out = append(out,
				exchange{name: "get", do: "GET " + k.blob(content), code: 200, exact: whole(content), want: []string{
					"Docker-Content-Digest", k.d(content), "Content-Length", fmt.Sprint(len(content)), "Content-Type", "application/octet-stream",
					"Etag", `"` + k.d(content) + `"`, "Accept-Ranges", "bytes", "Cache-Control", privateForGood}},
				exchange{name: "head", do: "HEAD " + k.blob(content), code: 200, want: []string{
					"Docker-Content-Digest", k.d(content), "Content-Length", fmt.Sprint(len(content)), "Accept-Ranges", "bytes", "Etag", `"` + k.d(content) + `"`}},
				exchange{name: "delete", do: "DELETE " + k.blob(content), code: 202},
				exchange{name: "is gone", do: "HEAD " + k.blob(content), code: 404},
				exchange{name: "delete again", do: "DELETE " + k.blob(content), code: 404, text: "BLOB_UNKNOWN"},
			)
		}
		return out
	}},
	{name: "ranges", covers: []string{"blobs/range requests"}, rows: func(k *kit) []exchange {
		var out []exchange
		// One that is a row of the catalogue and one that is a file.
		for _, size := range []int{2048, 200_000} {
			b := k.bytes("ranged", size)
			etag, of := `"`+k.d(b)+`"`, fmt.Sprintf("/%d", size)
			get := func(name, spec string, code int, part []byte, want ...string) exchange {
				e := exchange{name: name, do: "GET " + k.blob(b), header: []string{"Range", spec}, code: code, want: want}
				if part != nil {
					e.exact = whole(part)
				}
				return e
			}
			out = append(out, k.given(b)...)
			out = append(out,
				get("from and to", "bytes=500-1499", 206, b[500:1500], "Content-Range", "bytes 500-1499"+of, "Content-Length", "1000", "Docker-Content-Digest", k.d(b)),
				get("from", "bytes=500-", 206, b[500:], "Content-Range", fmt.Sprintf("bytes 500-%d%s", size-1, of), "Content-Length", fmt.Sprint(size-500)),
				get("the end", "bytes=-500", 206, b[size-500:], "Content-Range", fmt.Sprintf("bytes %d-%d%s", size-500, size-1, of), "Content-Length", "500"),
				get("beyond the end", fmt.Sprintf("bytes=%d-999999", size-48), 206, b[size-48:], "Content-Range", fmt.Sprintf("bytes %d-%d%s", size-48, size-1, of)),
				get("all and more of the end", "bytes=-999999", 206, b, "Content-Range", fmt.Sprintf("bytes 0-%d%s", size-1, of)),
				get("backwards", "bytes=500-0", 416, nil, "Content-Range", ""),
				get("behind the end", "bytes=500000-600000", 416, nil, "Content-Range", "bytes */"+fmt.Sprint(size)),
				get("no range", "bytes=a-b", 416, nil),
				exchange{name: "two", do: "GET " + k.blob(b), header: []string{"Range", "bytes=0-1,10-12"}, code: 206, want: []string{"Content-Type", "multipart/byteranges; boundary=*"}, text: "Content-Range: bytes 10-12" + of},
				get("more than there is, in pieces", "bytes=0-,0-,0-", 200, b),
				exchange{name: "if it is the same", do: "GET " + k.blob(b), header: []string{"Range", "bytes=0-9", "If-Range", etag}, code: 206, exact: whole(b[:10])},
				exchange{name: "if it is another", do: "GET " + k.blob(b), header: []string{"Range", "bytes=0-9", "If-Range", `"other"`}, code: 200, exact: whole(b)},
				exchange{name: "head takes no range", do: "HEAD " + k.blob(b), header: []string{"Range", "bytes=0-9"}, code: 200, want: []string{"Content-Length", fmt.Sprint(size)}},
			)
		}
		return out
	}},
	{name: "conditions", rows: func(k *kit) []exchange {
		b := k.bytes("b", 512)
		config := k.bytes("config", 64)
		m := k.image(config, nil)
		out := slices.Concat(k.given(b, config), rows(k.put("manifest", m, "1")))
		for _, at := range []struct{ path, digest string }{{k.blob(b), k.d(b)}, {k.manifest(m), k.d(m)}, {k.at("manifests/1"), k.d(m)}} {
			for _, method := range []string{"GET ", "HEAD "} {
				for header, code := range map[string]int{
					`"` + at.digest + `"`: 304, `W/"` + at.digest + `"`: 304, at.digest: 304, "*": 304,
					`"other", "` + at.digest + `"`: 304, `"other"`: 200,
				} {
					e := exchange{name: "if none match " + header, do: method + at.path, header: []string{"If-None-Match", header}, code: code, want: []string{"Docker-Content-Digest", at.digest, "Etag", `"` + at.digest + `"`}}
					if code == 304 {
						e.exact = whole(nil)
					}
					out = append(out, e)
				}
			}
		}
		return append(out,
			exchange{name: "if match", do: "GET " + k.blob(b), header: []string{"If-Match", `"` + k.d(b) + `"`}, code: 200, exact: whole(b)},
			exchange{name: "if another matches", do: "GET " + k.blob(b), header: []string{"If-Match", `"other"`}, code: 412},
			exchange{name: "two headers", do: "GET " + k.blob(b), header: []string{"If-None-Match", `"other"`, "If-None-Match", `"` + k.d(b) + `"`}, code: 304},
		)
	}},
	{name: "mounts", covers: []string{"blobs/mount", "blobs/mount anonymous", "blobs/mount missing"}, rows: func(k *kit) []exchange {
		b, none := k.bytes("b", 512), k.bytes("none", 512)
		mount := func(name, to, query string, code int) exchange {
			e := exchange{name: name, do: "POST /v2/" + to + "/blobs/uploads/?mount=" + query, code: code}
			if code == 201 {
				e.want = []string{"Location", "/v2/" + to + "/blobs/" + k.d(b), "Docker-Content-Digest", k.d(b)}
			} else {
				e.want = []string{"Location", "/v2/" + to + "/blobs/uploads/*", "Range", "0-0"}
			}
			return e
		}
		in := func(repo string) string { return "/v2/" + repo + "/blobs/" + k.d(b) }
		return slices.Concat(k.givenIn(k.other, b), rows(
			mount("from another repository", k.repo, k.d(b)+"&from="+k.other, 201),
			exchange{name: "it is there", do: "GET " + in(k.repo), code: 200, exact: whole(b)},
			exchange{name: "deleted here", do: "DELETE " + in(k.repo), code: 202},
			exchange{name: "it is gone here", do: "HEAD " + in(k.repo), code: 404},
			exchange{name: "it is not gone there", do: "HEAD " + in(k.other), code: 200},
			mount("from wherever it is in the project", k.repo, k.d(b), 201),
			exchange{name: "it is there again", do: "HEAD " + in(k.repo), code: 200},
			exchange{name: "deleted there", do: "DELETE " + in(k.other), code: 202},
			exchange{name: "it is gone there", do: "HEAD " + in(k.other), code: 404},
			exchange{name: "it is not gone here", do: "GET " + in(k.repo), code: 200, exact: whole(b)},
			mount("from a repository that has it no more", k.other, k.d(b)+"&from="+k.other+"/x", 202),
			mount("into another project, from wherever", k.shut+"/x", k.d(b), 202),
			mount("into another project", k.shut, k.d(b)+"&from="+k.repo, 201),
			mount("what is nowhere", k.repo, k.d(none)+"&from="+k.other, 202),
			mount("from no project", k.repo, k.d(none)+"&from=nothere/app", 202),
			exchange{name: "by somebody who may not push", as: "guest", do: "POST " + k.at("blobs/uploads/?mount="+k.d(b)+"&from="+k.repo), code: 403, text: "DENIED"},
			exchange{name: "no digest", do: "POST " + k.at("blobs/uploads/?mount=x&from="+k.other), code: 400, text: "DIGEST_INVALID"},
			exchange{name: "from no name", do: "POST " + k.at("blobs/uploads/?mount="+k.d(b)+"&from=No/Name"), code: 400, text: "NAME_INVALID"},
			exchange{name: "and then the upload", do: "POST " + k.at("blobs/uploads/?mount="+k.d(none)+"&from="+k.other), code: 202, save: "up"},
			exchange{name: "its end", do: "PUT {up}?digest=" + k.d(none), body: none, code: 201},
		))
	}},
}

var uploadScenarios = []scenario{
	{name: "uploads in one piece", covers: []string{"blobs/post only", "blobs/post+put", "blobs/stream"}, rows: func(k *kit) []exchange {
		var out []exchange
		back := func(b []byte) []exchange {
			return rows(exchange{name: "it is there", do: "GET " + k.blob(b), code: 200, exact: whole(b)})
		}
		done := []string{"Content-Length", "0", "Docker-Content-Digest", "*", "Location", "/v2/" + k.repo + "/blobs/" + k.alg.String() + ":*"}
		for _, size := range []int{1, 512, 200_000} {
			a, b, c, d := k.bytes("a", size), k.bytes("b", size), k.bytes("c", size), k.bytes("d", size)
			out = slices.Concat(out, rows(
				exchange{name: "post", do: "POST " + k.at("blobs/uploads/?digest="+k.d(a)), body: a, code: 201, want: done},
			), back(a), rows(
				exchange{name: "post of what is there", do: "POST " + k.at("blobs/uploads/?digest="+k.d(a)), body: a, code: 201, want: done},
				exchange{name: "post, then", do: "POST " + k.at("blobs/uploads/"), code: 202, save: "up", want: []string{"Location", "/v2/" + k.repo + "/blobs/uploads/*", "Range", "0-0", "Docker-Upload-Uuid", "*", "Oci-Chunk-Min-Length", ""}},
				exchange{name: "put", do: "PUT {up}?digest=" + k.d(b), body: b, header: []string{"Content-Type", "application/octet-stream"}, code: 201, want: done},
			), back(b), rows(
				exchange{name: "post without a slash, then", do: "POST " + k.at("blobs/uploads"), code: 202, save: "up"},
				exchange{name: "stream, then", do: "PATCH {up}", body: c, stream: true, code: 202, save: "up", want: []string{"Range", fmt.Sprintf("0-%d", size-1)}},
				exchange{name: "put of nothing", do: "PUT {up}?digest=" + k.d(c), code: 201, want: done},
			), back(c), rows(
				exchange{name: "post, then with the algorithm", do: "POST " + k.at("blobs/uploads/?digest-algorithm="+k.alg.String()), code: 202, save: "up"},
				exchange{name: "put of a stream", do: "PUT {up}?digest=" + k.d(d), body: d, stream: true, code: 201, want: done},
			), back(d))
		}
		return out
	}},
	{name: "uploads in chunks", covers: []string{"blobs/chunked single", "blobs/chunked multi", "blobs/chunked multi and put chunk", "blobs/chunked out-of-order", "blobs/chunked out-of-order and put chunk"}, rows: func(k *kit) []exchange {
		b := k.bytes("b", 3000)
		begin := exchange{name: "post", do: "POST " + k.at("blobs/uploads/"), code: 202, save: "up"}
		patch := func(name string, from, to int, code int, have string) exchange {
			e := exchange{name: name, do: "PATCH {up}", body: b[from : to+1], header: []string{"Content-Range", fmt.Sprintf("%d-%d", from, to), "Content-Type", "application/octet-stream"}, code: code,
				want: []string{"Range", have, "Location", "/v2/" + k.repo + "/blobs/uploads/*"}}
			if code == 416 {
				e.text = "RANGE_INVALID"
			}
			return e
		}
		status := func(have string) exchange {
			return exchange{name: "status", do: "GET {up}", code: 204, want: []string{"Range", have, "Location", "/v2/" + k.repo + "/blobs/uploads/*", "Docker-Upload-Uuid", "*"}}
		}
		end := func(name string, from int, code int) exchange {
			e := exchange{name: name, do: "PUT {up}?digest=" + k.d(b), code: code}
			if from < len(b) {
				e.body, e.header = b[from:], []string{"Content-Range", fmt.Sprintf("%d-%d", from, len(b)-1)}
			}
			return e
		}
		back := exchange{name: "it is there", do: "GET " + k.blob(b), code: 200, exact: whole(b)}
		gone := exchange{name: "deleted", do: "DELETE " + k.blob(b), code: 202}
		return rows(
			begin, status("0-0"), patch("all", 0, 2999, 202, "0-2999"), end("end", 3000, 201), back, gone,
			begin, patch("first", 0, 999, 202, "0-999"), patch("second", 1000, 1999, 202, "0-1999"), patch("third", 2000, 2999, 202, "0-2999"), status("0-2999"), end("end", 3000, 201), back, gone,
			begin, patch("first", 0, 999, 202, "0-999"), patch("second", 1000, 1999, 202, "0-1999"), end("the last with the end", 2000, 201), back, gone,
			begin, patch("the second first", 1000, 1999, 416, "0-0"), patch("first", 0, 999, 202, "0-999"), patch("the third", 2000, 2999, 416, "0-999"), patch("the first again", 0, 999, 416, "0-999"),
			status("0-999"), patch("second", 1000, 1999, 202, "0-1999"), patch("third", 2000, 2999, 202, "0-2999"), end("end", 3000, 201), back, gone,
			begin, patch("first", 0, 999, 202, "0-999"), end("the last too early", 2000, 416), status("0-999"), patch("second", 1000, 1999, 202, "0-1999"), end("the last", 2000, 201), back, gone,
			begin, patch("first", 0, 999, 202, "0-999"),
			exchange{name: "HTTP's own form", do: "PATCH {up}", body: b[1000:], header: []string{"Content-Range", "bytes 1000-2999/3000"}, code: 202, want: []string{"Range", "0-2999"}},
			end("end", 3000, 201), back, gone,
			begin,
			exchange{name: "a range that is none", do: "PATCH {up}", body: b, header: []string{"Content-Range", "x"}, code: 416, text: "RANGE_INVALID"},
			exchange{name: "a range that is longer than the body", do: "PATCH {up}", body: b, header: []string{"Content-Range", "0-9999"}, code: 400, text: "SIZE_INVALID"},
			status("0-0"),
		)
	}},
	{name: "uploads that end", covers: []string{"blobs/post cancel"}, rows: func(k *kit) []exchange {
		b := k.bytes("b", 100)
		return rows(
			exchange{name: "post", do: "POST " + k.at("blobs/uploads/"), code: 202, save: "up"},
			exchange{name: "some", do: "PATCH {up}", body: b, code: 202},
			exchange{name: "no digest", do: "PUT {up}", code: 400, text: "DIGEST_INVALID"},
			exchange{name: "by somebody who may not push", as: "guest", do: "DELETE {up}", code: 403},
			exchange{name: "cancel", do: "DELETE {up}", code: 204},
			exchange{name: "cancel again", do: "DELETE {up}", code: 404, text: "BLOB_UPLOAD_UNKNOWN"},
			exchange{name: "status", do: "GET {up}", code: 404, text: "BLOB_UPLOAD_UNKNOWN"},
			exchange{name: "more", do: "PATCH {up}", body: b, code: 404, text: "BLOB_UPLOAD_UNKNOWN"},
			exchange{name: "end", do: "PUT {up}?digest=" + k.d(b), code: 404, text: "BLOB_UPLOAD_UNKNOWN"},
			exchange{name: "nothing is there", do: "HEAD " + k.blob(b), code: 404},
			exchange{name: "never begun", do: "GET " + k.at("blobs/uploads/"+strings.Repeat("0", 36)), code: 404, text: "BLOB_UPLOAD_UNKNOWN"},
		)
	}},
	{name: "uploads with wrong digests", covers: []string{"blobs/bad digest post only", "blobs/bad digest post+put", "blobs/bad digest chunked", "blobs/bad digest chunked and put chunk", "blobs/bad digest stream"}, rows: func(k *kit) []exchange {
		b, other := k.bytes("b", 3000), k.bytes("other", 10)
		begin := exchange{name: "post", do: "POST " + k.at("blobs/uploads/"), code: 202, save: "up"}
		refused := func(name string, body []byte, header ...string) exchange {
			return exchange{name: name, do: "PUT {up}?digest=" + k.d(other), body: body, header: header, code: 400, text: "DIGEST_INVALID"}
		}
		return rows(
			exchange{name: "post only", do: "POST " + k.at("blobs/uploads/?digest="+k.d(other)), body: b, code: 400, text: "DIGEST_INVALID"},
			exchange{name: "post with no digest", do: "POST " + k.at("blobs/uploads/?digest=x"), body: b, code: 400, text: "DIGEST_INVALID"},
			begin, refused("put", b),
			begin, exchange{name: "chunk", do: "PATCH {up}", body: b, header: []string{"Content-Range", "0-2999"}, code: 202}, refused("chunked", nil),
			begin, exchange{name: "chunk", do: "PATCH {up}", body: b[:2000], header: []string{"Content-Range", "0-1999"}, code: 202}, refused("chunked and put", b[2000:], "Content-Range", "2000-2999"),
			begin, exchange{name: "stream", do: "PATCH {up}", body: b, stream: true, code: 202}, refused("streamed", nil),
			exchange{name: "nothing under the digest given", do: "HEAD " + k.blob(other), code: 404},
			exchange{name: "nothing under the right one", do: "HEAD " + k.blob(b), code: 404},
		)
	}},
}
