package node

import (
	"context"
	"errors"
	"net/http"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/registryapi/rest"
	v2 "github.com/portolan/portolan/registryapi/v2"
	"github.com/portolan/portolan/transfer/tags"
)

// tagger lets the registry set and delete tags.
type tagger struct{ door *tags.Door }

// Put implements v2.Tags.
func (t tagger) Put(ctx context.Context, put catalog.Put, cond v2.Condition) error {
	return asRegistry(t.door.Put(ctx, put, tags.Condition(cond)))
}

// DeleteTag implements v2.Tags.
func (t tagger) DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag string, match []digest.Digest, actor string, aclIndex uint64) error {
	return asRegistry(t.door.DeleteTag(ctx, pid, repo, tag, actor, aclIndex, match...))
}

// DeleteManifest implements v2.Tags.
func (t tagger) DeleteManifest(ctx context.Context, pid identity.ProjectID, repo string, d digest.Digest, actor string, aclIndex uint64) error {
	return t.door.DeleteManifest(ctx, pid, repo, d, actor, aclIndex)
}

// CatchUp implements v2.Tags.
func (t tagger) CatchUp(ctx context.Context, pid identity.ProjectID) error {
	return asRegistry(t.door.CatchUp(ctx, pid))
}

// asRegistry brings the door's own errors into the registry's words.
func asRegistry(err error) error {
	var few *tags.NotDurable
	switch {
	case errors.As(err, &few):
		return &v2.Unavailable{Reason: few.Error(), RetryAfter: few.RetryAfter, Err: err}
	case errors.Is(err, tags.ErrCondition):
		return &v2.Refused{Status: http.StatusPreconditionFailed, Reason: err.Error()}
	case errors.Is(err, tags.ErrNoCondition), errors.Is(err, tags.ErrNoStrictRead):
		return &v2.Refused{Status: http.StatusBadRequest, Reason: err.Error() + ": make them strong with: portolan project tags NAME strong"}
	}
	return err
}

// tagsWait answers which sites a switch of tags waits for.
func (n *node) tagsWait(ctx context.Context, pid identity.ProjectID) []mesh.TagWait {
	var out []mesh.TagWait
	for _, w := range n.tags.AskWaiting(ctx, pid) {
		out = append(out, mesh.TagWait(w))
	}
	return out
}

// guarded is the catalogue for the management APIs: what deletes tags goes through
// the door.
type guarded struct {
	*catalog.Catalog
	door *tags.Door
}

// DeleteTag implements mesh.Catalog.
func (g guarded) DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag string, match []digest.Digest, actor string, aclIndex uint64) error {
	return asManagement(g.door.DeleteTag(ctx, pid, repo, tag, actor, aclIndex, match...))
}

// asManagement brings the door's own errors into the management API's words.
func asManagement(err error) error {
	switch {
	case errors.Is(err, tags.ErrCondition):
		return rest.Precondition("%s: look again, and repeat", err)
	case errors.Is(err, tags.ErrNoCondition):
		return rest.Invalid("%s: make them strong with: portolan project tags NAME strong", err)
	}
	return err
}

// DeleteTagOf implements harbor.Catalog.
func (g guarded) DeleteTagOf(ctx context.Context, pid identity.ProjectID, repo, tag string, of digest.Digest, actor string, aclIndex uint64) error {
	return g.door.DeleteTagOf(ctx, pid, repo, tag, of, actor, aclIndex)
}

// DeleteManifest implements harbor.Catalog.
func (g guarded) DeleteManifest(ctx context.Context, pid identity.ProjectID, repo string, d digest.Digest, actor string, aclIndex uint64) error {
	return g.door.DeleteManifest(ctx, pid, repo, d, actor, aclIndex)
}

// DeleteRepository implements harbor.Catalog.
func (g guarded) DeleteRepository(ctx context.Context, pid identity.ProjectID, repo, actor string, aclIndex uint64) error {
	return g.door.DeleteRepository(ctx, pid, repo, actor, aclIndex)
}
