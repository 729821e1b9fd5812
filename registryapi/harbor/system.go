package harbor

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// SystemInfo says what a client may expect.
type SystemInfo struct {
	HarborVersion              string `json:"harbor_version" doc:"The Harbor release whose conventions are kept"`
	PortolanVersion            string `json:"portolan_version,omitempty" doc:"Version of this node's binary; to users only"`
	AuthMode                   string `json:"auth_mode"`
	PrimaryAuthMode            bool   `json:"primary_auth_mode"`
	SelfRegistration           bool   `json:"self_registration"`
	ProjectCreationRestriction string `json:"project_creation_restriction"`
	RegistryURL                string `json:"registry_url" doc:"The host to give to docker"`
	ExternalURL                string `json:"external_url"`
	ReadOnly                   bool   `json:"read_only"`
}

// Health is a node's, in Harbor's form.
type Health struct {
	Status     string      `json:"status"`
	Components []Component `json:"components"`
}

// Component is a part of a Health.
type Component struct {
	Name   string `json:"name"`
	Status string `json:"status"`
}

// Statistics counts what who asks can see.
type Statistics struct {
	PrivateProjects int `json:"private_project_count"`
	PublicProjects  int `json:"public_project_count"`
	TotalProjects   int `json:"total_project_count"`
	PrivateRepos    int `json:"private_repo_count"`
	PublicRepos     int `json:"public_repo_count"`
	TotalRepos      int `json:"total_repo_count"`
}

// systemInfoIn learns by which name the client came.
type systemInfoIn struct{ request *http.Request }

// Resolve implements huma.Resolver.
func (in *systemInfoIn) Resolve(ctx huma.Context) []error {
	in.request, _ = humago.Unwrap(ctx)
	return nil
}

type listLabels struct{ Body []struct{} }

func (a *API) registerSystem() {
	a.rest.HandleFunc("GET /api/version", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]string{"version": "v2.0"})
	})
	a.rest.HandleFunc("GET "+Prefix+"/ping", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("Pong"))
	})
	rest.Register(a.rest, rest.Op{ID: "getHealth", Method: http.MethodGet, Path: "/health", Tag: "system",
		Summary: "Is this node well? It answers, so it is; readiness is /readyz"}, func(context.Context, *struct{}) (*struct{ Body Health }, error) {
		return &struct{ Body Health }{Health{Status: "healthy", Components: []Component{{Name: "core", Status: "healthy"}, {Name: "registry", Status: "healthy"}}}}, nil
	})
	rest.Register(a.rest, rest.Op{ID: "getSystemInfo", Method: http.MethodGet, Path: "/systeminfo", Tag: "system",
		Summary: "What a client may expect"}, func(ctx context.Context, in *systemInfoIn) (*struct{ Body SystemInfo }, error) {
		out := &struct{ Body SystemInfo }{SystemInfo{HarborVersion: Speaks, AuthMode: "db_auth", PrimaryAuthMode: true,
			ProjectCreationRestriction: "everyone", RegistryURL: in.request.Host, ExternalURL: a.cfg.Access.ExternalURL(in.request)}}
		if rest.Subject(ctx).Kind == access.User {
			out.Body.PortolanVersion = a.cfg.Version
		}
		return out, nil
	})
	rest.Register(a.rest, rest.Op{ID: "getStatistic", Method: http.MethodGet, Path: "/statistics", Tag: "system", Who: rest.SignedIn,
		Summary: "How many projects and repositories you can see"}, a.statistics)
	rest.Register(a.rest, rest.Op{ID: "ListLabels", Method: http.MethodGet, Path: "/labels", Tag: "system", Who: rest.SignedIn,
		Summary: "There are no labels yet"}, func(context.Context, *struct{}) (*listLabels, error) {
		return &listLabels{Body: []struct{}{}}, nil
	})
}

func (a *API) statistics(ctx context.Context, _ *struct{}) (*struct{ Body Statistics }, error) {
	var s Statistics
	for p := range a.cfg.View().Projects() {
		if !a.can(ctx, p, access.ReadProject) {
			continue
		}
		n, err := a.countRepositories(p)
		if err != nil {
			return nil, err
		}
		s.TotalProjects++
		s.TotalRepos += n
		if p.Public {
			s.PublicProjects++
			s.PublicRepos += n
		} else {
			s.PrivateProjects++
			s.PrivateRepos += n
		}
	}
	return &struct{ Body Statistics }{s}, nil
}
