package v2

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
)

func writeJSON(q *request, mediaType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	q.w.Header().Set("Content-Type", mediaType)
	q.w.Header().Set("Cache-Control", askAgain)
	q.w.WriteHeader(http.StatusOK)
	if q.Method != http.MethodHead {
		_, _ = q.w.Write(b) // an error is the client's leaving
	}
	return nil
}

// listTags answers tags/list in the order of bytes.
func (h *Handler) listTags(q *request) error {
	n, err := h.pageSize(q)
	if err != nil {
		return err
	}
	if ok, err := h.hasRepository(q); err != nil {
		return err
	} else if !ok {
		h.refresh(q)
		if ok, err = h.hasRepository(q); err != nil {
			return err
		}
		if !ok {
			return refuse(errcode.ErrorCodeNameUnknown, "there is no repository %s: push to it, and it is there", q.name())
		}
	}
	tags := []string{}
	if n > 0 {
		// One more than asked for says whether there is a next page.
		if tags, err = h.catalog.Tags(q.project.PID, q.repo, q.query.Get("last"), n+1); err != nil {
			return err
		}
		if len(tags) > n {
			tags = tags[:n]
			q.link(n, tags[n-1], nil)
		}
	}
	if tags == nil {
		tags = []string{}
	}
	return writeJSON(q, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{q.route.repo, tags})
}

func (h *Handler) hasRepository(q *request) (bool, error) {
	info, err := h.catalog.Repository(q.project.PID, q.repo)
	if errors.Is(err, catalog.ErrNotFound) {
		return false, nil
	}
	return err == nil && info.Tags+info.Manifests > 0, err
}

// listRepositories answers _catalog: what the subject may pull, in the order of
// bytes. Projects that the subject does not see cost nothing.
func (h *Handler) listRepositories(q *request) error {
	if q.subject.Scope != nil && !q.subject.Scope.Catalog {
		return h.unauthorised(q, "insufficient_scope", "the token is not for the list of repositories: ask the token service for one", access.CatalogScope)
	}
	n, err := h.pageSize(q)
	if err != nil {
		return err
	}
	names := []string{}
	from := q.query.Get("last")
	lastProject, lastRepo, inProject := strings.Cut(from, "/")
	if inProject {
		from = lastProject + "/"
	}
	subject := scopeless(q.subject)
	v := h.cfg.View()
	visible := v.ProjectsOf(subject.UserID, from)
	if subject.Admin {
		visible = v.ProjectsFrom(from)
	}
	for p := range visible {
		if len(names) > n || n == 0 {
			break
		}
		if !h.cfg.Access.Can(subject, p, access.Pull) || !v.MayRest(p, h.cfg.Site) {
			continue
		}
		after := ""
		if p.Name == lastProject {
			after = lastRepo
		}
		repos, err := h.catalog.Repositories(p.PID, after, n+1-len(names))
		if err != nil {
			return err
		}
		for _, r := range repos {
			names = append(names, p.Name+"/"+r)
		}
	}
	if n > 0 && len(names) > n {
		names = names[:n]
		q.link(n, names[n-1], nil)
	}
	return writeJSON(q, "application/json", struct {
		Repositories []string `json:"repositories"`
	}{names})
}

const (
	// referrersBytes bounds one page of referrers: annotations are of any
	// length, and clients take 4 MiB.
	referrersBytes = 3 << 20
	// referrersPage bounds the manifests that are read for one page, and
	// referrersRead the bytes of them: annotations may be the least of it.
	referrersPage = 200
	referrersRead = 16 << 20
)

// listReferrers answers with an index of what names the digest as its subject.
// There is always one, also of nothing.
func (h *Handler) listReferrers(q *request) error {
	subject, err := parseDigest(q.route.ref)
	if err != nil {
		return err
	}
	n, err := h.pageSize(q)
	if err != nil {
		return err
	}
	if n == 0 || n > referrersPage {
		n = referrersPage
	}
	last := digest.Digest(q.query.Get("last"))
	if last != "" {
		if last, err = parseDigest(last.String()); err != nil {
			return err
		}
	}
	// No media type has a space in it: it is a plus sign that was not escaped.
	artifactType := strings.ReplaceAll(q.query.Get("artifactType"), " ", "+")
	own, err := h.catalog.Referrers(q.project.PID, q.repo, subject, artifactType, last, n+1)
	if err != nil {
		return err
	}
	others, err := h.fallback(q, subject, artifactType, last, n+1)
	if err != nil {
		return err
	}
	found := merge(own, others)
	more := len(found) > n
	if more {
		found = found[:n]
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	size, read := 0, int64(0)
	for i, r := range found {
		if read += r.Size; read > referrersRead && i > 0 {
			more = true
			break
		}
		desc := h.referrer(q, r)
		b, err := json.Marshal(desc)
		if err != nil {
			return err
		}
		if size += len(b); size > referrersBytes && i > 0 {
			more = true
			break
		}
		index.Manifests = append(index.Manifests, desc)
	}
	filter := url.Values{}
	if artifactType != "" {
		q.w.Header().Set("Oci-Filters-Applied", "artifactType")
		filter.Set("artifactType", artifactType)
	}
	if more {
		q.link(n, index.Manifests[len(index.Manifests)-1].Digest.String(), filter)
	}
	return writeJSON(q, ocispec.MediaTypeImageIndex, index)
}

// referrer describes a manifest with its annotations, where its bytes are here
// or can be had.
func (h *Handler) referrer(q *request, r listed) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: r.MediaType, Digest: r.Digest, Size: r.Size, ArtifactType: r.ArtifactType, Annotations: r.annotations}
	if desc.Annotations != nil {
		return desc
	}
	b, err := h.manifestBytes(q.Context(), q, r.ManifestInfo)
	if err != nil {
		h.log.Warn("referrer listed without its annotations", slog.String("repository", q.name()), slog.String("digest", r.Digest.String()), slog.Any("error", err))
		q.warn("%s cannot be read now: its annotations are missing here", r.Digest)
		return desc
	}
	if m, err := h.large.parse(q.Context(), r.MediaType, b); err == nil {
		desc.Annotations = m.Annotations
	}
	return desc
}

func (h *Handler) manifestBytes(ctx context.Context, q *request, info catalog.ManifestInfo) ([]byte, error) {
	if b, ok, err := h.catalog.ContentIn(q.project.PID, info.Digest); err == nil && ok {
		return b, nil
	}
	content, err := h.openContent(ctx, q, info.Digest, info.Size)
	if err != nil {
		return nil, err
	}
	defer func() { _ = content.Close() }()
	return io.ReadAll(io.LimitReader(content, h.cfg.Limits.ManifestBytes))
}
