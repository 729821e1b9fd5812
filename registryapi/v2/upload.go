package v2

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	dist "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/registryapi/access"
)

// sessionCodeBytes of a session's code are enough: it is guessed online or not.
const sessionCodeBytes = 12

// startUpload answers POST: a mount, a whole blob in one request, or the start
// of a session.
func (h *Handler) startUpload(q *request) error {
	ctx := q.Context()
	// What the content will be named by, as far as the client says it now.
	alg := digest.Canonical
	if s := q.query.Get("mount"); s != "" {
		d, err := parseDigest(s)
		if err != nil {
			return err
		}
		alg = d.Algorithm()
		mounted, err := h.mount(q, d)
		if err != nil {
			return err
		}
		if mounted {
			return q.created(d)
		}
		// Not to be had from there: the client uploads, as the specification says.
	}
	if s := q.query.Get("digest-algorithm"); s != "" {
		var err error
		if alg, err = parseAlgorithm(s); err != nil {
			return err
		}
	}
	var want digest.Digest
	if s := q.query.Get("digest"); s != "" && q.query.Get("mount") == "" {
		var err error
		if want, err = parseDigest(s); err != nil {
			return err
		}
	}
	if want == "" {
		id, err := h.cfg.Store.CreateUploadFor(ctx, q.subject.Actor())
		if err == nil && alg != digest.Canonical {
			err = h.expect(q, id, alg)
		}
		if err != nil {
			return err
		}
		return q.uploadAnswer(http.StatusAccepted, h.session(q, id), 0)
	}
	up, err := h.cfg.Store.BeginUpload(ctx, q.subject.Actor())
	if err != nil {
		return err
	}
	if err := h.finish(q, up, want); err != nil {
		h.drop(q, up) // the client has no URL of it
		return err
	}
	return q.created(want)
}

// expect notes the algorithm that a session's content will be named by.
func (h *Handler) expect(q *request, id string, alg digest.Algorithm) error {
	up, err := h.cfg.Store.Upload(q.Context(), id)
	if err != nil {
		return err
	}
	if err := up.Expect(alg); err != nil {
		h.drop(q, up) // the client has no URL of it
		return err
	}
	return nil
}

// mount links a blob of another repository into this one. The subject must be
// able to pull it there, and it must not leave the sites where it may be.
func (h *Handler) mount(q *request, d digest.Digest) (bool, error) {
	from := q.query.Get("from")
	if from == "" {
		// Any repository of the same project will do: who may push here may
		// pull there, so the digest opens nothing new.
		if !h.cfg.Access.CanRepository(scopeless(q.subject), q.project, q.repo, access.Pull) {
			return false, nil
		}
		if _, _, ok, err := h.catalog.LinkedIn(q.project.PID, d); err != nil || !ok {
			return false, err
		}
		return h.mounted(q, d, q.project.PID)
	}
	project, repo, err := h.cfg.Access.Canonical(q.Request, from)
	if err != nil {
		return false, refuse(errcode.ErrorCodeNameInvalid, "from: %s", err)
	}
	src, ok := h.cfg.View().Project(project)
	if !ok || !h.cfg.Access.CanRepository(scopeless(q.subject), src, repo, access.Pull) || !within(q.project, src) {
		return false, nil
	}
	if !h.cfg.Access.CanRepository(q.subject, src, repo, access.Pull) {
		// Only the token stands in the way, and a wider one is to be had.
		return false, h.unauthorised(q, "insufficient_scope", "the token is not for the repository to mount from: ask the token service for one",
			challengeScopes(q, []access.Action{access.Push})...)
	}
	if _, ok, err := h.catalog.Linked(src.PID, repo, d); err != nil || !ok {
		return false, err
	}
	return h.mounted(q, d, src.PID)
}

// mounted gives the blob to this repository, if this store has it and it is the
// content of the project that it is mounted from.
func (h *Handler) mounted(q *request, d digest.Digest, from identity.ProjectID) (bool, error) {
	err := h.catalog.Mount(q.Context(), d, from, h.newLease(q))
	if absent(err) {
		return false, nil
	}
	if err == nil {
		h.metrics.pushed.WithLabelValues(pushedMount).Inc()
	}
	return err == nil, err
}

// within reports whether all sites where p may be are sites where src may be.
func within(p, src state.Project) bool {
	if len(src.Sites) == 0 {
		return true
	}
	if len(p.Sites) == 0 {
		return false
	}
	may := map[string]bool{}
	for _, s := range src.Sites {
		may[s] = true
	}
	for _, s := range p.Sites {
		if !may[s] {
			return false
		}
	}
	return true
}

