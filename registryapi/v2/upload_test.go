package v2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

// An upload belongs to the repository that it was begun in: its URL opens
// nothing elsewhere, whatever rights somebody has there.
func TestUpload_StaysInItsRepository(t *testing.T) {
	s := newSite(t)
	at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
	s.do("dev", "PATCH", at, strings.NewReader("some")).want(t, 202)
	d := digest.FromString("some").String()
	for _, other := range []string{"prod/other", "closed/app", "library/app"} {
		there := strings.Replace(at, "/prod/app/", "/"+other+"/", 1)
		for _, try := range []struct{ method, url string }{
			{"GET", there}, {"PATCH", there}, {"PUT", there + "?digest=" + d}, {"DELETE", there},
		} {
			e := s.do("admin", try.method, try.url, nil).want(t, 404)
			if !strings.Contains(string(e.body), "BLOB_UPLOAD_UNKNOWN") {
				t.Errorf("%s %s: %s", try.method, try.url, e.body)
			}
		}
	}
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	id, _, _ := strings.Cut(u.Path[strings.LastIndex(u.Path, "/")+1:], ".")
	s.do("admin", "GET", "/v2/prod/app/blobs/uploads/"+id, nil).want(t, 404) // the bare id, as logs might have it
	s.do("dev", "PUT", at+"?digest="+d, nil).want(t, 201)
}

