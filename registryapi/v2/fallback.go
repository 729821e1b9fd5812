package v2

import (
	"errors"
	"log/slog"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/manifest"
)

// Clients that know no referrers API keep the list themselves: an index under a
// tag that is made of the subject's digest. Content that comes here from such a
// registry brings those tags with it, and clients that find the API never look
// at them. So what they name is listed too.

// listed is an entry of the referrers list.
type listed struct {
	catalog.ManifestInfo
	// annotations are set where the manifest itself cannot be read for them.
	annotations map[string]string
}

const (
	referrersTagAlgorithm = 32 // characters of the digest's algorithm in a referrers tag
	referrersTagEncoded   = 64 // and of what is behind it
)

// referrersTag is the tag under which clients list the referrers of d.
func referrersTag(d digest.Digest) string {
	alg, enc := d.Algorithm().String(), d.Encoded()
	return alg[:min(len(alg), referrersTagAlgorithm)] + "-" + enc[:min(len(enc), referrersTagEncoded)]
}

// isReferrersTag reports whether a tag is one for a digest of an algorithm that
// is kept here.
func isReferrersTag(tag string) bool {
	alg, enc, ok := strings.Cut(tag, "-")
	if !ok || alg != digest.SHA256.String() && alg != digest.SHA512.String() {
		return false
	}
	return len(enc) == referrersTagEncoded && strings.Trim(enc, "0123456789abcdef") == ""
}

// fallback gives up to n entries of the index that clients keep for the subject,
// in the order of their digests, from the first behind after. Those are left out
// that have a subject: the catalogue lists them, or they are another's. The
// index is read again for each page, and has manifest.MaxDescriptors entries at
// most; each costs one look-up.
func (h *Handler) fallback(q *request, subject digest.Digest, artifactType string, after digest.Digest, n int) ([]listed, error) {
	tag, err := h.catalog.Tag(q.project.PID, q.repo, referrersTag(subject))
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	index, err := h.catalog.Manifest(q.project.PID, q.repo, tag.Digest)
	if errors.Is(err, catalog.ErrNotFound) || err == nil && index.MediaType != ocispec.MediaTypeImageIndex {
		return nil, nil // somebody's tag that looks like one
	} else if err != nil {
		return nil, err
	}
	b, err := h.manifestBytes(q.Context(), q, index)
	if err != nil {
		h.log.Warn("referrers tag not read", slog.String("repository", q.name()), slog.String("tag", tag.Name), slog.Any("error", err))
		q.warn("what clients list under tag %s cannot be read now and is missing here", tag.Name)
		return nil, nil
	}
	m, err := h.large.parse(q.Context(), index.MediaType, b)
	if err != nil {
		return nil, err // it was taken once
	}
	slices.SortFunc(m.Manifests, func(a, b manifest.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	var out []listed
	for i, d := range m.Manifests {
		if len(out) == n {
			break
		}
		if d.Digest <= after || d.Digest == subject || i > 0 && d.Digest == m.Manifests[i-1].Digest {
			continue
		}
		info, err := h.catalog.Manifest(q.project.PID, q.repo, d.Digest)
		if errors.Is(err, catalog.ErrNotFound) || err == nil && info.Subject != "" {
			continue
		} else if err != nil {
			return nil, err
		}
		r := listed{ManifestInfo: info}
		if info.ArtifactType == info.MediaType {
			// A type that is not understood here: only the index says more of it.
			r.annotations = d.Annotations
			if d.ArtifactType != "" {
				r.ArtifactType = d.ArtifactType
			}
		}
		if artifactType == "" || r.ArtifactType == artifactType {
			out = append(out, r)
		}
	}
	return out, nil
}

// merge puts two lists together that are in order of their digests and have
// none in common.
func merge(a []catalog.ManifestInfo, b []listed) []listed {
	out := make([]listed, 0, len(a)+len(b))
	for _, info := range a {
		for len(b) > 0 && b[0].Digest < info.Digest {
			out, b = append(out, b[0]), b[1:]
		}
		out = append(out, listed{ManifestInfo: info})
	}
	return append(out, b...)
}