// session names an upload in a URL: its id, and a code that binds it to the
// repository that it was begun in. Who learns an id from a log cannot go on
// with the upload under another repository's rights.
func (h *Handler) session(q *request, id string) string {
	m := hmac.New(sha256.New, h.sessionKey[:])
	m.Write(q.project.PID[:])
	m.Write([]byte(q.repo + "\x00" + id))
	return id + "." + hex.EncodeToString(m.Sum(nil)[:sessionCodeBytes])
}

// upload finds the session that the URL names.
func (h *Handler) upload(q *request) (*store.Upload, error) {
	id, _, _ := strings.Cut(q.route.ref, ".")
	if !uploadRegexp.MatchString(q.route.ref) || !hmac.Equal([]byte(q.route.ref), []byte(h.session(q, id))) {
		return nil, uploadUnknown(q.route.ref)
	}
	up, err := h.cfg.Store.Upload(q.Context(), id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, uploadUnknown(q.route.ref)
	}
	return up, err
}

func uploadUnknown(id string) error {
	return refuse(errcode.ErrorCodeBlobUploadUnknown, "there is no upload %s here: it has ended, or another site has it; start anew", clip(id))
}

func (h *Handler) uploadStatus(q *request) error {
	up, err := h.upload(q)
	if err != nil {
		return err
	}
	return q.uploadAnswer(http.StatusNoContent, q.route.ref, up.Offset())
}

func (h *Handler) patchUpload(q *request) error {
	up, err := h.upload(q)
	if err != nil {
		return err
	}
	if err := h.receive(q, up); err != nil {
		return err
	}
	return q.uploadAnswer(http.StatusAccepted, q.route.ref, up.Offset())
}

func (h *Handler) finishUpload(q *request) error {
	want, err := parseDigest(q.query.Get("digest"))
	if err != nil {
		return err
	}
	up, err := h.upload(q)
	if err != nil {
		return err
	}
	if err := h.finish(q, up, want); err != nil {
		return err
	}
	return q.created(want)
}

func (h *Handler) cancelUpload(q *request) error {
	up, err := h.upload(q)
	if err != nil {
		return err
	}
	if err := up.Cancel(); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	q.w.WriteHeader(http.StatusNoContent)
	return nil
}

var contentRangeRegexp = regexp.MustCompile(`^(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:\*|[0-9]{1,19}))?$`)

// parseContentRange reads the specification's "start-end", both inclusive, and
// HTTP's "bytes start-end/total".
func parseContentRange(s string) (start, length int64, err error) {
	m := contentRangeRegexp.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, fmt.Errorf("%q is not a content range: expected start-end", clip(s))
	}
	start, err1 := strconv.ParseInt(m[1], 10, 64)
	end, err2 := strconv.ParseInt(m[2], 10, 64)
	if err1 != nil || err2 != nil || end < start || end-start+1 <= 0 {
		return 0, 0, fmt.Errorf("%q is not a content range: the end is before the start, or too far", clip(s))
	}
	return start, end - start + 1, nil
}

// chunk checks what the request says about its body: where it starts and how
// long it is (-1 if it does not say). The upload that it gives takes the chunk
// at that place alone, also if another request comes first.
func (q *request) chunk(up *store.Upload) (at *store.Upload, content io.Reader, length int64, err error) {
	content, length = q.content(), q.ContentLength
	s := q.Header.Get("Content-Range")
	if s == "" {
		return up, content, length, nil
	}
	start, n, err := parseContentRange(s)
	if err != nil {
		return nil, nil, 0, q.outOfRange(up, refuse(errcode.ErrorCodeRangeInvalid, "%s", err))
	}
	if start != up.Offset() {
		return nil, nil, 0, q.wrongOffset(up, start)
	}
	if length >= 0 && length != n {
		return nil, nil, 0, refuse(errcode.ErrorCodeSizeInvalid, "the range is of %d bytes and the body of %d: they must be the same", n, length)
	}
	return up.At(start), &exactly{r: content, left: n}, n, nil
}

// exactly reads the bytes that a range announces: a body that ends before, or
// goes on after them, is an error, and not a shorter or a longer chunk.
type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		if n, err := io.ReadFull(e.r, make([]byte, 1)); n != 0 {
			return 0, errBodyGoesOn
		} else if !errors.Is(err, io.EOF) {
			return 0, err
		}
		return 0, io.EOF
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

var errBodyGoesOn = errors.New("the body goes on after the bytes of its range")

