package v2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// parseDigest reads a digest of an algorithm that this registry keeps.
func parseDigest(s string) (digest.Digest, error) {
	d, err := units.ParseDigest(s)
	if err == nil {
		return d, nil
	}
	// The grammar's own word tells an algorithm that is not kept here from a slip.
	if verr := d.Validate(); verr == nil || errors.Is(verr, digest.ErrDigestUnsupported) {
		return "", refuse(errcode.ErrorCodeDigestInvalid, "digest %q: only sha256 and sha512 are supported", clip(s))
	}
	return "", refuse(errcode.ErrorCodeDigestInvalid, "%q is not a digest: expected sha256: and 64, or sha512: and 128 hexadecimal digits in lower case", clip(s))
}

// parseAlgorithm reads the name of a digest algorithm.
func parseAlgorithm(s string) (digest.Algorithm, error) {
	alg := digest.Algorithm(s)
	if units.CheckAlgorithm(alg) != nil {
		return "", refuse(errcode.ErrorCodeDigestInvalid, "digest algorithm %q: only sha256 and sha512 are supported", clip(s))
	}
	return alg, nil
}

func blobUnknown(d digest.Digest, name string) error {
	e := refuse(errcode.ErrorCodeBlobUnknown, "repository %s has no blob %s", name, d)
	e = e.detail(map[string]string{"digest": d.String()})
	return e
}

// getBlob answers GET and HEAD. Only what this repository names or has been
// given is there: a digest alone opens nothing.
func (h *Handler) getBlob(q *request) error {
	d, err := parseDigest(q.route.ref)
	if err != nil {
		return err
	}
	ctx := q.Context()
	size, ok, err := h.catalog.Linked(q.project.PID, q.repo, d)
	if err != nil {
		return err
	}
	if !ok {
		return blobUnknown(d, q.name())
	}
	want := Want{PID: q.project.PID, Repo: q.repo, Digest: d, Size: size, Subject: q.subject.Actor()}
	q.w.Header().Set("Cache-Control", keepForGood)
	if q.Method == http.MethodHead {
		return h.headBlob(q, want)
	}
	if notModified(q.Request, d) {
		return q.unchanged(d)
	}
	proven, err := h.catalog.Proven(q.project.PID, d)
	if err != nil {
		return err
	}
	if h.cfg.Redirect && proven {
		if u, err := h.cfg.Store.URL(q.Request, d); err != nil {
			h.log.Warn("blob is served instead of redirected", slog.String("digest", d.String()), slog.Any("error", err))
		} else if u != "" {
			defer h.asked(q.Request, want, false)()
			return h.redirect(q, d, u)
		}
	}
	b, err := h.openHere(ctx, q, d)
	if err == nil {
		defer func() { _ = b.Close() }()
		end := h.asked(q.Request, want, false)
		defer end()
		mend := &mending{h: h, ctx: ctx, want: want, now: b}
		defer mend.Close()
		var content io.ReadSeeker = mend
		if f := b.File(); f != nil {
			content = f // sendfile
		}
		if err = h.serveContent(q, d, "application/octet-stream", content); err == nil {
			h.metrics.served.WithLabelValues(fromStore).Inc()
			return nil
		}
	}
	if !absent(err) && !errors.Is(err, store.ErrCorrupt) {
		return err
	}
	arriving, err := h.open(ctx, want)
	if errors.Is(err, store.ErrNotFound) {
		return blobUnknown(d, q.name())
	}
	if err != nil {
		return err
	}
	defer func() { _ = arriving.Close() }()
	defer h.asked(q.Request, want, true)()
	h.metrics.served.WithLabelValues(fromMesh).Inc()
	return h.serveContent(q, d, "application/octet-stream", arriving)
}

