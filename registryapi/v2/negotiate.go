package v2

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/manifest"
)

// Clients from before indexes take image manifests alone. What they get for a
// tag that names an index is the image in it that they would have got then.
const (
	oldClientOS           = "linux"
	oldClientArchitecture = "amd64"
)

// accepts reports whether the Accept headers take a media type. A client that
// sends none takes anything.
func accepts(header http.Header, mediaType string) bool {
	values := header.Values("Accept")
	if len(values) == 0 {
		return true
	}
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			name, params, _ := strings.Cut(part, ";")
			name = strings.ToLower(strings.TrimSpace(name))
			if (name == mediaType || name == "*/*" || name == "application/*") && !zeroQuality(params) {
				return true
			}
		}
	}
	return false
}

// zeroQuality reports whether parameters say "not this one".
func zeroQuality(params string) bool {
	for p := range strings.SplitSeq(params, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(key, "q") {
			q, err := strconv.ParseFloat(value, 64)
			return err == nil && q == 0
		}
	}
	return false
}

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == manifest.MediaTypeDockerList
}

// negotiate gives the manifest to answer a request for a tag with. It is the one
// that the tag names, but for a client that takes images and not the index that
// is there: then it is the image of the index for linux/amd64, under its own
// digest. Where there is none that the client takes, it is the index after all.
// Nothing is ever converted.
func (h *Handler) negotiate(q *request, info catalog.ManifestInfo) (catalog.ManifestInfo, error) {
	if !isIndex(info.MediaType) || accepts(q.Header, info.MediaType) ||
		!accepts(q.Header, ocispec.MediaTypeImageManifest) && !accepts(q.Header, manifest.MediaTypeDockerManifest) {
		return info, nil
	}
	b, err := h.manifestBytes(q.Context(), q, info)
	if err != nil {
		return info, err
	}
	m, err := h.large.parse(q.Context(), info.MediaType, b)
	if err != nil {
		return info, err // it was taken once
	}
	for _, d := range m.Manifests {
		if d.Platform == nil || d.Platform.OS != oldClientOS || d.Platform.Architecture != oldClientArchitecture {
			continue
		}
		child, err := h.catalog.Manifest(q.project.PID, q.repo, d.Digest)
		if errors.Is(err, catalog.ErrNotFound) {
			continue
		} else if err != nil {
			return info, err
		}
		if !isIndex(child.MediaType) && accepts(q.Header, child.MediaType) {
			q.warn("%s names an index, which this client does not accept: this is its image for %s/%s", q.route.ref, oldClientOS, oldClientArchitecture)
			return child, nil
		}
	}
	return info, nil
}
