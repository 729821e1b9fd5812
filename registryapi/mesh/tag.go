package mesh

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

type tagsIn struct {
	Repository string `query:"repository" required:"true" minLength:"1" maxLength:"512" doc:"PROJECT/NAME"`
	After      string `query:"after" maxLength:"128" doc:"Only tags after this one"`
	N          int    `query:"n" default:"100" minimum:"1" maximum:"1000" doc:"How many at most"`
}

type tagsOut struct {
	// Next is what after must be to go on; empty: that was all.
	Next string `header:"X-Next" doc:"What after must be to go on; missing: that was all"`
	Body []Tag
}

type tagIn struct {
	Image   string `query:"image" required:"true" minLength:"1" maxLength:"512" doc:"PROJECT/NAME:TAG"`
	IfMatch string `header:"If-Match" maxLength:"1024" doc:"Delete it only if it says one of these digests, each in quotes, else answer 412; strong tags only"`
}

func (a *API) registerTags() {
	rest.Register(a.rest, rest.Op{ID: "list-tags", Method: http.MethodGet, Path: "/tags", Tag: "tags", Who: rest.SignedIn,
		Summary: "Tags of a repository, by name, with what they give"}, a.listTags)
	rest.Register(a.rest, rest.Op{ID: "delete-tag", Method: http.MethodDelete, Path: "/tags", Tag: "tags", Who: rest.SignedIn,
		Summary: "Delete a tag; the manifest stays"}, a.deleteTag)
}

func (a *API) listTags(ctx context.Context, in *tagsIn) (*tagsOut, error) {
	img, err := a.open(ctx, in.Repository, access.Pull)
	if err != nil {
		return nil, err
	}
	if img.tag != "" || img.digest != "" {
		return nil, rest.Invalid("%q names an image: give the repository alone, %s", in.Repository, img.name())
	}
	if in.After == "" {
		err := a.known(ctx, img.project.PID, func() error {
			_, err := a.cfg.Catalog.Repository(img.project.PID, img.repo)
			return err
		})
		if errors.Is(err, catalog.ErrNotFound) {
			return nil, rest.NotFound("site %s knows no repository %s: push to it first", a.cfg.Site, img.name())
		} else if err != nil {
			return nil, err
		}
	}
	names, err := a.cfg.Catalog.Tags(img.project.PID, img.repo, in.After, in.N)
	if err != nil {
		return nil, err
	}
	out := &tagsOut{Body: []Tag{}}
	if len(names) == in.N {
		out.Next = names[len(names)-1]
	}
	for _, n := range names {
		t, err := a.cfg.Catalog.Tag(img.project.PID, img.repo, n)
		if errors.Is(err, catalog.ErrNotFound) {
			continue // deleted since it was listed
		} else if err != nil {
			return nil, err
		}
		out.Body = append(out.Body, Tag{Name: n, Digest: t.Digest, PushedAt: t.At, Actor: t.Actor, Conflicts: t.Conflicts})
	}
	return out, nil
}

func (a *API) deleteTag(ctx context.Context, in *tagIn) (*rest.Empty, error) {
	img, err := a.open(ctx, in.Image, access.Delete)
	if err != nil {
		return nil, err
	}
	if img.tag == "" || img.digest != "" {
		return nil, rest.Invalid("%q names no tag: write %s:TAG", in.Image, img.name())
	}
	match, err := digests(in.IfMatch)
	if err != nil {
		return nil, err
	}
	remove := func() error {
		return a.cfg.Catalog.DeleteTag(ctx, img.project.PID, img.repo, img.tag, match, rest.Actor(ctx), a.cfg.View().Index())
	}
	if img.project.Tags.Mode == state.StrongTags {
		err = remove() // the mesh has decided: what is set meanwhile nobody wanted deleted
	} else {
		err = a.known(ctx, img.project.PID, remove)
	}
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, rest.NotFound("there is no tag %s in %s: see what there is with: portolan tag list %s", img.tag, img.name(), img.name())
	}
	return &rest.Empty{}, err
}

// digests reads an If-Match that says digests.
func digests(match string) (all []digest.Digest, err error) {
	if match == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(match, ",") {
		part = strings.TrimSpace(part)
		text := strings.TrimSuffix(strings.TrimPrefix(part, `"`), `"`)
		d, err := units.ParseDigest(text)
		if err != nil || part != `"`+text+`"` {
			return nil, rest.Invalid("If-Match: %q cannot be kept: use what the tag says, a digest in quotes", part)
		}
		all = append(all, d)
	}
	return all, nil
}
