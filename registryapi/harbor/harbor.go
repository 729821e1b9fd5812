package harbor

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

const (
	// Prefix is where the API lives.
	Prefix = "/api/v2.0"
	// Speaks is the Harbor release whose conventions are kept. Clients compare
	// it to know what they may ask.
	Speaks = "v2.15.2"
)

// Proposer changes the control state. It answers after the change is applied
// here. *consensus.Node is one.
type Proposer interface {
	Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error)
}

// Access says who asks and what he may do. *access.Access is one.
type Access interface {
	rest.Authenticator
	Can(access.Subject, state.Project, access.Action) bool
	// ExternalURL is scheme and host as the client of r sees them.
	ExternalURL(r *http.Request) string
}

// Catalog is what this API reads and removes of the catalogue.
// *catalog.Catalog is one.
type Catalog interface {
	Repositories(pid identity.ProjectID, after string, n int) ([]string, error)
	Repository(pid identity.ProjectID, repo string) (catalog.RepositoryInfo, error)
	Manifests(pid identity.ProjectID, repo string, after digest.Digest, n int) ([]catalog.ManifestInfo, error)
	Manifest(pid identity.ProjectID, repo string, d digest.Digest) (catalog.ManifestInfo, error)
	Refs(pid identity.ProjectID, repo string, d digest.Digest) ([]catalog.Ref, error)
	Tag(pid identity.ProjectID, repo, tag string) (catalog.TagInfo, error)
	TagsOf(pid identity.ProjectID, repo string, d digest.Digest, n int) ([]string, error)
	DeleteTagOf(ctx context.Context, pid identity.ProjectID, repo, tag string, of digest.Digest, actor string, aclIndex uint64) error
	DeleteManifest(ctx context.Context, pid identity.ProjectID, repo string, d digest.Digest, actor string, aclIndex uint64) error
	DeleteRepository(ctx context.Context, pid identity.ProjectID, repo, actor string, aclIndex uint64) error
}

// Config is what the API needs.
type Config struct {
	View func() *state.View
	// Replica is the copy that View gives; nil: answers do not say how fresh they
	// are, and nobody can ask for a strict one.
	Replica  rest.Replica
	Proposer Proposer
	Access   Access
	Catalog  Catalog
	// Refresh brings a project's entries of other sites here, within seconds, and names
	// those that did not answer; nil: there are no others.
	Refresh func(ctx context.Context, pid identity.ProjectID) (unreachable []string, err error)
	// Site is where this node is.
	Site string
	// Closed says why this node makes no changes any more; empty, or nil: it does.
	Closed func() string
	// Version of the binary, for /systeminfo.
	Version string
	Logger  *slog.Logger
}

// API answers /api/v2.0 and /api/version.
type API struct {
	cfg  Config
	rest *rest.API
	// hashing bounds how many passwords are hashed at once: each takes a core
	// and some 20 MiB.
	hashing chan struct{}
}

// New declares all operations.
func New(cfg Config) (*API, error) {
	if cfg.View == nil || cfg.Proposer == nil || cfg.Access == nil || cfg.Catalog == nil || cfg.Logger == nil {
		return nil, errors.New("harbor: an incomplete Config")
	}
	a := &API{cfg: cfg, hashing: make(chan struct{}, runtime.GOMAXPROCS(0)), rest: rest.New(rest.Config{
		Title: "Portolan management, in Harbor's words", Version: "2.0", Prefix: Prefix, Lenient: true, Auth: cfg.Access, Replica: cfg.Replica, Closed: cfg.Closed, Logger: cfg.Logger,
	})}
	a.registerSystem()
	a.registerProjects()
	a.registerMembers()
	a.registerUsers()
	a.registerRepositories()
	a.registerArtifacts()
	return a, nil
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.rest.ServeHTTP(w, r) }

// OpenAPI gives the description that PREFIX/openapi.json answers with.
func (a *API) OpenAPI() ([]byte, error) { return a.rest.OpenAPI() }

// propose makes a change in the name of who asks.
func (a *API) propose(ctx context.Context, body proto.Message) (command.Result, error) {
	return a.cfg.Proposer.Propose(ctx, rest.Actor(ctx), body)
}

// edit makes a change of what who asks has seen.
func (a *API) edit(ctx context.Context, e rest.Expect, body proto.Message) (*rest.Empty, error) {
	_, err := a.propose(ctx, body)
	return &rest.Empty{}, e.Lost(err)
}

// can reports whether who asks may do action to p.
func (a *API) can(ctx context.Context, p state.Project, action access.Action) bool {
	return a.cfg.Access.Can(rest.Subject(ctx), p, action)
}

// ProjectPath names a project in a path: by id if it is a number, unless the
// client says that it is a name.
type ProjectPath struct {
	Project string `path:"project_name_or_id" maxLength:"255" doc:"Name, or id"`
	IsName  bool   `header:"X-Is-Resource-Name" doc:"The path has a name, even if it is a number"`
}

// open finds the project, if who asks may do action to it. A project that he
// may not even read is not there for him.
func (a *API) open(ctx context.Context, in ProjectPath, action access.Action) (state.Project, error) {
	v := a.cfg.View()
	var p state.Project
	var ok bool
	if id, err := strconv.ParseInt(in.Project, 10, 64); err == nil && !in.IsName {
		p, ok = v.ProjectByID(id)
	} else {
		p, ok = v.Project(in.Project)
	}
	if !ok || !a.can(ctx, p, access.ReadProject) {
		if rest.Subject(ctx).Kind == access.Anonymous {
			return p, rest.Unauthorized("project %s is not public, or not there: log in to see it", in.Project)
		}
		return p, rest.NotFound("there is no project %q, or you have no role in it: see yours with: portolan project list", in.Project)
	}
	if !a.can(ctx, p, action) {
		if rest.Subject(ctx).Kind == access.Anonymous {
			return p, rest.Unauthorized("this needs a login: send a user name and a password")
		}
		return p, rest.Forbidden("your role in project %q does not allow to %s: ask its administrator", p.Name, action)
	}
	return p, nil
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
