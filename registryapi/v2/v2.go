package v2

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	dist "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/manifest"
	"github.com/portolan/portolan/registryapi/access"
)

// Want names content of a project that may be elsewhere.
type Want struct {
	PID    identity.ProjectID
	Repo   string // below the project
	Digest digest.Digest
	Size   int64
	// Subject is who asks, for what is bounded for each.
	Subject string
}

// Blob is content that can be served; parts of it may still be arriving, then
// Read waits for them. Close it.
type Blob interface {
	io.ReadSeekCloser
	Size() int64
}

// EarlyBlob is a Blob that can give out bytes before they are proven.
type EarlyBlob interface {
	Blob
	// Early makes Read give out bytes as soon as their sender vouches for them.
	// Whoever calls it keeps the end of what it passes on back until Proven is nil,
	// and cuts it off if that is an error.
	Early()
	// Proven waits until all that Read gave out is checked.
	Proven() error
}

// Unavailable is how a Source or Claimer says that something cannot be had at
// the moment, though it may be soon.
type Unavailable struct {
	Reason     string        // a sentence for the client
	RetryAfter time.Duration // zero: some seconds
	Err        error         // for the log; may be nil
}

// Error implements error.
func (u *Unavailable) Error() string { return u.Reason }

// Unwrap gives what is behind it.
func (u *Unavailable) Unwrap() error { return u.Err }

// Source gives content that this site does not hold.
type Source interface {
	// Available says whether OpenBlob can be expected to work: nil,
	// store.ErrNotFound, or *store.Unreachable. It transfers nothing and
	// answers within a second.
	Available(ctx context.Context, w Want) error
	// OpenBlob starts the transfer or joins one; its errors are those of Available
	// and *Unavailable. No byte that it gives out is unchecked, unless it is an
	// EarlyBlob that was asked to; the last ones come only when the whole is proven.
	OpenBlob(ctx context.Context, w Want) (Blob, error)
}

// Claim is what became of the blobs that a manifest needs.
type Claim struct {
	// Missing are those that no site in reach has for this project.
	Missing []digest.Digest
	// Unreachable names the sites that could not be asked.
	Unreachable []string
}

// Claimer finds what a manifest needs and this site does not hold, and makes
// sure that it stays where it is until this site has fetched it.
type Claimer interface {
	Claim(ctx context.Context, pid identity.ProjectID, repo string, want []Want) (Claim, error)
	// Accepted tells of a manifest that is in the catalogue now. It does not
	// block.
	Accepted(pid identity.ProjectID, repo string, d digest.Digest)
}

// Refresher brings the project's entries of other sites here, within bounds of
// its own: one question for many callers, and two seconds at most. It names the
// sites that could not be asked.
type Refresher interface {
	PullProject(ctx context.Context, pid identity.ProjectID) (unreachable []string, err error)
}

// Limits bound what clients may ask for. Zero values mean the defaults.
type Limits struct {
	// ManifestBytes is the largest manifest taken: 4 MiB, which is what the
	// specification asks registries to take at least and clients to expect. More
	// than that is not to be had: the mesh's other sites would refuse it.
	ManifestBytes int64
	// Stall is how long a client may stand still within a body.
	Stall time.Duration
	// PageEntries is the most entries in one page of any list.
	PageEntries int
}

const (
	defaultManifestBytes = manifest.MaxBytes
	defaultPageEntries   = 1000
)

// Config is what New needs. Source, Claimer and Refresher may be nil: then
// this site has only what it holds.
type Config struct {
	View      func() *state.View
	Access    *access.Access
	Store     *store.Store
	Source    Source
	Claimer   Claimer
	Refresher Refresher
	// Siblings is told of pulls; nil: nothing is brought before it is asked for.
	Siblings Siblings
	// Tags sets and deletes tags; nil: in the catalogue alone.
	Tags Tags
	// Site is this site's name, for messages and as home of what is pushed.
	Site   string
	Limits Limits
	// Closed says why this site takes no pushes or deletes any more, in a sentence;
	// empty: it takes them. nil: it always does.
	Closed func() string
	// Pushing is asked before a manifest is put, once it is here, and end called after it. With a
	// wait the site takes none for so long. nil: it always does.
	Pushing func() (end func(), wait time.Duration)
	// Redirect: a GET of a blob that is in a bucket is answered with a presigned
	// URL. HEAD is not.
	Redirect bool
	Logger   *slog.Logger
	Now      func() time.Time // judges leases; nil is time.Now
	// Metrics takes the counters; nil: none are published.
	Metrics prometheus.Registerer
}

