package harbor

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

// maxTagsShown bounds the tags in an artifact's entry; the list of its tags has
// as many as anybody gave one manifest.
const maxTagsShown = 100

// Artifact is a manifest with what it refers to.
type Artifact struct {
	ID                int64         `json:"id" doc:"Stable number; nothing is found by it"`
	Type              string        `json:"type"`
	MediaType         string        `json:"media_type"`
	ManifestMediaType string        `json:"manifest_media_type"`
	ArtifactType      string        `json:"artifact_type,omitempty"`
	ProjectID         int64         `json:"project_id"`
	RepositoryID      int64         `json:"repository_id"`
	RepositoryName    string        `json:"repository_name"`
	Digest            digest.Digest `json:"digest"`
	Size              int64         `json:"size" doc:"The manifest and what it names directly, in bytes"`
	PushTime          time.Time     `json:"push_time"`
	Subject           digest.Digest `json:"subject,omitempty" doc:"What this artifact is about"`
	Home              string        `json:"portolan_home,omitempty" doc:"The site that accepted it"`
	Tags              []Tag         `json:"tags"`
}

// Tag is a name for an artifact.
type Tag struct {
	ID           int64     `json:"id" doc:"Stable number; nothing is found by it"`
	RepositoryID int64     `json:"repository_id"`
	ArtifactID   int64     `json:"artifact_id"`
	Name         string    `json:"name"`
	PushTime     time.Time `json:"push_time"`
	Immutable    bool      `json:"immutable"`
}

type listArtifactsIn struct {
	RepositoryPath
	rest.Page
}

// ArtifactPath names an artifact in a path.
type ArtifactPath struct {
	RepositoryPath
	Reference string `path:"reference" maxLength:"255" doc:"Digest, or tag"`
}

type listTagsIn struct {
	ArtifactPath
	rest.Page
}

type tagPath struct {
	ArtifactPath
	Tag string `path:"tag_name" maxLength:"128"`
}

func (a *API) registerArtifacts() {
	const path = "/projects/{project_name}/repositories/{repository_name}/artifacts"
	rest.Register(a.rest, rest.Op{ID: "listArtifacts", Method: http.MethodGet, Path: path, Tag: "artifact",
		Summary: "A repository's artifacts, by digest"}, a.listArtifacts)
	rest.Register(a.rest, rest.Op{ID: "getArtifact", Method: http.MethodGet, Path: path + "/{reference}", Tag: "artifact",
		Summary: "One artifact"}, func(ctx context.Context, in *ArtifactPath) (*struct{ Body Artifact }, error) {
		p, m, err := a.openArtifact(ctx, in, access.ReadProject)
		if err != nil {
			return nil, err
		}
		out, err := a.artifact(p, m)
		return &struct{ Body Artifact }{out}, err
	})
	rest.Register(a.rest, rest.Op{ID: "deleteArtifact", Method: http.MethodDelete, Path: path + "/{reference}", Tag: "artifact", Who: rest.SignedIn,
		Summary: "Delete an artifact and the tags that name it"}, func(ctx context.Context, in *ArtifactPath) (*rest.Empty, error) {
		p, m, err := a.openArtifact(ctx, in, access.Delete)
		if err != nil {
			return nil, err
		}
		return &rest.Empty{}, a.cfg.Catalog.DeleteManifest(ctx, p.PID, m.Repo, m.Digest, rest.Actor(ctx), a.cfg.View().Index())
	})
	rest.Register(a.rest, rest.Op{ID: "listTags", Method: http.MethodGet, Path: path + "/{reference}/tags", Tag: "artifact",
		Summary: "An artifact's tags, by name"}, func(ctx context.Context, in *listTagsIn) (*rest.List[Tag], error) {
		p, m, err := a.openArtifact(ctx, &in.ArtifactPath, access.ReadProject)
		if err != nil {
			return nil, err
		}
		tags, err := a.tagsOf(p, m, in.End()+1) // one more, to know of a next page
		if err != nil {
			return nil, err
		}
		return rest.PageOf(&in.Page, tags), nil
	})
	rest.Register(a.rest, rest.Op{ID: "deleteTag", Method: http.MethodDelete, Path: path + "/{reference}/tags/{tag_name}", Tag: "artifact", Who: rest.SignedIn,
		Summary: "Delete a tag; the artifact stays"}, a.deleteTag)
}

