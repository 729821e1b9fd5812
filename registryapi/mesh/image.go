package mesh

import (
	"context"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/registryapi/access"
	"github.com/portolan/portolan/registryapi/rest"
)

type nodeID = identity.NodeID

// image is a parsed image reference, its project found and readable.
type image struct {
	project state.Project
	repo    string // below the project
	tag     string
	digest  digest.Digest
}

// name is the repository's full name.
func (i image) name() string { return i.project.Name + "/" + i.repo }

func (i image) String() string {
	s := i.name()
	if i.tag != "" {
		s += ":" + i.tag
	}
	if i.digest != "" {
		s += "@" + i.digest.String()
	}
	return s
}

// parse reads "prod/app:1.0", "prod/app@sha256:…" or both together. A single
// component is in library; a registry's host before the name, as one copies it
// from a docker command, is dropped: the mesh is the same everywhere.
func parse(v *state.View, s string) (project, repo, tag string, d digest.Digest, err error) {
	bad := func() (string, string, string, digest.Digest, error) {
		return "", "", "", "", rest.Invalid("%q is not an image: write PROJECT/NAME:TAG or PROJECT/NAME@sha256:…", s)
	}
	if first, rest, ok := strings.Cut(s, "/"); ok && rest != "" {
		_, taken := v.Project(first)
		if strings.Contains(first, ":") || first == "localhost" || (strings.Contains(first, ".") && !taken) {
			s = rest
		}
	}
	ref, err := reference.Parse(s)
	if err != nil {
		return bad()
	}
	named, ok := ref.(reference.Named)
	if !ok {
		return bad()
	}
	project, repo, ok = strings.Cut(named.Name(), "/")
	if !ok {
		project, repo = access.DefaultProject, named.Name()
	}
	if t, ok := ref.(reference.Tagged); ok {
		tag = t.Tag()
	}
	if t, ok := ref.(reference.Digested); ok {
		if d = t.Digest(); units.CheckDigest(d) != nil {
			return bad()
		}
	}
	return project, repo, tag, d, nil
}

// open finds the image's project, if who asks may do action to it. A project
// that he may not even read is not there for him.
func (a *API) open(ctx context.Context, s string, action access.Action) (image, error) {
	v := a.cfg.View()
	name, repo, tag, d, err := parse(v, s)
	if err != nil {
		return image{}, err
	}
	p, ok := v.Project(name)
	if !ok || !a.cfg.Access.Can(rest.Subject(ctx), p, access.Pull) {
		return image{}, rest.NotFound("there is no project %q, or you have no role in it: see yours with: portolan project list", name)
	}
	if !a.cfg.Access.Can(rest.Subject(ctx), p, action) {
		return image{}, rest.Forbidden("your role in project %q does not allow to %s: ask its administrator", name, action)
	}
	return image{project: p, repo: repo, tag: tag, digest: d}, nil
}