// redirect sends the client to the bucket. Who it is has been decided: the URL
// itself opens the blob, for some minutes, so that nobody may keep the answer.
func (h *Handler) redirect(q *request, d digest.Digest, to string) error {
	head := q.w.Header()
	setDigest(head, d)
	h.metrics.served.WithLabelValues(fromBucket).Inc()
	head.Set("Cache-Control", keepNever)
	head.Set("Location", to)
	head.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// openHere opens what is here and the project's. What is here for another project is
// not: the source brings it, or has it proven.
func (h *Handler) openHere(ctx context.Context, q *request, d digest.Digest) (store.Blob, error) {
	proven, err := h.catalog.Proven(q.project.PID, d)
	if err != nil {
		return nil, err
	}
	if !proven {
		return nil, fmt.Errorf("blob %s: %w", d, store.ErrNotFound)
	}
	return h.cfg.Store.Open(ctx, d)
}

func (h *Handler) open(ctx context.Context, w Want) (Blob, error) {
	if h.cfg.Source == nil {
		return nil, store.ErrNotFound
	}
	return h.cfg.Source.OpenBlob(ctx, w)
}

// headBlob says 200 only for what a push may rely on: held here, and then the
// lease begins anew, or with a holder in reach.
func (h *Handler) headBlob(q *request, want Want) error {
	ctx := q.Context()
	row, err := h.catalog.BlobIn(want.PID, want.Digest)
	size := row.Size
	switch {
	case err == nil:
		// Renewed, not given: a blob that was deleted in between stays deleted.
		if err = h.catalog.RenewLease(ctx, want.Digest, h.newLease(q)); err == nil {
			break
		}
		if !absent(err) {
			return err
		}
		fallthrough // collected or deleted in between
	case absent(err):
		if h.cfg.Source == nil {
			return blobUnknown(want.Digest, q.name())
		}
		if err = h.cfg.Source.Available(ctx, want); errors.Is(err, store.ErrNotFound) {
			return blobUnknown(want.Digest, q.name())
		} else if err != nil {
			return err
		}
		size = want.Size
	default:
		return err
	}
	head := q.w.Header()
	head.Set("Content-Type", "application/octet-stream")
	head.Set("Content-Length", strconv.FormatInt(size, 10))
	head.Set("Accept-Ranges", "bytes")
	setDigest(head, want.Digest)
	if notModified(q.Request, want.Digest) {
		head.Del("Content-Length")
		head.Del("Content-Type")
		return q.unchanged(want.Digest)
	}
	q.w.WriteHeader(http.StatusOK)
	return nil
}

// newLease keeps a blob for this repository for as long as a client may rely on what
// it learned.
func (h *Handler) newLease(q *request) catalog.Lease {
	return catalog.Lease{PID: q.project.PID, Repo: q.repo, Until: h.cfg.Now().Add(store.LeaseFor)}
}

// absent reports whether err says that this store does not have it.
func absent(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, catalog.ErrNotFound) || errors.Is(err, catalog.ErrDeleting)
}

func setDigest(head http.Header, d digest.Digest) {
	head.Set("Docker-Content-Digest", d.String())
	head.Set("ETag", `"`+d.String()+`"`)
}

// What an answer says to caches. A digest's bytes never change, but who may see
// them does, so only the client's own cache may keep them.
const (
	keepForGood = "private, max-age=31536000, immutable"
	askAgain    = "no-cache"
	keepNever   = "no-store"
)

// notModified reports whether the client has d already. Some clients leave out
// the quotes.
func notModified(r *http.Request, d digest.Digest) bool {
	for _, v := range r.Header.Values("If-None-Match") {
		for tag := range strings.SplitSeq(v, ",") {
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if tag == "*" || strings.Trim(tag, `"`) == d.String() {
				return true
			}
		}
	}
	return false
}

func (q *request) unchanged(d digest.Digest) error {
	setDigest(q.w.Header(), d)
	q.w.WriteHeader(http.StatusNotModified)
	return nil
}

// serveContent sends content with ranges and conditions. An error is one of the
// first read: nothing was written, and there is another answer to give. Once the
// head is out there is no way to say that something went wrong but to cut the
// connection: a client must never take half a blob for a whole one.
func (h *Handler) serveContent(q *request, d digest.Digest, mediaType string, content io.ReadSeeker) error {
	head := q.w.Header()
	head.Set("Content-Type", mediaType)
	setDigest(head, d)
	w := newPaced(q.w, q.stall)
	defer w.done()
	if f, ok := content.(*os.File); ok {
		// A file's errors need no watch: too few bytes for the Content-Length
		// make net/http cut the connection.
		http.ServeContent(w, asked(q.Request), "", time.Time{}, f)
		return nil
	}
	watched := &watchedReader{ReadSeeker: content}
	late := &lateHead{ResponseWriter: w}
	early, ok := content.(EarlyBlob)
	end := &keptEnd{ResponseWriter: w}
	if ok {
		early.Early()
		late.ResponseWriter = end
	}
	http.ServeContent(late, asked(q.Request), "", time.Time{}, watched)
	err := watched.end()
	if err == nil && ok {
		err = early.Proven()
	}
	if err == nil {
		late.flush()
		end.release()
		return nil
	}
	if !late.out {
		for _, name := range []string{"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "Docker-Content-Digest", "ETag"} {
			head.Del(name)
		}
		return err
	}
	h.log.Warn("content cut off", slog.String("repository", q.name()), slog.String("digest", d.String()), slog.Any("error", err))
	panic(http.ErrAbortHandler)
}

