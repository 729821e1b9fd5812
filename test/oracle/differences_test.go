package oracle

import (
	"slices"
	"strconv"
	"strings"
)

// difference explains fields of the answers to some requests.
type difference struct {
	field string // "" is any
	when  func(r request, ours, theirs answer) bool
	why   string
}

// explain gives the difference that a field's is, or -1.
func explain(r request, field string, ours, theirs answer) int {
	for i, d := range differences {
		if (d.field == "" || d.field == field) && d.when(r, ours, theirs) {
			return i
		}
	}
	return -1
}

func named(names ...string) func(request, answer, answer) bool {
	return func(r request, _, _ answer) bool { return slices.Contains(names, r.name) }
}

func always(request, answer, answer) bool { return true }

// only holds where ours says something and distribution's nothing in a field.
func only(field string) func(request, answer, answer) bool {
	return func(_ request, a, b answer) bool { return a[field] != "" && b[field] == "" }
}

// statuses is named, and only while the two answer so.
func statuses(ours, theirs string, names ...string) func(request, answer, answer) bool {
	return func(r request, a, b answer) bool {
		return a["status"] == ours && b["status"] == theirs && (len(names) == 0 || slices.Contains(names, r.name))
	}
}

// differences are all that are known, the ones of whole requests first.
var differences = []difference{
	// What distribution does not have.
	{"", statuses("200", "404", "referrers"), "distribution has no referrers API"},
	{"Oci-Subject", named("manifest with a subject"), "distribution has no referrers API: it does not say that it understood the subject"},
	{"Oci-Tag", named("manifest by digest with tags"), "distribution does not know tags as parameters, which the specification has since 1.1.1"},
	{"", statuses("201", "202", "post with a digest"), "distribution does not take a blob in one POST; it begins an upload, as the specification allows"},
	{"", statuses("201", "202", "mount without from"), "distribution mounts only from a repository that is named; ours looks through the project"},
	{"", statuses("201", "400", "manifest of an unknown type"), "distribution takes only types that are compiled in; ours keeps any as an artifact"},
	{"", statuses("201", "400", "manifest without a type"), "without a Content-Type distribution wants Docker schema 2; ours reads what the manifest says, and warns"},
	{"", statuses("206", "200", "get a part of a manifest"), "distribution serves ranges of blobs alone"},
	{"Accept-Ranges", only("Accept-Ranges"), "distribution serves ranges of blobs alone, and does not name them in answers of manifests"},

	// Content negotiation.
	{"", statuses("200", "404", "get 1, no Accept", "get 1, Docker images alone"), "distribution does not show an OCI manifest to a client that does not accept it, nor to one that says nothing; ours serves what is stored"},
	{"", statuses("200", "400", "get list, no Accept", "get list, OCI images alone"), "distribution answers a list's tag with its linux/amd64 image also to a client that accepts none, and then refuses the image; ours serves the list"},
	{"", statuses("200", "200", "get index, OCI images alone"), "distribution means to refuse an OCI index to a client that does not accept it, but the check is never reached; ours gives the linux/amd64 image, as for a Docker list"},
	{"Warning", named("get list, Docker images alone"), "ours tells the user that this is one image of a list"},
	{"Vary", only("Vary"), "what a tag gives depends on Accept at both; only ours tells caches"},

	// Errors.
	{"", statuses("405", "200", "base, wrong method"), "distribution answers GET /v2/ to any method"},
	{"", statuses("400", "404", "name in upper case", "manifest under a tag that is none"), "what does not fit distribution's routes is a 404 without the specification's error body; ours says what is wrong"},
	{"", statuses("404", "404", "no such end", "tag that is none"), "what does not fit distribution's routes is a 404 without the specification's error body"},
	{"", statuses("405", "405", "blob, wrong method"), "distribution's 405 has no error body, and another order in Allow"},
	{"body", statuses("404", "404", "tags of no project"), "distribution writes the error twice when a namespace refuses a repository"},
	{"", statuses("416", "500", "chunks, range that is none"), "distribution takes a Content-Range that it can't read for a fault of its own"},
	{"", statuses("416", "416", "chunks, out of order"), "ours says in the answer where to go on; distribution waits to be asked for the status"},
	{"", statuses("413", "400", "manifest that is too large"), "the specification asks for 413"},
	{"Content-Type", func(_ request, a, b answer) bool {
		return a["Content-Type"] == "application/json; charset=utf-8" && b["Content-Type"] == "application/json"
	}, "errors name their character set at ours, as distribution 2 did"},

	// Lists.
	{"", statuses("200", "400", "catalog n=100000"), "an n above the most: distribution refuses it in _catalog and cuts it in tags/list; ours cuts both"},
	{"", func(r request, a, b answer) bool {
		return strings.HasPrefix(r.name, "tags ") && strings.Contains(b["body"], `"tags"`) && a["body"] != b["body"]
	},
		"the tags differ by those that only ours took: t1 and t2 as parameters, odd and untyped"},
	{"", func(r request, a, b answer) bool {
		return r.name == "tags n=2&last=docker" && a["body"] == b["body"] && a["Link"] != "" && b["Link"] == ""
	}, "ours has tags behind this page that distribution did not take"},
	{"Content-Length", func(_ request, a, b answer) bool {
		x, err1 := strconv.Atoi(a["Content-Length"])
		y, err2 := strconv.Atoi(b["Content-Length"])
		return err1 == nil && err2 == nil && x+1 == y && a["body"] == b["body"]
	}, "distribution's lists end with a line feed"},

	// Caches.
	{"Cache-Control", always, "distribution lets shared caches keep blobs for a year and says nothing of the rest; rights are decided per request here, so only the client's own cache may keep what a digest names, and nobody an error"},
	{"Etag", statuses("304", "304"), "a 304 has to carry the ETag (RFC 9110, 15.4.5); distribution's for manifests does not"},
	{"Docker-Content-Digest", statuses("304", "304"), "a 304 carries what a 200 would say of the content; distribution's for manifests does not"},
}