// openArtifact finds an artifact by tag or digest. Repo in what it gives is
// below the project.
func (a *API) openArtifact(ctx context.Context, in *ArtifactPath, action access.Action) (state.Project, catalog.ManifestInfo, error) {
	p, repo, err := a.openRepository(ctx, &in.RepositoryPath, action)
	if err != nil {
		return p, catalog.ManifestInfo{}, err
	}
	missing := rest.NotFound("there is no artifact %s in %s/%s here", in.Reference, p.Name, repo.Name)
	d, err := units.ParseDigest(in.Reference)
	if err != nil {
		t, err := a.cfg.Catalog.Tag(p.PID, repo.Name, in.Reference)
		if errors.Is(err, catalog.ErrNotFound) || errors.Is(err, catalog.ErrInvalid) {
			return p, catalog.ManifestInfo{}, missing
		} else if err != nil {
			return p, catalog.ManifestInfo{}, err
		}
		d = t.Digest
	}
	m, err := a.cfg.Catalog.Manifest(p.PID, repo.Name, d)
	if errors.Is(err, catalog.ErrNotFound) {
		return p, m, missing
	}
	m.Repo = repo.Name
	return p, m, err
}

func (a *API) listArtifacts(ctx context.Context, in *listArtifactsIn) (*rest.List[Artifact], error) {
	p, repo, err := a.openRepository(ctx, &in.RepositoryPath, access.ReadProject)
	if err != nil {
		return nil, err
	}
	if _, err := rest.ParseFilter(in.Q); err != nil {
		return nil, err
	}
	total := int(repo.Manifests)
	var out []Artifact
	var after digest.Digest
	for at := 0; at < in.End() && in.Start() < total; {
		// What is before the page is only passed over.
		n := min(scanned, in.End()-at)
		if at < in.Start() {
			n = min(scanned, in.Start()-at)
		}
		ms, err := a.cfg.Catalog.Manifests(p.PID, repo.Name, after, n)
		if err != nil {
			return nil, err
		}
		for _, m := range ms {
			after = m.Digest
			if at >= in.Start() {
				m.Repo = repo.Name
				shown, err := a.artifact(p, m)
				if err != nil {
					return nil, err
				}
				out = append(out, shown)
			}
			at++
		}
		if len(ms) < n {
			break
		}
	}
	return rest.ListOf(&in.Page, out, total), nil
}

func (a *API) deleteTag(ctx context.Context, in *tagPath) (*rest.Empty, error) {
	p, m, err := a.openArtifact(ctx, &in.ArtifactPath, access.Delete)
	if err != nil {
		return nil, err
	}
	// Compared where it is deleted: it may say another artifact by now.
	err = a.cfg.Catalog.DeleteTagOf(ctx, p.PID, m.Repo, in.Tag, m.Digest, rest.Actor(ctx), a.cfg.View().Index())
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, rest.NotFound("%s/%s@%s has no tag %s", p.Name, m.Repo, m.Digest, in.Tag)
	}
	return &rest.Empty{}, err
}

func (a *API) artifact(p state.Project, m catalog.ManifestInfo) (Artifact, error) {
	out := Artifact{ID: number(p.PID, m.Repo, m.Digest.String()), Type: "IMAGE", MediaType: m.MediaType, ManifestMediaType: m.MediaType,
		ArtifactType: m.ArtifactType, ProjectID: p.ID, RepositoryID: number(p.PID, m.Repo), RepositoryName: p.Name + "/" + m.Repo,
		Digest: m.Digest, Size: m.Size, PushTime: m.At, Subject: m.Subject, Home: m.Home}
	refs, err := a.cfg.Catalog.Refs(p.PID, m.Repo, m.Digest)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return out, err
	}
	for _, r := range refs {
		out.Size += r.Size
	}
	out.Tags, err = a.tagsOf(p, m, maxTagsShown)
	return out, err
}

func (a *API) tagsOf(p state.Project, m catalog.ManifestInfo, n int) ([]Tag, error) {
	names, err := a.cfg.Catalog.TagsOf(p.PID, m.Repo, m.Digest, n)
	if err != nil {
		return nil, err
	}
	out := make([]Tag, 0, len(names))
	for _, name := range names {
		t, err := a.cfg.Catalog.Tag(p.PID, m.Repo, name)
		if errors.Is(err, catalog.ErrNotFound) {
			continue // deleted since it was listed
		} else if err != nil {
			return nil, err
		}
		out = append(out, Tag{ID: number(p.PID, m.Repo, "tag", name), RepositoryID: number(p.PID, m.Repo),
			ArtifactID: number(p.PID, m.Repo, m.Digest.String()), Name: name, PushTime: t.At})
	}
	return out, nil
}
