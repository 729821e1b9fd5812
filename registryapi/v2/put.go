package v2

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/manifest"
	"github.com/portolan/portolan/node/store/units"
)

// maxTagsPerPut bounds the tags that one PUT by digest may set.
const maxTagsPerPut = 64

// putManifest takes a manifest by tag or by digest. Everything that it names
// must be in this repository, at some site; then manifest and tags become
// visible in one batch.
func (h *Handler) putManifest(q *request) error {
	tags, want, err := putReference(q)
	if err != nil {
		return err
	}
	body, done, err := h.manifestBody(q)
	if err != nil {
		return err
	}
	defer done()
	// Only now: a client that sends slowly must not hold up the site's removal.
	end, err := h.beginPush()
	if err != nil {
		return err
	}
	defer end()
	alg := digest.Canonical
	if want != "" {
		alg = want.Algorithm()
	}
	d := alg.FromBytes(body)
	if want != "" && want != d {
		e := refuse(errcode.ErrorCodeDigestInvalid, "the manifest has digest %s, not %s as the path says", d, want)
		e = e.detail(map[string]string{"digest": want.String()})
		return e
	}
	m, err := h.parseManifest(q, body)
	if err != nil {
		return err
	}
	if err := named(m); err != nil {
		return err
	}
	cond, err := condition(q)
	if err != nil {
		return err
	}
	refs, err := h.complete(q, m)
	if err != nil {
		return err
	}
	put := catalog.Put{
		PID: q.project.PID, Repo: q.repo,
		Digest: d, MediaType: m.MediaType, Size: int64(len(body)), Bytes: body,
		ArtifactType: m.ArtifactType, Refs: refs, Tags: tags,
		Home: h.cfg.Site, Actor: q.subject.Actor(), ACLIndex: q.aclIndex,
	}
	if m.Subject != nil {
		put.Subject = m.Subject.Digest
	}
	if len(body) > catalog.MaxInlineManifest {
		// Durable as a blob before anything names it.
		if _, err := h.cfg.Store.PutContent(q.Context(), d, body, store.Link{PID: q.project.PID, Repo: q.repo}); err != nil {
			return err
		}
		put.Bytes = nil
	}
	if err := h.tags.Put(q.Context(), put, cond); err != nil {
		if errors.Is(err, catalog.ErrTooLarge) {
			return refuseStatus(http.StatusRequestEntityTooLarge, errcode.ErrorCodeManifestInvalid, "the manifest names more than one request can take: split it into several")
		}
		return err
	}
	if h.cfg.Claimer != nil {
		h.cfg.Claimer.Accepted(q.project.PID, q.repo, d)
	}
	h.metrics.pushed.WithLabelValues(pushedManifest).Inc()
	h.log.Info("pushed", slog.String("repository", q.name()), slog.Any("tags", tags), slog.String("digest", d.String()), slog.String("actor", put.Actor))

	head := q.w.Header()
	head.Set("Location", q.url("manifests", d.String()))
	head.Set("Docker-Content-Digest", d.String())
	if put.Subject != "" {
		head.Set("Oci-Subject", put.Subject.String())
	}
	for _, t := range q.query["tag"] {
		head.Add("Oci-Tag", t)
	}
	q.advise(m, tags)
	head.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

// beginPush passes the gate of pushes; end must be called after it.
func (h *Handler) beginPush() (end func(), err error) {
	if h.cfg.Pushing == nil {
		return func() {}, nil
	}
	end, wait := h.cfg.Pushing()
	if wait > 0 {
		return nil, unavailable("site "+h.cfg.Site+" is about to be removed and takes no pushes at the moment: push to another site", wait)
	}
	return end, nil
}

// putReference reads what the path and, at a PUT by digest, the parameters
// "tag" ask to be set.
func putReference(q *request) (tags []string, want digest.Digest, err error) {
	if !isDigest(q.route.ref) {
		tags = []string{q.route.ref}
	} else {
		if want, err = parseDigest(q.route.ref); err != nil {
			return nil, "", err
		}
		tags = q.query["tag"]
		if len(tags) > maxTagsPerPut {
			return nil, "", refuse(errcode.ErrorCodeTagInvalid, "%d tags in one request: %d are the most", len(tags), maxTagsPerPut)
		}
	}
	for _, t := range tags {
		if !tagRegexp.MatchString(t) {
			return nil, "", refuse(errcode.ErrorCodeTagInvalid, "%q is not a tag: up to 128 letters, digits, _ . and -, and no . or - first", clip(t))
		}
	}
	return tags, want, nil
}

// manifestBody reads the whole body, as large as is taken. Call done when it is not
// needed any more.
func (h *Handler) manifestBody(q *request) (body []byte, done func(), err error) {
	most := h.cfg.Limits.ManifestBytes
	tooLarge := refuseStatus(http.StatusRequestEntityTooLarge, errcode.ErrorCodeSizeInvalid, "the manifest is larger than %d bytes, which are the most", most)
	if q.ContentLength > most {
		return nil, nil, tooLarge
	}
	content, done := q.content(), func() {}
	if body, err = io.ReadAll(io.LimitReader(content, largeManifest)); err == nil && len(body) == largeManifest {
		user := q.subject.Actor()
		if err = h.large.begin(user); err != nil {
			return nil, nil, err
		}
		done = func() { h.large.end(user) }
		whole := bytes.NewBuffer(append(make([]byte, 0, most+1+bytes.MinRead), body...))
		_, err = whole.ReadFrom(io.LimitReader(content, most+1-int64(len(body))))
		body = whole.Bytes()
	}
	switch {
	case err != nil:
		done()
		return nil, nil, q.bodyError(err)
	case int64(len(body)) > most:
		done()
		return nil, nil, tooLarge
	}
	return body, done, nil
}

func (h *Handler) parseManifest(q *request, body []byte) (*manifest.Manifest, error) {
	contentType, mediaType := q.Header.Get("Content-Type"), ""
	if contentType != "" {
		var err error
		if mediaType, _, err = mime.ParseMediaType(contentType); err != nil {
			return nil, refuse(errcode.ErrorCodeManifestInvalid, "the Content-Type %q cannot be read", clip(contentType))
		}
	}
	m, err := h.large.parse(q.Context(), mediaType, body)
	if errors.Is(err, manifest.ErrTooLarge) {
		return nil, refuseStatus(http.StatusRequestEntityTooLarge, errcode.ErrorCodeManifestInvalid, "%s", err)
	}
	if err != nil && q.Context().Err() != nil {
		return nil, err
	}
	if err != nil {
		return nil, refuse(errcode.ErrorCodeManifestInvalid, "%s", err)
	}
	return m, nil
}

// named refuses a manifest that names something by an algorithm that is not kept
// here: nobody could push what it names.
func named(m *manifest.Manifest) error {
	all := slices.Concat(m.Blobs(), m.Manifests)
	if m.Subject != nil {
		all = append(all, *m.Subject)
	}
	for _, desc := range all {
		if units.CheckDigest(desc.Digest) != nil {
			return refuse(errcode.ErrorCodeManifestInvalid, "the manifest names %s: only sha256 and sha512 are supported", clip(desc.Digest.String()))
		}
	}
	return nil
}

// complete checks that everything the manifest names is in this repository. The
// subject need not be: it may be pushed later.
func (h *Handler) complete(q *request, m *manifest.Manifest) ([]catalog.Ref, error) {
	var refs []catalog.Ref
	var elsewhere []Want // blobs that the store here does not have
	for _, b := range m.Blobs() {
		here, err := h.holds(q, b)
		if err != nil {
			return nil, err
		}
		if !here {
			elsewhere = append(elsewhere, Want{PID: q.project.PID, Repo: q.repo, Digest: b.Digest, Size: b.Size})
		}
		refs = append(refs, catalog.Ref{Digest: b.Digest, Size: b.Size, Kind: catalog.RefBlob})
	}

	children, missing, err := h.children(q, m)
	if err != nil {
		return nil, err
	}
	var unreachable []string
	if len(missing) > 0 {
		unreachable = h.refresh(q)
		if children, missing, err = h.children(q, m); err != nil {
			return nil, err
		}
	}
	refs = append(refs, children...)

	if len(elsewhere) > 0 {
		claim, err := h.claim(q, elsewhere)
		if err != nil {
			return nil, err
		}
		missing = append(missing, claim.Missing...)
		unreachable = claim.Unreachable
		if err := h.checkSizes(q, elsewhere); err != nil {
			return nil, err
		}
	}
	if len(missing) > 0 {
		return nil, blobsMissing(q, missing, unreachable)
	}
	return refs, nil
}

// holds reports whether this store has the blob and the repository has it too.
func (h *Handler) holds(q *request, desc manifest.Descriptor) (bool, error) {
	if _, ok, err := h.catalog.Linked(q.project.PID, q.repo, desc.Digest); err != nil || !ok {
		return false, err
	}
	row, err := h.catalog.BlobIn(q.project.PID, desc.Digest)
	if absent(err) {
		return false, nil
	}
	if err == nil && row.Size != desc.Size {
		return false, wrongSize(desc, row.Size)
	}
	return err == nil, err
}

// checkSizes compares sizes with those of what is here now: of blobs that another
// repository of the project has.
func (h *Handler) checkSizes(q *request, claimed []Want) error {
	for _, w := range claimed {
		row, err := h.catalog.BlobIn(q.project.PID, w.Digest)
		if err == nil && row.Size != w.Size {
			return wrongSize(manifest.Descriptor{Digest: w.Digest, Size: w.Size}, row.Size)
		}
		if err != nil && !absent(err) {
			return err
		}
	}
	return nil
}

// wrongSize refuses a manifest that no client could pull: they check sizes.
func wrongSize(desc manifest.Descriptor, size int64) error {
	return refuse(errcode.ErrorCodeManifestInvalid, "the manifest gives %s a size of %d bytes: it has %d", desc.Digest, desc.Size, size)
}

func (h *Handler) claim(q *request, want []Want) (Claim, error) {
	if h.cfg.Claimer == nil {
		var c Claim
		for _, w := range want {
			c.Missing = append(c.Missing, w.Digest)
		}
		return c, nil
	}
	return h.cfg.Claimer.Claim(q.Context(), q.project.PID, q.repo, want)
}

// children finds the manifests of an index. A descriptor of an index may name
// something that was pushed as a blob.
func (h *Handler) children(q *request, m *manifest.Manifest) (refs []catalog.Ref, missing []digest.Digest, err error) {
	for _, c := range m.Manifests {
		info, err := h.catalog.Manifest(q.project.PID, q.repo, c.Digest)
		if err == nil {
			if info.Size != c.Size {
				return nil, nil, wrongSize(c, info.Size)
			}
			refs = append(refs, catalog.Ref{Digest: c.Digest, Size: c.Size, Kind: catalog.RefManifest})
			continue
		}
		if !errors.Is(err, catalog.ErrNotFound) {
			return nil, nil, err
		}
		here, err := h.holds(q, c)
		if err != nil {
			return nil, nil, err
		}
		if !here {
			missing = append(missing, c.Digest)
			continue
		}
		refs = append(refs, catalog.Ref{Digest: c.Digest, Size: c.Size, Kind: catalog.RefBlob})
	}
	return refs, missing, nil
}

// namedMissing bounds how many missing digests an answer lists.
const namedMissing = 100

func blobsMissing(q *request, missing []digest.Digest, unreachable []string) error {
	more := ""
	if len(unreachable) > 0 {
		more = "; it may be at " + strings.Join(unreachable, ", ") + ", which cannot be reached from here"
	}
	e := &apiError{status: errcode.ErrorCodeManifestBlobUnknown.Descriptor().HTTPStatusCode}
	for i, d := range missing {
		if i == namedMissing {
			break
		}
		detail := map[string]any{"digest": d.String()}
		if len(unreachable) > 0 {
			detail["unreachable"] = unreachable
		}
		e.errs = append(e.errs, errcode.ErrorCodeManifestBlobUnknown.
			WithMessage("repository "+q.name()+" has no "+d.String()+", which the manifest names: push it first"+more).
			WithDetail(detail))
	}
	return e
}