// mostRanges is how many ranges of one blob are given in one answer: each may be a
// request to a bucket. RFC 9110 has servers ignore what asks for more than makes sense.
const mostRanges = 16

// asked is the request, without its ranges if they are too many.
func asked(r *http.Request) *http.Request {
	if strings.Count(r.Header.Get("Range"), ",") < mostRanges {
		return r
	}
	r = r.Clone(r.Context())
	r.Header.Del("Range")
	return r
}

// keptEnd keeps the last byte of a body back until it is released: without it
// nobody takes the body for whole.
type keptEnd struct {
	http.ResponseWriter
	left int64 // of the Content-Length
	last []byte
}

// WriteHeader notes how long the body will be. If nothing says so, the first write
// counts as all of it, and a second one fails.
func (w *keptEnd) WriteHeader(status int) {
	w.left, _ = strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
	w.ResponseWriter.WriteHeader(status)
}

func (w *keptEnd) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if w.last != nil {
		return 0, http.ErrContentLength
	}
	if int64(len(b)) < w.left {
		n, err := w.ResponseWriter.Write(b)
		w.left -= int64(n)
		return n, err
	}
	if n, err := w.ResponseWriter.Write(b[:len(b)-1]); err != nil {
		return n, err
	}
	w.last = []byte{b[len(b)-1]}
	return len(b), nil
}

// release lets the body end. An error of the connection ends it as well.
func (w *keptEnd) release() {
	if w.last != nil {
		_, _ = w.ResponseWriter.Write(w.last)
	}
}

// lateHead keeps the status back until the first byte is there.
type lateHead struct {
	http.ResponseWriter
	status int
	out    bool
}

func (w *lateHead) WriteHeader(status int) { w.status = status }

func (w *lateHead) Write(b []byte) (int, error) {
	w.flush()
	return w.ResponseWriter.Write(b)
}

func (w *lateHead) flush() {
	if !w.out && w.status != 0 {
		w.ResponseWriter.WriteHeader(w.status)
	}
	w.out = true
}

// watchedReader remembers why reading ended early; http.ServeContent does not
// tell. Several ranges it reads in a goroutine that can outlive it, when the client
// goes: end makes sure that nobody reads what is about to be closed.
type watchedReader struct {
	io.ReadSeeker

	mu    sync.Mutex
	ended bool
	err   error
}

func (r *watchedReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return 0, os.ErrClosed
	}
	n, err := r.ReadSeeker.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}

func (r *watchedReader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return 0, os.ErrClosed
	}
	return r.ReadSeeker.Seek(offset, whence)
}

// end waits for a call under way, lets no other through, and gives what went wrong.
func (r *watchedReader) end() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	return r.err
}

func (h *Handler) serveBytes(q *request, d digest.Digest, mediaType string, b []byte) {
	head := q.w.Header()
	head.Set("Content-Type", mediaType)
	setDigest(head, d)
	w := newPaced(q.w, q.stall)
	defer w.done()
	http.ServeContent(w, asked(q.Request), "", time.Time{}, bytes.NewReader(b))
}

// deleteBlob takes the blob out of this repository: what has been given to it
// and no manifest needs. The bytes go when nobody needs them any more.
func (h *Handler) deleteBlob(q *request) error {
	d, err := parseDigest(q.route.ref)
	if err != nil {
		return err
	}
	if _, ok, err := h.catalog.Linked(q.project.PID, q.repo, d); err != nil {
		return err
	} else if !ok {
		return blobUnknown(d, q.name())
	}
	switch err := h.catalog.EndLease(q.Context(), d, q.project.PID, q.repo); {
	case errors.Is(err, catalog.ErrInUse):
		return refuse(errcode.ErrorCodeUnsupported, "repository %s still needs blob %s: delete the manifests that name it first", q.name(), d)
	case err != nil && !absent(err):
		return err
	case err != nil:
		// Not held here. What a manifest names is not to be deleted all the same.
		if _, ok, err := h.catalog.Linked(q.project.PID, q.repo, d); err != nil {
			return err
		} else if ok {
			return refuse(errcode.ErrorCodeUnsupported, "repository %s still needs blob %s: delete the manifests that name it first", q.name(), d)
		}
	}
	q.w.Header().Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}
