package rest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/portolan/portolan/registryapi/access"
)

const (
	// MaxBodyBytes bounds a management request: the largest, a rule with
	// thousands of globs, must fit a raft command of 64 KiB anyway.
	MaxBodyBytes = 256 << 10
	// BodyTimeout is what a client gets to send it.
	BodyTimeout = 20 * time.Second
)

// Authenticator finds out who asks. *access.Access is one.
type Authenticator interface {
	Authenticate(r *http.Request) (access.Subject, error)
}

// Config is what an API needs to exist.
type Config struct {
	// Title and Version head the OpenAPI description.
	Title, Version string
	// Prefix comes before every path, without a slash at its end.
	Prefix string
	// Lenient takes and ignores unknown fields in bodies: what clients of an
	// API that is not ours may send. Otherwise a misspelt field is an error.
	Lenient bool
	Auth    Authenticator
	// Replica is what the operations read; nil: it is nobody's copy, and answers
	// say nothing of how fresh they are.
	Replica Replica
	// Closed says why this node makes no changes any more, in a sentence; empty: it
	// does. nil: it always does.
	Closed func() string
	Logger *slog.Logger
}

// API is a set of operations under one prefix.
type API struct {
	cfg  Config
	huma huma.API
	mux  *http.ServeMux
	spec func() ([]byte, error)
}

// Who may call an operation. Finer rights are the handler's to decide.
type Who int

const (
	// Anyone: no login is needed; who signed in is known all the same.
	Anyone Who = iota
	// SignedIn: any user.
	SignedIn
	// SystemAdmin: users with the system administrator flag.
	SystemAdmin
)

// New makes an API without operations.
func New(cfg Config) *API {
	mux := http.NewServeMux()
	hc := huma.DefaultConfig(cfg.Title, cfg.Version)
	// huma's own handler fills its cache of the description without a lock, and
	// its page of docs loads scripts from elsewhere: both are ours below, or not.
	hc.OpenAPIPath, hc.DocsPath, hc.SchemasPath = "", "", ""
	hc.CreateHooks = nil // no $schema links in bodies: Harbor's clients compare them
	hc.AllowAdditionalPropertiesByDefault = cfg.Lenient
	hc.FieldsOptionalByDefault = cfg.Lenient
	hc.Transformers = []huma.Transformer{func(_ huma.Context, _ string, v any) (any, error) {
		if m, ok := v.(*huma.ErrorModel); ok {
			return fromHuma(m), nil
		}
		return v, nil
	}}
	hc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"basic": {Type: "http", Scheme: "basic"}}
	a := &API{cfg: cfg, mux: mux, huma: humago.NewWithPrefix(mux, cfg.Prefix, hc)}
	a.spec = sync.OnceValues(func() ([]byte, error) {
		delete(a.huma.OpenAPI().Components.Schemas.Map(), "ErrorModel")
		delete(a.huma.OpenAPI().Components.Schemas.Map(), "ErrorDetail")
		return json.Marshal(a.huma.OpenAPI())
	})
	mux.HandleFunc("GET "+cfg.Prefix+"/openapi.json", a.openAPI)
	mux.HandleFunc("/", a.lost)
	return a
}

// OpenAPI gives the description of all operations. Register none afterwards.
func (a *API) OpenAPI() ([]byte, error) { return a.spec() }

func (a *API) openAPI(w http.ResponseWriter, r *http.Request) {
	b, err := a.spec()
	if err != nil {
		a.write(w, a.answer(r.Context(), "openapi", err))
		return
	}
	w.Header().Set("Content-Type", "application/openapi+json")
	_, _ = w.Write(b)
}

// HandleFunc adds an answer outside the typed operations, for what is no JSON.
func (a *API) HandleFunc(pattern string, h http.HandlerFunc) { a.mux.HandleFunc(pattern, h) }

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	if e := readBody(w, r); e != nil {
		a.write(w, e)
		return
	}
	a.mux.ServeHTTP(w, r)
}

// readBody takes the whole body off the wire under a deadline, and lifts the
// deadline: net/http watches an idle connection while the handler works, and
// would take the deadline's end for the client's.
func readBody(w http.ResponseWriter, r *http.Request) *Error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	rc := http.NewResponseController(w)
	// Not every writer knows deadlines (tests' recorders do not).
	_ = rc.SetReadDeadline(time.Now().Add(BodyTimeout))
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBodyBytes))
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return fail(http.StatusRequestEntityTooLarge, "the request's body is over %d bytes: send less", MaxBodyBytes)
	case err != nil:
		return fail(http.StatusRequestTimeout, "the request's body did not arrive whole within %s: send it again", BodyTimeout)
	}
	_ = rc.SetReadDeadline(time.Time{})
	r.Body = io.NopCloser(bytes.NewReader(b))
	return nil
}

