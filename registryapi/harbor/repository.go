package harbor

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"net/http"
	"net/url"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// scanned is how many rows one read of the catalogue takes while a list looks
// for its page.
const scanned = 1000

// Repository has artifacts.
type Repository struct {
	ID            int64     `json:"id" doc:"Stable number; nothing is found by it"`
	ProjectID     int64     `json:"project_id"`
	Name          string    `json:"name" doc:"With its project"`
	ArtifactCount int64     `json:"artifact_count"`
	TagCount      int64     `json:"tag_count"`
	CreationTime  time.Time `json:"creation_time,omitzero"`
}

// RepositoryPath names a repository in a path. It is exported, as all that is
// embedded in an input: huma fills embedded structs only if they are exported.
type RepositoryPath struct {
	ProjectName
	Repository string `path:"repository_name" maxLength:"1024" doc:"Path below the project; a / in it is encoded twice"`
}

// ProjectName is ProjectPath where Harbor calls it so.
type ProjectName struct {
	Project string `path:"project_name" maxLength:"255"`
}

type listRepositoriesIn struct {
	ProjectName
	rest.Page
}

func (a *API) registerRepositories() {
	const path = "/projects/{project_name}/repositories"
	rest.Register(a.rest, rest.Op{ID: "listRepositories", Method: http.MethodGet, Path: path, Tag: "repository",
		Summary: "A project's repositories, by name"}, a.listRepositories)
	rest.Register(a.rest, rest.Op{ID: "getRepository", Method: http.MethodGet, Path: path + "/{repository_name}", Tag: "repository",
		Summary: "One repository"}, func(ctx context.Context, in *RepositoryPath) (*struct{ Body Repository }, error) {
		p, info, err := a.openRepository(ctx, in, access.ReadProject)
		return &struct{ Body Repository }{repository(p, info)}, err
	})
	rest.Register(a.rest, rest.Op{ID: "deleteRepository", Method: http.MethodDelete, Path: path + "/{repository_name}", Tag: "repository", Who: rest.SignedIn,
		Summary: "Delete a repository: what this site knows of it"}, func(ctx context.Context, in *RepositoryPath) (*rest.Empty, error) {
		p, info, err := a.openRepository(ctx, in, access.Delete)
		if err != nil {
			return nil, err
		}
		return &rest.Empty{}, a.cfg.Catalog.DeleteRepository(ctx, p.PID, info.Name, rest.Actor(ctx), a.cfg.View().Index())
	})
}

// openRepository finds a repository, if who asks may do action in its project.
// The name in what it gives is below the project.
func (a *API) openRepository(ctx context.Context, in *RepositoryPath, action access.Action) (state.Project, catalog.RepositoryInfo, error) {
	p, err := a.open(ctx, ProjectPath{Project: in.Project, IsName: true}, action)
	if err != nil {
		return p, catalog.RepositoryInfo{}, err
	}
	// net/http has decoded it once; clients encode the / twice.
	name, err := url.PathUnescape(in.Repository)
	if err != nil {
		return p, catalog.RepositoryInfo{}, rest.Invalid("%q is not a repository name: encode the path below the project twice", in.Repository)
	}
	info, err := a.cfg.Catalog.Repository(p.PID, name)
	if errors.Is(err, catalog.ErrNotFound) {
		return p, info, rest.NotFound("there is no repository %s/%s here: push to it first", p.Name, name)
	}
	info.Name = name
	return p, info, err
}

func (a *API) listRepositories(ctx context.Context, in *listRepositoriesIn) (*rest.List[Repository], error) {
	p, err := a.open(ctx, ProjectPath{Project: in.Project, IsName: true}, access.ReadProject)
	if err != nil {
		return nil, err
	}
	f, err := rest.ParseFilter(in.Q, "name")
	if err != nil {
		return nil, err
	}
	var out []Repository
	total := 0
	for after := ""; ; {
		names, err := a.cfg.Catalog.Repositories(p.PID, after, scanned)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			after = n
			if !f.OK("name", p.Name+"/"+n) && !f.OK("name", n) {
				continue
			}
			if total >= in.Start() && total < in.End() {
				info, err := a.cfg.Catalog.Repository(p.PID, n)
				if errors.Is(err, catalog.ErrNotFound) {
					continue // deleted since it was listed
				} else if err != nil {
					return nil, err
				}
				info.Name = n
				out = append(out, repository(p, info))
			}
			total++
		}
		if len(names) < scanned {
			return rest.ListOf(&in.Page, out, total), nil
		}
	}
}

func repository(p state.Project, info catalog.RepositoryInfo) Repository {
	return Repository{ID: number(p.PID, info.Name), ProjectID: p.ID, Name: p.Name + "/" + info.Name,
		ArtifactCount: int64(info.Manifests), TagCount: int64(info.Tags)}
}

// number makes what Harbor numbers and the catalogue does not.
func number(pid identity.ProjectID, parts ...string) int64 {
	h := fnv.New64a()
	_, _ = h.Write(pid[:])
	for _, p := range parts {
		_, _ = h.Write(append([]byte(p), 0))
	}
	return int64(binary.BigEndian.Uint64(h.Sum(nil)) >> 12) // exact in a JavaScript number
}
