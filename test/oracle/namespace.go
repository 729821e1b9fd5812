package oracle

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

// Namespace is distribution's view of a store. Any number of goroutines may use
// it.
type Namespace struct {
	Store *store.Store
	View  func() *state.View
	Site  string
}

var _ distribution.Namespace = (*Namespace)(nil)

// Scope implements distribution.Namespace.
func (n *Namespace) Scope() distribution.Scope { return distribution.GlobalScope }

// Repository implements distribution.Namespace: the first component is a project.
func (n *Namespace) Repository(_ context.Context, name reference.Named) (distribution.Repository, error) {
	project, path, ok := strings.Cut(name.Name(), "/")
	if !ok {
		project, path = "library", project
	}
	p, ok := n.View().Project(project)
	if !ok {
		return nil, distribution.ErrRepositoryUnknown{Name: name.Name()}
	}
	return &repository{Namespace: n, name: name, pid: p.PID, path: path}, nil
}

// Repositories implements distribution.Namespace.
func (n *Namespace) Repositories(_ context.Context, repos []string, last string) (int, error) {
	project, path, inProject := strings.Cut(last, "/")
	if inProject {
		last = project + "/"
	}
	filled := 0
	for p := range n.View().ProjectsFrom(last) {
		after := ""
		if p.Name == project {
			after = path
		}
		// One more than there is room for says whether this is the end.
		names, err := n.Store.Catalog().Repositories(p.PID, after, len(repos)-filled+1)
		if err != nil {
			return filled, err
		}
		for _, r := range names {
			if filled == len(repos) {
				return filled, nil
			}
			repos[filled] = p.Name + "/" + r
			filled++
		}
	}
	return filled, io.EOF
}

// Blobs implements distribution.Namespace; the handlers do not use it.
func (n *Namespace) Blobs() distribution.BlobEnumerator { return nil }

// BlobStatter implements distribution.Namespace; the handlers do not use it.
func (n *Namespace) BlobStatter() distribution.BlobStatter { return nil }

// repository is one of them.
type repository struct {
	*Namespace
	name reference.Named
	pid  identity.ProjectID
	path string // below the project
}

func (r *repository) catalog() *catalog.Catalog { return r.Store.Catalog() }

func (r *repository) Named() reference.Named { return r.name }

func (r *repository) Manifests(context.Context, ...distribution.ManifestServiceOption) (distribution.ManifestService, error) {
	return &manifests{r}, nil
}

func (r *repository) Blobs(context.Context) distribution.BlobStore { return &blobStore{r} }

func (r *repository) Tags(context.Context) distribution.TagService { return &tags{r} }

// tags implements distribution.TagService.
type tags struct{ *repository }

func (t *tags) Get(_ context.Context, tag string) (v1.Descriptor, error) {
	info, err := t.catalog().Tag(t.pid, t.path, tag)
	if errors.Is(err, catalog.ErrNotFound) {
		return v1.Descriptor{}, distribution.ErrTagUnknown{Tag: tag}
	}
	return v1.Descriptor{Digest: info.Digest}, err
}

// Tag has nothing to do: Put was told the tag, and set it in the same batch.
func (t *tags) Tag(ctx context.Context, tag string, desc v1.Descriptor) error {
	d, err := t.Get(ctx, tag)
	if err == nil && d.Digest != desc.Digest {
		err = errors.New("the tag was moved meanwhile")
	}
	return err
}

func (t *tags) Untag(ctx context.Context, tag string) error {
	err := t.catalog().DeleteTag(ctx, t.pid, t.path, tag, "user:admin", 0)
	if errors.Is(err, catalog.ErrNotFound) {
		return distribution.ErrTagUnknown{Tag: tag}
	}
	return err
}

func (t *tags) All(context.Context) ([]string, error) {
	return t.catalog().Tags(t.pid, t.path, "", maxTags)
}

// maxTags stands for "all of them".
const maxTags = 10_000

func (t *tags) Lookup(_ context.Context, desc v1.Descriptor) ([]string, error) {
	return t.catalog().TagsOf(t.pid, t.path, desc.Digest, maxTags)
}

func (t *tags) List(_ context.Context, limit int, last string) ([]string, error) {
	info, err := t.catalog().Repository(t.pid, t.path)
	if errors.Is(err, catalog.ErrNotFound) || err == nil && info.Tags+info.Manifests == 0 {
		return nil, distribution.ErrRepositoryUnknown{Name: t.name.Name()}
	}
	if err != nil {
		return nil, err
	}
	if limit < 0 {
		limit = maxTags
	}
	list, err := t.catalog().Tags(t.pid, t.path, last, limit+1)
	if err == nil && len(list) <= limit {
		return list, io.EOF
	}
	return list[:min(len(list), limit)], err
}

// linked gives the size of what the repository has.
func (r *repository) linked(d digest.Digest) (int64, error) {
	size, ok, err := r.catalog().Linked(r.pid, r.path, d)
	if err == nil && !ok {
		err = distribution.ErrBlobUnknown
	}
	return size, err
}
