package v2

import (
	"regexp"
	"strings"

	dist "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/distribution/reference"
)

// routeReferrers is the one route that distribution has no name for.
const routeReferrers = "referrers"

// route is a parsed path: which of the specification's ends, and its parts as
// the client wrote them.
type route struct {
	name string // distribution's route name
	repo string // repository
	ref  string // tag, digest or upload id
}

// parseRoute reads a path from its right end, because a repository's name may
// hold any number of slashes and any of the words below.
func parseRoute(path string) (route, bool) {
	rest, ok := strings.CutPrefix(path, "/v2")
	if !ok {
		return route{}, false
	}
	if rest == "" || rest == "/" {
		return route{name: dist.RouteNameBase}, true
	}
	if rest[0] != '/' {
		return route{}, false
	}
	rest = rest[1:]
	if rest == "_catalog" {
		return route{name: dist.RouteNameCatalog}, true
	}
	if repo, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		return route{name: dist.RouteNameTags, repo: repo}, true
	}
	if repo, ok := cutUploads(rest); ok {
		return route{name: dist.RouteNameBlobUpload, repo: repo}, true
	}
	head, last, ok := cutLast(rest)
	if !ok {
		return route{}, false
	}
	if repo, ok := strings.CutSuffix(head, "/blobs/uploads"); ok {
		return route{name: dist.RouteNameBlobUploadChunk, repo: repo, ref: last}, true
	}
	for word, name := range map[string]string{
		"/manifests": dist.RouteNameManifest,
		"/blobs":     dist.RouteNameBlob,
		"/referrers": routeReferrers,
	} {
		if repo, ok := strings.CutSuffix(head, word); ok {
			return route{name: name, repo: repo, ref: last}, true
		}
	}
	return route{}, false
}

func cutUploads(s string) (string, bool) {
	if repo, ok := strings.CutSuffix(s, "/blobs/uploads/"); ok {
		return repo, true
	}
	return strings.CutSuffix(s, "/blobs/uploads")
}

func cutLast(s string) (head, last string, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 || i == len(s)-1 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

var (
	tagRegexp    = regexp.MustCompile(`^` + reference.TagRegexp.String() + `$`)
	uploadRegexp = regexp.MustCompile(`^[a-zA-Z0-9-_.=]{1,128}$`) // distribution's, with a bound
)
