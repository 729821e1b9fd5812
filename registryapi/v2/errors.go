package v2

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"syscall"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
)

// apiError is an answer that refuses: what a handler returns when it knows what
// the client should hear. Any other error is a fault of the node's.
type apiError struct {
	status     int
	errs       errcode.Errors
	retryAfter time.Duration // header Retry-After, if not zero
	header     http.Header   // further headers, may be nil
}

func (e *apiError) Error() string { return e.errs.Error() }

// refuse makes an apiError with the status that the code stands for.
func refuse(code errcode.ErrorCode, format string, args ...any) *apiError {
	return refuseStatus(code.Descriptor().HTTPStatusCode, code, format, args...)
}

func refuseStatus(status int, code errcode.ErrorCode, format string, args ...any) *apiError {
	return &apiError{status: status, errs: errcode.Errors{code.WithMessage(fmt.Sprintf(format, args...))}}
}

// detail says more of the failure, for programs.
func (e *apiError) detail(d any) *apiError {
	for i, one := range e.errs {
		var known errcode.Error
		if errors.As(one, &known) {
			e.errs[i] = known.WithDetail(d)
		}
	}
	return e
}

// with adds a header to the answer.
func (e *apiError) with(key, value string) *apiError {
	if e.header == nil {
		e.header = http.Header{}
	}
	e.header.Set(key, value)
	return e
}

// unreachableRetry is what a client is told when the one who knows the sites
// gave no better figure.
const unreachableRetry = 5 * time.Second

// bucketRetry is when a bucket that is away may be back.
const bucketRetry = 10 * time.Second

// bucketLogEvery: each request may fail while a bucket is away. The metrics of the
// store count them.
const bucketLogEvery = time.Minute

// classify turns the errors of the layers below into answers.
func (h *Handler) classify(err error) *apiError {
	var ae *apiError
	var gone *store.Unreachable
	var later *Unavailable
	var busy *access.TooMany
	var bucket *store.Unavailable
	switch {
	case errors.As(err, &ae):
		return ae
	case decided(err) != nil:
		return decided(err)
	case errors.As(err, &gone):
		e := refuse(errcode.ErrorCodeUnavailable, "%s", gone.Error())
		e = e.detail(map[string]any{"sites": gone.Sites})
		e.retryAfter = gone.RetryAfter
		if e.retryAfter <= 0 {
			e.retryAfter = unreachableRetry
		}
		return e
	case errors.As(err, &later):
		h.log.Debug("content not to be had at the moment", slog.Any("error", later.Err))
		return unavailable(later.Reason, later.RetryAfter)
	case errors.Is(err, store.ErrNoRecord), errors.Is(err, store.ErrFetchBusy), errors.Is(err, store.ErrIncomplete), errors.Is(err, store.ErrCorrupt):
		// What was here is damaged or half here: it comes from another site, soon.
		h.log.Warn("content is not whole here", slog.Any("error", err))
		return unavailable("site "+h.cfg.Site+" cannot give this content at the moment: try again", 0)
	case errors.As(err, &busy):
		e := refuse(errcode.ErrorCodeTooManyRequests, "%s", busy.Error())
		e.retryAfter = busy.RetryAfter
		return e
	case errors.As(err, &bucket):
		h.bucketAway.Do(func() {
			h.log.Error("the bucket of this site's blobs is unavailable", slog.String("bucket", bucket.Place), slog.String("cause", bucket.Cause))
		})
		h.log.Debug("a request needs the bucket, which is unavailable", slog.String("bucket", bucket.Place), slog.String("cause", bucket.Cause))
		// The cause has addresses and names of the site's own network.
		does := "does not answer as it should"
		if bucket.Refused {
			does = "refuses what the site asks of it"
		}
		e := refuse(errcode.ErrorCodeUnavailable, "site %s keeps this in %s, which %s: try again later, or ask the operator of the site", h.cfg.Site, bucket.Place, does)
		e.retryAfter = bucketRetry
		return e
	case errors.Is(err, store.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT): // the catalogue's are bare
		return refuseStatus(http.StatusInsufficientStorage, errcode.ErrorCodeUnavailable,
			"site %s has no space left for this: free some there, or push at another site", h.cfg.Site)
	case errors.Is(err, store.ErrTooLarge):
		return refuseStatus(http.StatusRequestEntityTooLarge, errcode.ErrorCodeSizeInvalid, "the blob is larger than site %s takes", h.cfg.Site)
	case errors.Is(err, catalog.ErrTooLarge):
		return refuseStatus(http.StatusRequestEntityTooLarge, errcode.ErrorCodeSizeInvalid,
			"this touches more entries than one request can: split it into several, of fewer tags or manifests")
	case errors.Is(err, store.ErrTooManyUploads):
		e := refuse(errcode.ErrorCodeTooManyRequests, "site %s has as many uploads open as it takes: finish or cancel some", h.cfg.Site)
		e.retryAfter = unreachableRetry
		return e
	case errors.Is(err, store.ErrUploadShare):
		e := refuse(errcode.ErrorCodeTooManyRequests, "you have as many uploads open at site %s as one user may: finish or cancel some; those that stand still for an hour give way", h.cfg.Site)
		e.retryAfter = unreachableRetry
		return e
	case errors.Is(err, store.ErrUploadBusy):
		return refuseStatus(http.StatusConflict, errcode.ErrorCodeBlobUploadInvalid, "another request is writing to this upload: wait for it, then ask for its status")
	case errors.Is(err, store.ErrUnsupportedDigest):
		return refuse(errcode.ErrorCodeDigestInvalid, "only sha256 and sha512 digests are supported")
	case errors.Is(err, store.ErrDigestMismatch):
		return refuse(errcode.ErrorCodeDigestInvalid, "the content does not have the digest given: send it again")
	case absent(err):
		return refuse(errcode.ErrorCodeBlobUnknown, "blob unknown to the repository")
	}
	return nil
}

// unavailable answers for what a client should try again.
func unavailable(reason string, retry time.Duration) *apiError {
	e := refuse(errcode.ErrorCodeUnavailable, "%s", reason)
	if e.retryAfter = retry; retry <= 0 {
		e.retryAfter = unreachableRetry
	}
	return e
}

// writeError is the one place where an error becomes an answer. Nothing has
// been written before.
func (h *Handler) writeError(w http.ResponseWriter, r *http.Request, err error) {
	e := h.classify(err)
	if e == nil {
		if r.Context().Err() != nil || errors.Is(err, context.Canceled) {
			panic(http.ErrAbortHandler) // nobody is listening any more
		}
		h.log.Error("registry request failed", slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Any("error", err))
		e = refuse(errcode.ErrorCodeUnknown, "site %s could not do this: see the node's log", h.cfg.Site)
	}
	if len(e.errs) > 0 {
		var coder errcode.ErrorCoder
		if errors.As(e.errs[0], &coder) {
			h.metrics.refused.WithLabelValues(coder.ErrorCode().String()).Inc()
		}
	}
	for k, v := range e.header {
		w.Header()[k] = v
	}
	if e.retryAfter > 0 {
		w.Header().Set("Retry-After", access.RetryAfter(e.retryAfter))
	}
	body, err := json.Marshal(e.errs)
	if err != nil { // details are strings and maps of them
		body = []byte(`{"errors":[{"code":"UNKNOWN","message":"unknown error"}]}`)
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", keepNever)
	w.WriteHeader(e.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(body, '\n'))
	}
}