// lost answers what no operation matches.
func (a *API) lost(w http.ResponseWriter, r *http.Request) {
	var allow []string
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		other := &http.Request{Method: m, URL: r.URL, Host: r.Host}
		if _, pattern := a.mux.Handler(other); pattern != "/" && pattern != "" {
			allow = append(allow, m)
		}
	}
	if len(allow) > 0 {
		w.Header().Set("Allow", strings.Join(allow, ", "))
		a.write(w, fail(http.StatusMethodNotAllowed, "%s has no %s, only %s", r.URL.Path, r.Method, strings.Join(allow, ", ")))
		return
	}
	a.write(w, NotFound("%s is not part of this API; %s/openapi.json lists what is", r.URL.Path, a.cfg.Prefix))
}

// answer turns err into what the client gets, and logs what nobody foresaw.
func (a *API) answer(ctx context.Context, op string, err error) *Error {
	e, ok := FromError(err)
	if !ok {
		a.cfg.Logger.ErrorContext(ctx, "operation failed", "operation", op, "error", err)
	}
	return e
}

func (a *API) write(w http.ResponseWriter, e *Error) {
	b, err := e.MarshalJSON()
	if err != nil { // a struct of strings: cannot be
		b = []byte(`{"errors":[]}`)
	}
	for k, v := range e.GetHeaders() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_, _ = w.Write(append(b, '\n'))
}

type subjectKey struct{}

// Subject gives who asks, inside an operation's handler.
func Subject(ctx context.Context) access.Subject {
	s, _ := ctx.Value(subjectKey{}).(access.Subject)
	return s
}

// Op declares an operation.
type Op struct {
	// ID is unique in the API, in kebab-case.
	ID string
	// Method and Path, below the prefix, with {name} for parameters.
	Method, Path string
	// Summary is one line.
	Summary string
	// Tag groups operations in the description.
	Tag string
	Who Who
	// Status of success; 0: 200.
	Status int
}

// Register adds an operation. Its handler may return any error: see FromError.
func Register[I, O any](a *API, op Op, h func(context.Context, *I) (*O, error)) {
	ho := huma.Operation{
		OperationID:   op.ID,
		Method:        op.Method,
		Path:          op.Path,
		Summary:       op.Summary,
		Tags:          []string{op.Tag},
		DefaultStatus: cmp.Or(op.Status, http.StatusOK), // huma would answer 204, which Harbor's clients take for a failure
		Responses:     map[string]*huma.Response{"default": a.failures()},
		// readBody has done both.
		MaxBodyBytes:    MaxBodyBytes + 1,
		BodyReadTimeout: -1,
		Middlewares:     huma.Middlewares{a.jsonErrors, a.who(op)},
	}
	if a.cfg.Replica != nil {
		ho.Middlewares = append(ho.Middlewares, a.freshness(op.Who))
		ho.Parameters = []*huma.Param{consistencyParam}
	}
	if op.Who != Anyone {
		ho.Security = []map[string][]string{{"basic": {}}}
	}
	huma.Register(a.huma, ho, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err != nil {
			return nil, a.answer(ctx, op.ID, err)
		}
		return out, nil
	})
}

func (a *API) failures() *huma.Response {
	schema := a.huma.OpenAPI().Components.Schemas.Schema(typeFailures, true, "Failures")
	return &huma.Response{
		Description: "Any failure",
		Content:     map[string]*huma.MediaType{"application/json": {Schema: schema}},
	}
}

// who lets an operation's callers through, and says who they are. A node that
// makes no changes refuses them here, also those that need no majority.
func (a *API) who(op Op) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		s, err := a.authenticate(r, op.Who)
		if err == nil && a.cfg.Closed != nil && op.Method != http.MethodGet && op.Method != http.MethodHead {
			if why := a.cfg.Closed(); why != "" {
				err = Forbidden("%s", why)
			}
		}
		if err != nil {
			a.write(w, a.answer(ctx.Context(), "authenticate", err))
			return
		}
		next(huma.WithValue(ctx, subjectKey{}, s))
	}
}

// plainErrors writes errors as application/json: huma would head its own as
// application/problem+json, which Harbor's clients do not read.
type plainErrors struct{ humaContext }

// humaContext is huma.Context under a name that does not hide its Context method.
type humaContext huma.Context

func (c plainErrors) Unwrap() huma.Context { return c.humaContext }

func (c plainErrors) SetHeader(name, value string) {
	if name == "Content-Type" && value == "application/problem+json" {
		value = "application/json"
	}
	c.humaContext.SetHeader(name, value)
}

func (a *API) jsonErrors(ctx huma.Context, next func(huma.Context)) { next(plainErrors{ctx}) }