// Handler answers /v2/.
type Handler struct {
	cfg     Config
	log     *slog.Logger
	catalog *catalog.Catalog
	tags    Tags
	metrics *metrics
	large   *large
	// sessionKey binds upload sessions to repositories; it outlives a restart,
	// as the sessions do.
	sessionKey [32]byte
	// bucketAway spaces what is logged of an outage.
	bucketAway rate.Sometimes
}

// New makes the handler; it starts nothing.
func New(cfg Config) (*Handler, error) {
	if cfg.View == nil || cfg.Access == nil || cfg.Store == nil || cfg.Site == "" {
		return nil, errors.New("registryapi/v2: View, Access, Store and Site are needed")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Limits.ManifestBytes <= 0 || cfg.Limits.ManifestBytes > manifest.MaxBytes {
		cfg.Limits.ManifestBytes = defaultManifestBytes
	}
	if cfg.Limits.Stall <= 0 {
		cfg.Limits.Stall = DefaultStall
	}
	if cfg.Limits.PageEntries <= 0 {
		cfg.Limits.PageEntries = defaultPageEntries
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	if cfg.Tags == nil {
		cfg.Tags = local{cfg.Store.Catalog()}
	}
	return &Handler{cfg: cfg, log: cfg.Logger, catalog: cfg.Store.Catalog(), tags: cfg.Tags, metrics: m, large: newLarge(),
		sessionKey: cfg.Access.Secret("upload session"), bucketAway: rate.Sometimes{Interval: bucketLogEvery}}, nil
}

// request is one request with what has been found out about it.
type request struct {
	*http.Request
	w       http.ResponseWriter
	query   url.Values
	route   route
	subject access.Subject
	access  *access.Access
	stall   time.Duration
	warned  int // bytes of warnings in the answer so far

	// Of a repository's ends only:
	project  state.Project
	repo     string // below the project
	aclIndex uint64 // raft index of the rights that were decided by
}

// name is the repository's canonical full name.
func (q *request) name() string { return q.project.Name + "/" + q.repo }

// url is the path of one of this repository's ends. Locations are relative to
// the host, so that they are right behind any proxy. The name is the one the
// client wrote: its next request needs the scope that it has a token for.
func (q *request) url(parts ...string) string {
	return "/v2/" + q.route.repo + "/" + strings.Join(parts, "/")
}

// ends lists the methods of each route.
var ends = map[string]map[string]func(*Handler, *request) error{
	dist.RouteNameBase:    {http.MethodGet: (*Handler).base},
	dist.RouteNameCatalog: {http.MethodGet: (*Handler).listRepositories},
	dist.RouteNameTags:    {http.MethodGet: (*Handler).listTags},
	routeReferrers:        {http.MethodGet: (*Handler).listReferrers},
	dist.RouteNameManifest: {
		http.MethodGet:    (*Handler).getManifest,
		http.MethodPut:    (*Handler).putManifest,
		http.MethodDelete: (*Handler).deleteManifest,
	},
	dist.RouteNameBlob: {
		http.MethodGet:    (*Handler).getBlob,
		http.MethodDelete: (*Handler).deleteBlob,
	},
	dist.RouteNameBlobUpload: {http.MethodPost: (*Handler).startUpload},
	dist.RouteNameBlobUploadChunk: {
		http.MethodGet:    (*Handler).uploadStatus,
		http.MethodPatch:  (*Handler).patchUpload,
		http.MethodPut:    (*Handler).finishUpload,
		http.MethodDelete: (*Handler).cancelUpload,
	},
}

// needs says what a method of a repository's end asks for. All of an upload
// session, its end and status too, belong to the push.
func needs(end, method string) []access.Action {
	switch {
	case end == dist.RouteNameBlobUploadChunk:
	case method == http.MethodGet:
		return []access.Action{access.Pull}
	case method == http.MethodDelete:
		return []access.Action{access.Delete}
	}
	return []access.Action{access.Push}
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	head := w.Header()
	head.Set("Docker-Distribution-Api-Version", "registry/2.0")
	// Whoever may push chooses bytes and, of a manifest, the content type: in a
	// browser they must be no page of this host, which would act with the logins
	// that the browser has for it.
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Content-Security-Policy", "default-src 'none'; sandbox")
	if err := h.serve(w, r); err != nil {
		h.writeError(w, r, err)
	}
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request) error {
	rt, ok := parseRoute(r.URL.Path)
	if !ok {
		return refuseStatus(http.StatusNotFound, errcode.ErrorCodeUnsupported, "there is nothing at this path: see the OCI distribution specification for those that are")
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	end, ok := ends[rt.name][method]
	if !ok {
		return refuse(errcode.ErrorCodeUnsupported, "this path does not take %s", r.Method).with("Allow", allowed(rt.name))
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		// Go would leave out what it cannot read: a tag that is not set, a page that
		// is the first again.
		return refuseStatus(http.StatusBadRequest, errcode.ErrorCodeUnsupported, "the query of this path cannot be read: %s", clip(err.Error()))
	}
	q := &request{Request: r, w: w, query: query, route: rt, access: h.cfg.Access, stall: h.cfg.Limits.Stall}

	var project string
	if rt.repo != "" || (rt.name != dist.RouteNameBase && rt.name != dist.RouteNameCatalog) {
		if project, q.repo, err = h.cfg.Access.Canonical(r, rt.repo); err != nil {
			return refuse(errcode.ErrorCodeNameInvalid, "%s", err)
		}
	}
	if q.subject, err = h.cfg.Access.AuthenticateRegistry(r); err != nil {
		return h.unauthenticated(q, err)
	}
	if project == "" {
		return end(h, q)
	}
	need := needs(rt.name, method)
	if q.project, err = h.authorise(q, project, q.repo, need...); err != nil {
		return err
	}
	if h.cfg.Closed != nil && need[0] != access.Pull {
		if why := h.cfg.Closed(); why != "" {
			return refuse(errcode.ErrorCodeDenied, "%s", why)
		}
	}
	if err := h.strict(q, project, need); err != nil {
		return err
	}
	return h.leavingSays(q, end(h, q))
}

func allowed(name string) string {
	var list []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete} {
		if _, ok := ends[name][m]; !ok {
			continue
		}
		list = append(list, m)
		if m == http.MethodGet {
			list = append(list, http.MethodHead)
		}
	}
	return strings.Join(list, ", ")
}

// base answers GET /v2/: clients ask it to learn how to log in, so it wants
// credentials although anybody may pull from public projects.
func (h *Handler) base(q *request) error {
	if q.subject.Kind == access.Anonymous && q.subject.Scope == nil {
		return h.unauthorised(q, "", "log in to see more than public projects")
	}
	q.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	q.w.Header().Set("Content-Length", "2")
	if q.Method != http.MethodHead {
		_, _ = io.WriteString(q.w, "{}")
	}
	return nil
}

// pageSize reads the parameter n.
func (h *Handler) pageSize(q *request) (int, error) {
	s := q.query.Get("n")
	if s == "" {
		return h.cfg.Limits.PageEntries, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil && !errors.Is(err, strconv.ErrRange) || n < 0 || s[0] == '+' || s[0] == '-' {
		return 0, refuse(errcode.ErrorCodePaginationNumberInvalid, "n must be a number that is not negative, not %q", clip(s))
	}
	return min(n, h.cfg.Limits.PageEntries), nil
}

// link sets the header that leads to the next page.
func (q *request) link(n int, last string, more url.Values) {
	v := url.Values{}
	for k, s := range more {
		v[k] = s
	}
	v.Set("n", strconv.Itoa(n))
	v.Set("last", last)
	q.w.Header().Set("Link", "<"+q.URL.EscapedPath()+"?"+v.Encode()+`>; rel="next"`)
}

// clip shortens what a client sent for a message to it.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