// Two requests with one chunk may both find the upload where it begins, and
// take turns: only the first one's bytes may go in.
func TestUpload_OneChunkTwice(t *testing.T) {
	s := newSite(t)
	id, err := s.store.CreateUpload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begin := func() (*store.Upload, io.Reader) {
		t.Helper()
		r := httptest.NewRequest(http.MethodPatch, "/v2/prod/app/blobs/uploads/"+id, strings.NewReader("chunk"))
		r.Header.Set("Content-Range", "0-4")
		up, err := s.store.Upload(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		at, content, n, err := (&request{Request: r, w: httptest.NewRecorder()}).chunk(up)
		if err != nil || n != 5 {
			t.Fatalf("chunk of %d: %v", n, err)
		}
		return at, content
	}
	first, a := begin()
	second, b := begin()
	if n, err := first.Append(t.Context(), a); n != 5 || err != nil {
		t.Fatalf("the first: %d, %v", n, err)
	}
	n, err := second.Append(t.Context(), b)
	if n != 0 || !errors.Is(err, store.ErrWrongOffset) {
		t.Fatalf("the second: %d, %v", n, err)
	}
	q := &request{w: httptest.NewRecorder(), route: route{repo: "prod/app", ref: id}}
	var e *apiError
	if !errors.As(q.uploadError(second, err), &e) || e.status != http.StatusRequestedRangeNotSatisfiable || e.header.Get("Range") != "0-4" {
		t.Errorf("answer: %v", e)
	}
}

// A last chunk that ends before its range says is cut off, not another digest:
// the upload must survive it.
func TestUpload_LastChunkTooShortOrLong(t *testing.T) {
	s := newSite(t)
	want := digest.FromString("content").String()
	for _, body := range []string{"cont", "content and more"} {
		at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
		// Without a length, as clients stream.
		e := s.do("dev", "PUT", at+"?digest="+want, io.MultiReader(strings.NewReader(body)), "Content-Range", "0-6").want(t, 400)
		if !strings.Contains(string(e.body), "SIZE_INVALID") {
			t.Errorf("%q: %s", body, e.body)
		}
		s.do("dev", "GET", at, nil).want(t, 204) // still there
	}
	at := location(t, s.do("dev", "POST", "/v2/prod/app/blobs/uploads/", nil).want(t, 202))
	s.do("dev", "PUT", at+"?digest="+want, io.MultiReader(strings.NewReader("content")), "Content-Range", "0-6").want(t, 201)
}

// What the layers below say, wherever it comes from, has its answer.
func TestClassify(t *testing.T) {
	s := newSite(t)
	for _, c := range []struct {
		err    error
		status int
	}{
		{fmt.Errorf("append: %w", store.ErrNoSpace), http.StatusInsufficientStorage},
		{fmt.Errorf("commit: %w", syscall.ENOSPC), http.StatusInsufficientStorage},
		{fmt.Errorf("delete: %w", catalog.ErrTooLarge), http.StatusRequestEntityTooLarge},
		{fmt.Errorf("lease: %w", catalog.ErrDeleting), http.StatusNotFound},
		{fmt.Errorf("open: %w", store.ErrNoRecord), http.StatusServiceUnavailable},
		{fmt.Errorf("open: %w", store.ErrFetchBusy), http.StatusServiceUnavailable},
		{fmt.Errorf("open: %w", store.ErrCorrupt), http.StatusServiceUnavailable},
		{fmt.Errorf("open: %w", &Unavailable{Reason: "too many blobs"}), http.StatusServiceUnavailable},
		{fmt.Errorf("begin: %w", store.ErrUploadShare), http.StatusTooManyRequests},
		{fmt.Errorf("begin: %w", store.ErrTooManyUploads), http.StatusTooManyRequests},
	} {
		e := s.v2.classify(c.err)
		if e == nil || e.status != c.status {
			t.Errorf("%v: %v, want %d", c.err, e, c.status)
			continue
		}
		if again := c.status == http.StatusServiceUnavailable || c.status == http.StatusTooManyRequests; again != (e.retryAfter > 0) {
			t.Errorf("%v: Retry-After %s", c.err, e.retryAfter)
		}
	}
}

// A bucket that is away fails each request, and is logged once a minute.
func TestClassify_BucketIsLoggedSeldom(t *testing.T) {
	var log bytes.Buffer
	s := newSite(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	for range 100 {
		if e := s.v2.classify(&store.Unavailable{Place: "a bucket", Cause: "no answer"}); e == nil || e.status != http.StatusServiceUnavailable {
			t.Fatal(e)
		}
	}
	if n := strings.Count(log.String(), "no answer"); n != 1 {
		t.Errorf("logged %d times: %s", n, log.String())
	}
}

// What a client hears of a bucket that is away says what it does, and nothing
// that its driver said.
func TestClassify_BucketKeepsItsCause(t *testing.T) {
	const cause = `read /blobs/sha256/aa/aabb: s3aws: RequestError: send request failed caused by: Get "http://minio.internal:9000/layers/x?X-Amz-Credential=AKIA": dial tcp 10.0.0.3:9000: connect: connection refused`
	var log bytes.Buffer
	s := newSite(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	for refused, want := range map[bool]string{
		false: "site fra keeps this in S3 bucket \"layers\", which does not answer as it should: try again later, or ask the operator of the site",
		true:  "site fra keeps this in S3 bucket \"layers\", which refuses what the site asks of it: try again later, or ask the operator of the site",
	} {
		e := s.v2.classify(fmt.Errorf("open: %w", &store.Unavailable{Place: `S3 bucket "layers"`, Cause: cause, Refused: refused}))
		if e == nil || len(e.errs) != 1 {
			t.Fatal(e)
		}
		var said errcode.Error
		if !errors.As(e.errs[0], &said) || said.Message != want || said.Detail != nil {
			t.Errorf("refused %t: %+v", refused, said)
		}
	}
	if !strings.Contains(log.String(), "10.0.0.3:9000") {
		t.Errorf("the log has no cause: %s", log.String())
	}
}

// late is a mesh that brings what another site took a moment ago when asked.
type late struct{ bring func() }

func (l *late) PullProject(context.Context, identity.ProjectID) ([]string, error) {
	l.bring()
	return nil, nil
}

func TestDelete_AsksTheOthersFirst(t *testing.T) {
	mesh := &late{}
	s := newSite(t, func(c *Config) { c.Refresher = mesh })
	config := []byte("{}")
	s.push("prod/app", config)
	m := image(config)
	mesh.bring = func() {
		if _, err := s.store.Catalog().PutManifest(t.Context(), catalog.Put{PID: s.project("prod").PID, Repo: "app", Digest: digest.FromBytes(m),
			MediaType: imageType, Size: int64(len(m)), Bytes: m, Tags: []string{"1"}, Home: "nyc", Actor: "user:dev"}); err != nil {
			t.Error(err)
		}
	}
	s.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil).want(t, 202)
	mesh.bring = func() {}
	s.do("admin", "DELETE", "/v2/prod/app/manifests/1", nil).want(t, 404)
	s.do("admin", "DELETE", "/v2/prod/app/manifests/"+digest.FromBytes(m).String(), nil).want(t, 202)
}
