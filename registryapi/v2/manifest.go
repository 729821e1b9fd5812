package v2

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

func isDigest(ref string) bool { return strings.Contains(ref, ":") }

func (h *Handler) manifestUnknown(q *request, unreachable []string) error {
	kind := "tag"
	if isDigest(q.route.ref) {
		kind = "manifest"
	}
	detail := map[string]any{"name": q.name(), "reference": clip(q.route.ref)}
	more := ""
	if len(unreachable) > 0 {
		more = ", as far as can be said while " + strings.Join(unreachable, ", ") + " cannot be reached"
		detail["unreachable"] = unreachable
	}
	e := refuse(errcode.ErrorCodeManifestUnknown, "repository %s has no %s %s%s", q.name(), kind, clip(q.route.ref), more)
	e = e.detail(detail)
	return e
}

// find looks the reference up here, and once more after asking the other sites
// for what they have.
func (h *Handler) find(q *request) (catalog.ManifestInfo, error) {
	var d digest.Digest
	if isDigest(q.route.ref) {
		var err error
		if d, err = parseDigest(q.route.ref); err != nil {
			return catalog.ManifestInfo{}, err
		}
	} else if !tagRegexp.MatchString(q.route.ref) {
		return catalog.ManifestInfo{}, h.manifestUnknown(q, nil)
	}
	info, err := h.lookUp(q, d)
	if !errors.Is(err, catalog.ErrNotFound) {
		return info, err
	}
	unreachable := h.refresh(q)
	if info, err = h.lookUp(q, d); errors.Is(err, catalog.ErrNotFound) {
		if d == "" && len(unreachable) > 0 {
			// Strong tags may be here before their manifests are.
			if _, terr := h.catalog.Tag(q.project.PID, q.repo, q.route.ref); terr == nil {
				return info, &store.Unreachable{Sites: unreachable}
			}
		}
		return info, h.manifestUnknown(q, unreachable)
	}
	return info, err
}

func (h *Handler) lookUp(q *request, d digest.Digest) (catalog.ManifestInfo, error) {
	if d == "" {
		tag, err := h.catalog.Tag(q.project.PID, q.repo, q.route.ref)
		if err != nil {
			return catalog.ManifestInfo{}, err
		}
		d = tag.Digest
	}
	return h.catalog.Manifest(q.project.PID, q.repo, d)
}

// refresh brings what other sites have of the project here; it names those that
// could not be asked. That it failed is no reason to refuse what is here.
func (h *Handler) refresh(q *request) []string {
	if h.cfg.Refresher == nil {
		return nil
	}
	unreachable, err := h.cfg.Refresher.PullProject(q.Context(), q.project.PID)
	if err != nil {
		h.log.Debug("other sites not asked", slog.String("repository", q.name()), slog.Any("error", err))
	}
	return unreachable
}

// getManifest answers GET and HEAD. What is stored is what is served: a digest
// names bytes, and converting them would need another name. Which of the stored
// manifests a tag means may depend on the client, see negotiate.
func (h *Handler) getManifest(q *request) error {
	info, err := h.find(q)
	if err != nil {
		return err
	}
	head := q.w.Header()
	if isDigest(q.route.ref) {
		head.Set("Cache-Control", keepForGood)
	} else {
		head.Set("Cache-Control", askAgain)
		head.Set("Vary", "Accept")
		if info, err = h.negotiate(q, info); err != nil {
			return err
		}
	}
	if notModified(q.Request, info.Digest) {
		return q.unchanged(info.Digest)
	}
	if q.Method == http.MethodHead {
		head.Set("Content-Type", info.MediaType)
		head.Set("Accept-Ranges", "bytes")
		setDigest(head, info.Digest)
		head.Set("Content-Length", strconv.FormatInt(info.Size, 10))
		q.w.WriteHeader(http.StatusOK)
		return nil
	}
	b, ok, err := h.catalog.ContentIn(q.project.PID, info.Digest)
	if err != nil && !absent(err) {
		return err
	}
	if ok {
		h.servedManifest(q, info.Digest)
		h.serveBytes(q, info.Digest, info.MediaType, b)
		return nil
	}
	err = h.serveStored(q, info)
	if errors.Is(err, store.ErrCorrupt) {
		err = h.serveStored(q, info) // what was damaged is gone now: from elsewhere
	}
	return err
}

// serveStored serves a manifest that is too large for the catalogue.
func (h *Handler) serveStored(q *request, info catalog.ManifestInfo) error {
	content, err := h.openContent(q.Context(), q, info.Digest, info.Size)
	if errors.Is(err, store.ErrNotFound) {
		return h.manifestUnknown(q, nil)
	}
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }()
	h.servedManifest(q, info.Digest)
	return h.serveContent(q, info.Digest, info.MediaType, content)
}

// openContent opens what this repository is known to name, here or elsewhere.
func (h *Handler) openContent(ctx context.Context, q *request, d digest.Digest, size int64) (io.ReadSeekCloser, error) {
	b, err := h.openHere(ctx, q, d)
	if err == nil {
		return b, nil
	}
	if !absent(err) && !errors.Is(err, store.ErrCorrupt) {
		return nil, err
	}
	return h.open(ctx, Want{PID: q.project.PID, Repo: q.repo, Digest: d, Size: size, Subject: q.subject.Actor()})
}

// deleteManifest deletes a tag, and only that, or a manifest with all tags that
// point to it.
func (h *Handler) deleteManifest(q *request) error {
	match, err := deletion(q)
	if err != nil {
		return err
	}
	// A strong tag that is not there was asked of the whole mesh: looking again could only
	// find one that was set since.
	decided := q.project.Tags.Mode == state.StrongTags
	remove := func() error {
		return h.tags.DeleteTag(q.Context(), q.project.PID, q.repo, q.route.ref, match, q.subject.Actor(), q.aclIndex)
	}
	if isDigest(q.route.ref) {
		d, err := parseDigest(q.route.ref)
		if err != nil {
			return err
		}
		if len(match) > 0 && !slices.Contains(match, d) {
			return refuseStatus(http.StatusPreconditionFailed, errcode.ErrorCodeDenied, "If-Match names another digest than the path, %s", d)
		}
		decided = false
		remove = func() error {
			return h.tags.DeleteManifest(q.Context(), q.project.PID, q.repo, d, q.subject.Actor(), q.aclIndex)
		}
	} else if !tagRegexp.MatchString(q.route.ref) {
		return h.manifestUnknown(q, nil)
	}
	if err = remove(); errors.Is(err, catalog.ErrNotFound) {
		if decided {
			return h.manifestUnknown(q, nil)
		}
		// As a pull does: what was pushed elsewhere a moment ago is there too.
		unreachable := h.refresh(q)
		if err = remove(); errors.Is(err, catalog.ErrNotFound) {
			return h.manifestUnknown(q, unreachable)
		}
	}
	if err != nil {
		return err
	}
	h.log.Info("deleted", slog.String("repository", q.name()), slog.String("reference", q.route.ref), slog.String("actor", q.subject.Actor()))
	q.w.Header().Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}