// receive appends the request's body to the upload. What was written stays when
// the client vanishes: it asks for the status and goes on.
func (h *Handler) receive(q *request, up *store.Upload) error {
	at, content, length, err := q.chunk(up)
	if err != nil {
		return err
	}
	n, err := at.Append(q.Context(), content)
	if err != nil {
		return q.uploadError(up, err)
	}
	if length >= 0 && n != length {
		return refuse(errcode.ErrorCodeSizeInvalid, "%d bytes were announced and %d came: ask for the upload's status and go on from there", length, n)
	}
	return nil
}

// finish appends the last chunk, if the request has one, proves the digest and
// makes the blob this repository's.
func (h *Handler) finish(q *request, up *store.Upload, want digest.Digest) error {
	var content io.Reader
	at := up
	if q.ContentLength != 0 {
		var err error
		if at, content, _, err = q.chunk(up); err != nil {
			return err
		}
	}
	if _, err := at.Finish(q.Context(), content, want, store.Link{PID: q.project.PID, Repo: q.repo}); err != nil {
		return q.uploadError(up, err)
	}
	h.metrics.pushed.WithLabelValues(pushedBlob).Inc()
	return nil
}

// uploadError gives the answer for what an upload did not take.
func (q *request) uploadError(up *store.Upload, err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return uploadUnknown(q.route.ref)
	case errors.Is(err, store.ErrWrongOffset):
		return q.wrongOffset(up, -1)
	case errors.Is(err, errBodyGoesOn):
		return refuse(errcode.ErrorCodeSizeInvalid, "%s: ask for the upload's status and go on from there", errBodyGoesOn)
	}
	return q.bodyError(err)
}

// wrongOffset refuses a chunk that does not begin where the upload stands; start
// below 0: it did when the request came.
func (q *request) wrongOffset(up *store.Upload, start int64) error {
	at := up.Offset()
	if start < 0 {
		return q.outOfRange(up, refuse(errcode.ErrorCodeRangeInvalid, "another request has written to this upload, which is at %d now: go on from there", at))
	}
	return q.outOfRange(up, refuse(errcode.ErrorCodeRangeInvalid, "the chunk starts at %d, but the upload is at %d: send that one next", start, at))
}

// bodyError tells the client's fault from the node's.
func (q *request) bodyError(err error) error {
	var tooLong *http.MaxBytesError
	if errors.As(err, &tooLong) {
		return refuseStatus(http.StatusRequestEntityTooLarge, errcode.ErrorCodeSizeInvalid, "the body is longer than %d bytes", tooLong.Limit)
	}
	goOn := "ask for the upload's status and go on from there"
	if q.route.name == dist.RouteNameManifest {
		goOn = "send it again"
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return refuseStatus(http.StatusRequestTimeout, errcode.ErrorCodeSizeInvalid, "fewer than %d bytes of the body came in %s: %s", bodyPieceBytes, q.stall, goOn)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return refuse(errcode.ErrorCodeSizeInvalid, "the body ended early: %s", goOn)
	}
	var fault *bodyFault
	if errors.As(err, &fault) {
		return refuse(errcode.ErrorCodeSizeInvalid, "the body cannot be read (%s): %s", clip(fault.err.Error()), goOn)
	}
	return err
}

func (q *request) outOfRange(up *store.Upload, e *apiError) error {
	return e.with("Location", q.url("blobs", "uploads", q.route.ref)).
		with("Range", rangeHeader(up.Offset())).
		with("Docker-Upload-Uuid", q.route.ref)
}

// rangeHeader says what has come so far. There is no form for nothing; "0-0"
// is what distribution has taught the clients.
func rangeHeader(offset int64) string {
	return "0-" + strconv.FormatInt(max(0, offset-1), 10)
}

func (q *request) uploadAnswer(status int, id string, offset int64) error {
	head := q.w.Header()
	head.Set("Location", q.url("blobs", "uploads", id))
	head.Set("Range", rangeHeader(offset))
	head.Set("Docker-Upload-Uuid", id)
	if status != http.StatusNoContent {
		head.Set("Content-Length", "0")
	}
	q.w.WriteHeader(status)
	return nil
}

// drop ends an upload that the client has no URL of.
func (h *Handler) drop(q *request, up *store.Upload) {
	if err := up.Cancel(); err != nil && !errors.Is(err, store.ErrNotFound) {
		h.log.Warn("upload not removed: it goes when it expires", slog.String("repository", q.name()), slog.Any("error", err))
	}
}

// created is the answer for a blob that is in the repository now.
func (q *request) created(d digest.Digest) error {
	head := q.w.Header()
	head.Set("Location", q.url("blobs", d.String()))
	head.Set("Docker-Content-Digest", d.String())
	head.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}
