package v2

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestExchanges is the specification as a table: one request, one answer, in
// order, against one site. A new corner is one row.
func TestExchanges(t *testing.T) {
	s := newSite(t)
	config, layer, big := []byte(`{"os":"linux"}`), []byte("a layer"), bytes.Repeat([]byte("0123456789abcdef"), 8192) // big is a file in the store
	img := image(config, layer, big)
	img2 := image(config, big)
	idx := index(img, img2)
	sig := referrer(img, "application/vnd.example.signature", config, "signed")
	sbom := referrer(img, "application/vnd.example.sbom", config, "listed")
	orphan := referrer([]byte("not pushed"), "application/vnd.example.sbom", config, "early")
	d := func(b []byte) string { return digest.FromBytes(b).String() }
	none := d([]byte("nowhere"))
	sha384 := digest.SHA384.FromBytes(layer).String()
	long := strings.Repeat("a", 255)

	for _, b := range [][]byte{config, layer, big} {
		s.push("prod/app", b)
	}

	type row struct {
		name   string
		user   string
		method string
		path   string
		body   []byte
		header []string
		code   int
		want   []string // header, value, ... value "" means: not there; a final * matches any rest
		text   string   // in the body
	}
	rows := []row{
		// base and routes
		{"base, anonymous", "", "GET", "/v2/", nil, nil, 401, []string{"Docker-Distribution-Api-Version", "registry/2.0", "Www-Authenticate", `Bearer realm="` + s.url + `/service/token",service="portolan"`}, "UNAUTHORIZED"},
		{"base", "dev", "GET", "/v2/", nil, nil, 200, []string{"Docker-Distribution-Api-Version", "registry/2.0"}, "{}"},
		{"base without slash", "dev", "GET", "/v2", nil, nil, 200, nil, "{}"},
		{"base, wrong method", "dev", "PUT", "/v2/", nil, nil, 405, []string{"Allow", "GET, HEAD"}, "UNSUPPORTED"},
		{"no such path", "dev", "GET", "/v2/prod/app/nothing", nil, nil, 404, nil, "UNSUPPORTED"},
		{"no such path at all", "dev", "GET", "/v2x", nil, nil, 404, nil, ""},
		{"wrong method for a blob", "dev", "PUT", "/v2/prod/app/blobs/" + d(layer), nil, nil, 405, []string{"Allow", "GET, HEAD, DELETE"}, "UNSUPPORTED"},

		// names
		{"upper case", "dev", "GET", "/v2/Prod/app/tags/list", nil, nil, 400, nil, "NAME_INVALID"},
		{"empty component", "dev", "GET", "/v2/prod//app/tags/list", nil, nil, 400, nil, "NAME_INVALID"},
		{"dots", "dev", "GET", "/v2/prod/%2e%2e/closed/tags/list", nil, nil, 400, nil, "NAME_INVALID"},
		{"no name", "dev", "GET", "/v2//tags/list", nil, nil, 400, nil, "NAME_INVALID"},
		{"too long", "dev", "POST", "/v2/prod/" + long + "/blobs/uploads/", nil, nil, 400, nil, "NAME_INVALID"},

		// who may what, before what there is
		{"anonymous pull of a private project", "", "GET", "/v2/prod/app/manifests/1", nil, nil, 401, []string{"Www-Authenticate", `Bearer realm="` + s.url + `/service/token",service="portolan",scope="repository:prod/app:pull"`}, "UNAUTHORIZED"},
		{"anonymous pull of no project", "", "GET", "/v2/nothere/app/manifests/1", nil, nil, 401, nil, "UNAUTHORIZED"},
		{"anonymous push to a public project", "", "POST", "/v2/library/app/blobs/uploads/", nil, nil, 401, []string{"Www-Authenticate", "*"}, "UNAUTHORIZED"},
		{"wrong password", "nobody", "GET", "/v2/prod/app/manifests/1", nil, nil, 401, nil, "UNAUTHORIZED"},
		{"a token that is none, for a push", "", "GET", "/v2/prod/app/blobs/uploads/x", nil, []string{"Authorization", "Bearer x"}, 401, []string{"Www-Authenticate", `Bearer realm="` + s.url + `/service/token",service="portolan",scope="repository:prod/app:pull,push",error="invalid_token"`}, "UNAUTHORIZED"},
		{"guest pushes", "guest", "POST", "/v2/prod/app/blobs/uploads/", nil, nil, 403, nil, "guest may not push"},
		{"developer deletes", "dev", "DELETE", "/v2/prod/app/manifests/1", nil, nil, 403, nil, "DENIED"},
		{"stranger pulls", "stranger", "GET", "/v2/prod/app/manifests/1", nil, nil, 403, nil, "is not there, or stranger may not see it"},
		{"stranger pulls from no project", "stranger", "GET", "/v2/nothere/app/manifests/1", nil, nil, 403, nil, "is not there, or stranger may not see it"},
		{"stranger pushes to no project", "stranger", "POST", "/v2/nothere/app/blobs/uploads/", nil, nil, 403, nil, "portolan project create nothere"},
		{"admin pushes to no project", "admin", "POST", "/v2/nothere/app/blobs/uploads/", nil, nil, 404, nil, "portolan project create nothere"},
		{"anonymous pull of a public project", "", "GET", "/v2/library/nothing/manifests/1", nil, nil, 404, nil, "MANIFEST_UNKNOWN"},

		// blobs
		{"blob", "guest", "GET", "/v2/prod/app/blobs/" + d(layer), nil, nil, 200, []string{"Docker-Content-Digest", d(layer), "Content-Length", "7", "Etag", `"` + d(layer) + `"`, "Accept-Ranges", "bytes", "Content-Type", "application/octet-stream"}, "a layer"},
		{"blob that is a file", "guest", "GET", "/v2/prod/app/blobs/" + d(big), nil, nil, 200, []string{"Docker-Content-Digest", d(big), "Content-Length", "131072"}, string(big)},
		{"blob head", "guest", "HEAD", "/v2/prod/app/blobs/" + d(big), nil, nil, 200, []string{"Docker-Content-Digest", d(big), "Content-Length", "131072"}, ""},
		{"blob unknown", "guest", "GET", "/v2/prod/app/blobs/" + none, nil, nil, 404, nil, "BLOB_UNKNOWN"},
		{"blob head unknown", "guest", "HEAD", "/v2/prod/app/blobs/" + none, nil, nil, 404, nil, ""},
		{"blob of another repository", "guest", "GET", "/v2/prod/other/blobs/" + d(layer), nil, nil, 404, nil, "BLOB_UNKNOWN"},
		{"blob by no digest", "guest", "GET", "/v2/prod/app/blobs/sha256:12", nil, nil, 400, nil, "DIGEST_INVALID"},
		{"blob by sha384", "guest", "GET", "/v2/prod/app/blobs/" + sha384, nil, nil, 400, nil, "only sha256 and sha512 are supported"},
		{"blob by md5", "guest", "GET", "/v2/prod/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", nil, nil, 400, nil, "only sha256 and sha512 are supported"},
		{"blob by half a sha512", "guest", "GET", "/v2/prod/app/blobs/sha512:" + d(layer)[7:], nil, nil, 400, nil, "expected sha256: and 64, or sha512: and 128 hexadecimal digits"},
		{"blob by twice a sha256", "guest", "GET", "/v2/prod/app/blobs/" + d(layer) + d(layer)[7:], nil, nil, 400, nil, "DIGEST_INVALID"},
		{"blob in upper case", "guest", "GET", "/v2/prod/app/blobs/sha512:" + strings.ToUpper(digest.SHA512.FromBytes(layer).Encoded()), nil, nil, 400, nil, "in lower case"},
		{"blob by the digest that it was not pushed under", "guest", "GET", "/v2/prod/app/blobs/" + digest.SHA512.FromBytes(layer).String(), nil, nil, 404, nil, "BLOB_UNKNOWN"},
		{"range", "guest", "GET", "/v2/prod/app/blobs/" + d(big), nil, []string{"Range", "bytes=14-17"}, 206, []string{"Content-Range", "bytes 14-17/131072", "Content-Length", "4"}, "ef01"},
		{"range from", "guest", "GET", "/v2/prod/app/blobs/" + d(big), nil, []string{"Range", "bytes=131070-"}, 206, []string{"Content-Range", "bytes 131070-131071/131072"}, "ef"},
		{"range of the end", "guest", "GET", "/v2/prod/app/blobs/" + d(layer), nil, []string{"Range", "bytes=-3"}, 206, []string{"Content-Range", "bytes 4-6/7"}, "yer"},
		{"range outside", "guest", "GET", "/v2/prod/app/blobs/" + d(layer), nil, []string{"Range", "bytes=7-9"}, 416, []string{"Content-Range", "bytes */7"}, ""},
		{"range, not changed", "guest", "GET", "/v2/prod/app/blobs/" + d(layer), nil, []string{"Range", "bytes=0-0", "If-Range", `"` + d(layer) + `"`}, 206, nil, "a"},
		{"not modified", "guest", "GET", "/v2/prod/app/blobs/" + d(big), nil, []string{"If-None-Match", `"` + d(big) + `"`}, 304, nil, ""},
		{"head not modified", "guest", "HEAD", "/v2/prod/app/blobs/" + d(big), nil, []string{"If-None-Match", `"` + d(big) + `"`}, 304, nil, ""},
		{"modified", "guest", "GET", "/v2/prod/app/blobs/" + d(layer), nil, []string{"If-None-Match", `"other"`}, 200, nil, "a layer"},

		// uploads in one request
		{"post whole", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest=" + d([]byte("whole")), []byte("whole"), nil, 201, []string{"Location", "/v2/prod/app/blobs/" + d([]byte("whole")), "Docker-Content-Digest", d([]byte("whole"))}, ""},
		{"post whole again", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest=" + d([]byte("whole")), []byte("whole"), nil, 201, nil, ""},
		{"post the empty blob", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest=" + d(nil), nil, nil, 201, nil, ""},
		{"get the empty blob", "dev", "GET", "/v2/prod/app/blobs/" + d(nil), nil, nil, 200, []string{"Content-Length", "0"}, ""},
		{"post with a wrong digest", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest=" + none, []byte("whole"), nil, 400, nil, "DIGEST_INVALID"},
		{"post with no digest at all", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest=x", []byte("whole"), nil, 400, nil, "DIGEST_INVALID"},
		{"post with sha384", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest=" + sha384, layer, nil, 400, nil, "DIGEST_INVALID"},
		{"post with an algorithm", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest-algorithm=sha512", nil, nil, 202, []string{"Location", "/v2/prod/app/blobs/uploads/*"}, ""},
		{"post with the usual algorithm", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest-algorithm=sha256", nil, nil, 202, nil, ""},
		{"post with an algorithm that is not kept", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest-algorithm=sha384", nil, nil, 400, nil, "only sha256 and sha512 are supported"},
		{"post with no algorithm", "dev", "POST", "/v2/prod/app/blobs/uploads/?digest-algorithm=SHA512", nil, nil, 400, nil, "DIGEST_INVALID"},
		{"upload unknown", "dev", "PATCH", "/v2/prod/app/blobs/uploads/00000000-0000-0000-0000-000000000000", layer, nil, 404, nil, "BLOB_UPLOAD_UNKNOWN"},
		{"upload that is a path", "dev", "GET", "/v2/prod/app/blobs/uploads/..%2f..%2fx", nil, nil, 404, nil, ""},

		// mounts
		{"mount", "dev", "POST", "/v2/closed/copy/blobs/uploads/?mount=" + d(big) + "&from=prod/app", nil, nil, 201, []string{"Location", "/v2/closed/copy/blobs/" + d(big), "Docker-Content-Digest", d(big)}, ""},
		{"mount, anonymous", "", "POST", "/v2/closed/copy/blobs/uploads/?mount=" + d(big) + "&from=prod/app", nil, nil, 401, []string{"Www-Authenticate", `Bearer realm="` + s.url + `/service/token",service="portolan",scope="repository:closed/copy:pull,push repository:prod/app:pull"`}, "UNAUTHORIZED"},
		{"mounted", "guest", "HEAD", "/v2/closed/copy/blobs/" + d(big), nil, nil, 200, nil, ""},
		{"mount of what is not there", "dev", "POST", "/v2/closed/copy/blobs/uploads/?mount=" + none + "&from=prod/app", nil, nil, 202, []string{"Location", "/v2/closed/copy/blobs/uploads/*", "Range", "0-0"}, ""},
		{"mount without from, same project", "dev", "POST", "/v2/prod/third/blobs/uploads/?mount=" + d(layer), nil, nil, 201, nil, ""},
		{"mount without from, other project", "dev", "POST", "/v2/closed/third/blobs/uploads/?mount=" + d(layer), nil, nil, 202, nil, ""},
		{"mount of no digest", "dev", "POST", "/v2/prod/third/blobs/uploads/?mount=x&from=prod/app", nil, nil, 400, nil, "DIGEST_INVALID"},
		{"mount from no name", "dev", "POST", "/v2/prod/third/blobs/uploads/?mount=" + d(layer) + "&from=Prod/App", nil, nil, 400, nil, "NAME_INVALID"},
		{"mount from no project", "dev", "POST", "/v2/prod/third/blobs/uploads/?mount=" + d(layer) + "&from=nothere/app", nil, nil, 202, nil, ""},

		// manifests
		{"manifest of missing blobs", "dev", "PUT", "/v2/prod/app/manifests/1", image(config, []byte("never pushed")), []string{"Content-Type", imageType}, 400, nil, d([]byte("never pushed"))},
		{"nothing of it is there", "dev", "GET", "/v2/prod/app/manifests/1", nil, nil, 404, nil, "MANIFEST_UNKNOWN"},
		{"manifest", "dev", "PUT", "/v2/prod/app/manifests/1", img, []string{"Content-Type", imageType}, 201, []string{"Location", "/v2/prod/app/manifests/" + d(img), "Docker-Content-Digest", d(img), "Oci-Subject", ""}, ""},
		{"by tag", "guest", "GET", "/v2/prod/app/manifests/1", nil, nil, 200, []string{"Content-Type", imageType, "Docker-Content-Digest", d(img), "Etag", `"` + d(img) + `"`}, string(img)},
		{"by digest", "guest", "GET", "/v2/prod/app/manifests/" + d(img), nil, []string{"Accept", indexType}, 200, []string{"Content-Type", imageType}, string(img)},
		{"head by tag", "guest", "HEAD", "/v2/prod/app/manifests/1", nil, nil, 200, []string{"Content-Type", imageType, "Docker-Content-Digest", d(img), "Content-Length", "*"}, ""},
		{"manifest not modified", "guest", "GET", "/v2/prod/app/manifests/1", nil, []string{"If-None-Match", `"` + d(img) + `"`}, 304, nil, ""},
		{"manifest by another digest", "dev", "PUT", "/v2/prod/app/manifests/" + none, img, []string{"Content-Type", imageType}, 400, nil, "DIGEST_INVALID"},
		{"manifest by sha384", "dev", "PUT", "/v2/prod/app/manifests/" + digest.SHA384.FromBytes(img).String(), img, []string{"Content-Type", imageType}, 400, nil, "only sha256 and sha512 are supported"},
		{"manifest by another sha512", "dev", "PUT", "/v2/prod/app/manifests/" + digest.SHA512.FromBytes(layer).String(), img, []string{"Content-Type", imageType}, 400, nil, digest.SHA512.FromBytes(img).String()},
		{"manifest of a layer by sha384", "dev", "PUT", "/v2/prod/app/manifests/2", bytes.Replace(img, []byte(d(layer)), []byte(sha384), 1), []string{"Content-Type", imageType}, 400, nil, "only sha256 and sha512 are supported"},
		{"index of a child by sha384", "dev", "PUT", "/v2/prod/app/manifests/2", bytes.Replace(idx, []byte(d(img)), []byte(sha384), 1), []string{"Content-Type", indexType}, 400, nil, "only sha256 and sha512 are supported"},
		{"referrer of a subject by sha384", "dev", "PUT", "/v2/prod/app/manifests/2", bytes.Replace(sig, []byte(d(img)), []byte(sha384), 1), []string{"Content-Type", imageType}, 400, nil, "only sha256 and sha512 are supported"},
		{"manifest by digest", "dev", "PUT", "/v2/prod/app/manifests/" + d(img2), img2, []string{"Content-Type", imageType}, 201, nil, ""},
		{"manifest by digest with tags", "dev", "PUT", "/v2/prod/app/manifests/" + d(img2) + "?tag=a&tag=b", img2, []string{"Content-Type", imageType}, 201, []string{"Oci-Tag", "a"}, ""},
		{"one of those tags", "dev", "HEAD", "/v2/prod/app/manifests/b", nil, nil, 200, []string{"Docker-Content-Digest", d(img2)}, ""},
		{"media type from the body", "dev", "PUT", "/v2/prod/app/manifests/2", img2, nil, 201, nil, ""},
		{"contradicting media type", "dev", "PUT", "/v2/prod/app/manifests/2", img2, []string{"Content-Type", indexType}, 400, nil, "MANIFEST_INVALID"},
		{"unreadable media type", "dev", "PUT", "/v2/prod/app/manifests/2", img2, []string{"Content-Type", "a/b/c; ="}, 400, nil, "MANIFEST_INVALID"},
		{"unknown media type", "dev", "PUT", "/v2/prod/app/manifests/odd", []byte(`anything`), []string{"Content-Type", "application/vnd.example.odd"}, 201, nil, ""},
		{"unknown media type comes back", "dev", "GET", "/v2/prod/app/manifests/odd", nil, nil, 200, []string{"Content-Type", "application/vnd.example.odd"}, "anything"},
		{"no JSON", "dev", "PUT", "/v2/prod/app/manifests/2", []byte(`{`), []string{"Content-Type", imageType}, 400, nil, "MANIFEST_INVALID"},
		{"empty manifest", "dev", "PUT", "/v2/prod/app/manifests/2", nil, []string{"Content-Type", imageType}, 400, nil, "MANIFEST_INVALID"},
		{"too large a manifest", "dev", "PUT", "/v2/prod/app/manifests/2", bytes.Repeat([]byte(" "), 4<<20+1), []string{"Content-Type", imageType}, 413, nil, "SIZE_INVALID"},
		{"wrong size in a manifest", "dev", "PUT", "/v2/prod/app/manifests/2", bytes.Replace(img2, []byte(`"size":131072`), []byte(`"size":131071`), 1), []string{"Content-Type", imageType}, 400, nil, "MANIFEST_INVALID"},
		{"bad tag", "dev", "PUT", "/v2/prod/app/manifests/.bad", img, []string{"Content-Type", imageType}, 400, nil, "TAG_INVALID"},
		{"long tag", "dev", "PUT", "/v2/prod/app/manifests/" + strings.Repeat("t", 129), img, []string{"Content-Type", imageType}, 400, nil, "TAG_INVALID"},
		{"get of a bad tag", "dev", "GET", "/v2/prod/app/manifests/.bad", nil, nil, 404, nil, "MANIFEST_UNKNOWN"},
		{"index of a missing child", "dev", "PUT", "/v2/prod/app/manifests/multi", index([]byte("no child")), []string{"Content-Type", indexType}, 400, nil, d([]byte("no child"))},
		{"index", "dev", "PUT", "/v2/prod/app/manifests/multi", idx, []string{"Content-Type", indexType}, 201, nil, ""},
		{"index in another repository", "dev", "PUT", "/v2/closed/copy/manifests/multi", idx, []string{"Content-Type", indexType}, 400, nil, "MANIFEST_BLOB_UNKNOWN"},
		{"single component name", "admin", "PUT", "/v2/odd/manifests/1", []byte(`x`), []string{"Content-Type", "application/vnd.example.odd"}, 201, []string{"Location", "/v2/odd/manifests/*"}, ""},
		{"is in library", "", "GET", "/v2/library/odd/manifests/1", nil, nil, 200, nil, "x"},

		// lists
		{"tags", "guest", "GET", "/v2/prod/app/tags/list", nil, nil, 200, []string{"Link", ""}, `{"name":"prod/app","tags":["1","2","a","b","multi","odd"]}`},
		{"tags, first page", "guest", "GET", "/v2/prod/app/tags/list?n=2", nil, nil, 200, []string{"Link", `</v2/prod/app/tags/list?last=2&n=2>; rel="next"`}, `["1","2"]`},
		{"tags, middle page", "guest", "GET", "/v2/prod/app/tags/list?n=2&last=2", nil, nil, 200, []string{"Link", `</v2/prod/app/tags/list?last=b&n=2>; rel="next"`}, `["a","b"]`},
		{"tags, last page", "guest", "GET", "/v2/prod/app/tags/list?n=2&last=b", nil, nil, 200, []string{"Link", ""}, `["multi","odd"]`},
		{"tags after one that is not there", "guest", "GET", "/v2/prod/app/tags/list?last=c", nil, nil, 200, nil, `["multi","odd"]`},
		{"tags, none asked for", "guest", "GET", "/v2/prod/app/tags/list?n=0", nil, nil, 200, []string{"Link", ""}, `"tags":[]`},
		{"tags, bad n", "guest", "GET", "/v2/prod/app/tags/list?n=-1", nil, nil, 400, nil, "PAGINATION_NUMBER_INVALID"},
		{"tags, no n", "guest", "GET", "/v2/prod/app/tags/list?n=x", nil, nil, 400, nil, "PAGINATION_NUMBER_INVALID"},
		{"tags, huge n", "guest", "GET", "/v2/prod/app/tags/list?n=99999999999999999999", nil, nil, 200, nil, "multi"},
		{"tags of nothing", "guest", "GET", "/v2/prod/nothing/tags/list", nil, nil, 404, nil, "NAME_UNKNOWN"},
		{"catalog", "admin", "GET", "/v2/_catalog", nil, nil, 200, []string{"Link", ""}, `{"repositories":["library/odd","prod/app"]}`},
		{"catalog, first page", "admin", "GET", "/v2/_catalog?n=1", nil, nil, 200, []string{"Link", `</v2/_catalog?last=library%2Fodd&n=1>; rel="next"`}, `["library/odd"]`},
		{"catalog, last page", "admin", "GET", "/v2/_catalog?n=1&last=library/odd", nil, nil, 200, []string{"Link", ""}, `["prod/app"]`},
		{"catalog, anonymous", "", "GET", "/v2/_catalog", nil, nil, 200, nil, `["library/odd"]`},
		{"catalog of a stranger", "stranger", "GET", "/v2/_catalog", nil, nil, 200, nil, `["library/odd"]`},

		// referrers
		{"no referrers", "guest", "GET", "/v2/prod/app/referrers/" + d(img), nil, nil, 200, []string{"Content-Type", indexType, "Oci-Filters-Applied", ""}, `"manifests":[]`},
		{"referrer", "dev", "PUT", "/v2/prod/app/manifests/" + d(sig), sig, []string{"Content-Type", imageType}, 201, []string{"Oci-Subject", d(img)}, ""},
		{"another referrer", "dev", "PUT", "/v2/prod/app/manifests/" + d(sbom), sbom, []string{"Content-Type", imageType}, 201, []string{"Oci-Subject", d(img)}, ""},
		{"a referrer before its subject", "dev", "PUT", "/v2/prod/app/manifests/" + d(orphan), orphan, []string{"Content-Type", imageType}, 201, []string{"Oci-Subject", d([]byte("not pushed"))}, ""},
		{"referrers", "guest", "GET", "/v2/prod/app/referrers/" + d(img), nil, nil, 200, []string{"Content-Type", indexType}, `"artifactType":"application/vnd.example.signature"`},
		{"referrers with annotations", "guest", "GET", "/v2/prod/app/referrers/" + d(img), nil, nil, 200, nil, `"annotations":{"note":"signed"}`},
		{"referrers by type", "guest", "GET", "/v2/prod/app/referrers/" + d(img) + "?artifactType=application/vnd.example.sbom", nil, nil, 200, []string{"Oci-Filters-Applied", "artifactType"}, `"annotations":{"note":"listed"}`},
		{"referrers by a type that none has", "guest", "GET", "/v2/prod/app/referrers/" + d(img) + "?artifactType=x/y", nil, nil, 200, []string{"Oci-Filters-Applied", "artifactType"}, `"manifests":[]`},
		{"referrers of what is not there", "guest", "GET", "/v2/prod/app/referrers/" + d([]byte("not pushed")), nil, nil, 200, nil, d(orphan)},
		{"referrers, a page", "guest", "GET", "/v2/prod/app/referrers/" + d(img) + "?n=1", nil, nil, 200, []string{"Link", "</v2/prod/app/referrers/*"}, ""},
		{"referrers of no digest", "guest", "GET", "/v2/prod/app/referrers/x", nil, nil, 400, nil, "DIGEST_INVALID"},

		// deletes
		{"blob that is needed", "admin", "DELETE", "/v2/prod/app/blobs/" + d(big), nil, nil, 405, nil, "UNSUPPORTED"},
		{"tag", "admin", "DELETE", "/v2/prod/app/manifests/a", nil, nil, 202, nil, ""},
		{"tag again", "admin", "DELETE", "/v2/prod/app/manifests/a", nil, nil, 404, nil, "MANIFEST_UNKNOWN"},
		{"the other tag of the digest", "admin", "HEAD", "/v2/prod/app/manifests/b", nil, nil, 200, nil, ""},
		{"manifest by digest, with its tags", "admin", "DELETE", "/v2/prod/app/manifests/" + d(idx), nil, nil, 202, nil, ""},
		{"its tag is gone", "admin", "GET", "/v2/prod/app/manifests/multi", nil, nil, 404, nil, "MANIFEST_UNKNOWN"},
		{"its children are not", "admin", "HEAD", "/v2/prod/app/manifests/" + d(img), nil, nil, 200, nil, ""},
		{"manifest that is not there", "admin", "DELETE", "/v2/prod/app/manifests/" + none, nil, nil, 404, nil, "MANIFEST_UNKNOWN"},
		{"unneeded blob", "admin", "DELETE", "/v2/prod/app/blobs/" + d([]byte("whole")), nil, nil, 202, nil, ""},
		{"unneeded blob is gone", "admin", "HEAD", "/v2/prod/app/blobs/" + d([]byte("whole")), nil, nil, 404, nil, ""},
		{"unneeded blob again", "admin", "DELETE", "/v2/prod/app/blobs/" + d([]byte("whole")), nil, nil, 404, nil, "BLOB_UNKNOWN"},
	}
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			e := s.do(c.user, c.method, c.path, bytes.NewReader(c.body), c.header...)
			if e.StatusCode != c.code || !strings.Contains(string(e.body), c.text) {
				t.Fatalf("%s %s: %d %s\nwant %d with %q", c.method, c.path, e.StatusCode, clip(string(e.body)), c.code, clip(c.text))
			}
			for i := 0; i+1 < len(c.want); i += 2 {
				got, want := e.Header.Get(c.want[i]), c.want[i+1]
				prefix, open := strings.CutSuffix(want, "*")
				if got != want && !(open && got != "" && strings.HasPrefix(got, prefix)) {
					t.Errorf("%s %s: header %s is %q, want %q", c.method, c.path, c.want[i], got, want)
				}
			}
			if c.method == http.MethodHead && len(e.body) > 0 {
				t.Errorf("an answer to HEAD has a body: %s", e.body)
			}
		})
	}
}
