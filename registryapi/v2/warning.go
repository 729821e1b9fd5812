package v2

import (
	"fmt"
	"mime"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/node/store/manifest"
)

// warningBytes is the most that the specification allows in all Warning headers
// of one answer.
const warningBytes = 4096

// warn tells the user of the client something that is no error. Clients show it
// and do nothing else.
func (q *request) warn(format string, args ...any) {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '?' // nothing that would end the quoted string or the header
		}
		return r
	}, fmt.Sprintf(format, args...))
	line := `299 - "` + text + `"`
	if q.warned += len(line); q.warned <= warningBytes {
		q.w.Header().Add("Warning", line)
	}
}

// advise warns of what is taken although it will be of less use to clients than
// whoever pushed it may think.
func (q *request) advise(m *manifest.Manifest, tags []string) {
	sent, _, _ := mime.ParseMediaType(q.Header.Get("Content-Type")) // was read without an error before
	if sent != m.MediaType {
		q.warn("the Content-Type sent names no type of manifest: this was taken for %s, by what is in it", m.MediaType)
	}
	if m.MediaType == manifest.MediaTypeOCIArtifact {
		q.warn("%s is not in the image specification any more: use an image manifest with an artifactType", m.MediaType)
	}
	if m.Config != nil && m.ArtifactType == ocispec.MediaTypeEmptyJSON {
		q.warn("a manifest with the empty config should have an artifactType: without one nothing says what it is")
	}
	elsewhere := 0
	for _, l := range m.Layers {
		if manifest.NonDistributable(l) {
			elsewhere++
		}
	}
	if elsewhere > 0 {
		q.warn("layers that may not be distributed are not asked for here: whoever pulls needs the URLs of %d of them", elsewhere)
	}
	for _, t := range tags {
		if m.MediaType == ocispec.MediaTypeImageIndex && isReferrersTag(t) {
			q.warn("tag %s is not needed: referrers are listed by their subject field, and what this index names beside them", t)
		}
	}
}
