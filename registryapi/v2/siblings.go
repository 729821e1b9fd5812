package v2

import (
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
)

// Siblings brings the rest of an image when its first missing blob is asked for. It
// hears of requests that were allowed, and does not block.
type Siblings interface {
	// Served notes that a client is given a manifest.
	Served(pid identity.ProjectID, repo string, d digest.Digest)
	// Asked notes that a client is given a blob; missing: it begins to come from other
	// sites. end is called when the client has it, or left.
	Asked(w Want, missing bool) (end func())
}

func (h *Handler) servedManifest(q *request, d digest.Digest) {
	if h.cfg.Siblings != nil {
		h.cfg.Siblings.Served(q.project.PID, q.repo, d)
	}
}

// asked notes a GET of a blob. Who asks for ranges may want some of an image alone: that
// begins nothing.
func (h *Handler) asked(r *http.Request, w Want, missing bool) (end func()) {
	if h.cfg.Siblings == nil {
		return func() {}
	}
	return h.cfg.Siblings.Asked(w, missing && r.Header.Get("Range") == "")
}
