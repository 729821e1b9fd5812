package v2

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	dist "github.com/distribution/distribution/v3/registry/api/v2"
	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/access"
)

// Condition is what a push asks of its tags: New, that none is there; Match, that
// each says one of these.
type Condition struct {
	New   bool
	Match []digest.Digest
}

// Tags accepts manifests and sets and deletes tags, in the way that the project's
// mode asks for. Beside those of the catalogue its errors are *command.Error,
// *command.Unavailable, *Unavailable and *Refused.
type Tags interface {
	// Put returns when the push is durable wherever the project wants it to be, and
	// can be read here.
	Put(ctx context.Context, put catalog.Put, cond Condition) error
	// DeleteTag deletes a tag, with match only if it says one of these.
	DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag string, match []digest.Digest, actor string, aclIndex uint64) error
	DeleteManifest(ctx context.Context, pid identity.ProjectID, repo string, d digest.Digest, actor string, aclIndex uint64) error
	// CatchUp returns when what is read here has every tag that was set, anywhere,
	// before the call.
	CatchUp(ctx context.Context, pid identity.ProjectID) error
}

// Refused is how a Tags says no to what the client asked for.
type Refused struct {
	Status int
	Reason string // a sentence
}

// Error implements error.
func (r *Refused) Error() string { return r.Reason }

// local is a Tags for a site alone: the catalogue's.
type local struct{ *catalog.Catalog }

// Put implements Tags.
func (l local) Put(ctx context.Context, put catalog.Put, cond Condition) error {
	if cond.New || len(cond.Match) > 0 {
		return errNoConditions
	}
	_, err := l.PutManifest(ctx, put)
	return err
}

// DeleteTag implements Tags.
func (l local) DeleteTag(ctx context.Context, pid identity.ProjectID, repo, tag string, match []digest.Digest, actor string, aclIndex uint64) error {
	if len(match) > 0 {
		return errNoConditions
	}
	return l.Catalog.DeleteTag(ctx, pid, repo, tag, actor, aclIndex)
}

var errNoConditions = &Refused{http.StatusBadRequest, "this site keeps no conditions on tags: leave out If-Match and If-None-Match"}

// CatchUp implements Tags.
func (local) CatchUp(context.Context, identity.ProjectID) error {
	return &Refused{http.StatusBadRequest, "this site has no strict reads: leave out " + consistencyHeader}
}

// consistencyHeader asks for a strict read, as in the other APIs.
const (
	consistencyHeader = "X-Portolan-Consistency"
	consistencyStrict = "strict"
)

// strict catches up before a read by tag, if the request asks for that.
func (h *Handler) strict(q *request, project string, need []access.Action) error {
	want := q.Header.Get(consistencyHeader)
	if want == "" || want == "local" || q.Method != http.MethodGet && q.Method != http.MethodHead {
		return nil
	}
	if want != consistencyStrict {
		return refuseStatus(http.StatusBadRequest, errcode.ErrorCodeUnsupported, "%s: %q is not known here: use strict, or leave it out for what this site has", consistencyHeader, clip(want))
	}
	switch {
	case q.route.name != dist.RouteNameTags && (q.route.name != dist.RouteNameManifest || isDigest(q.route.ref)):
		return nil // what a digest names does not change
	case q.subject.Kind == access.Anonymous:
		return h.unauthorised(q, "", "a strict read needs a login, as it makes all voting sites work: log in, or leave out "+consistencyHeader)
	}
	if err := h.tags.CatchUp(q.Context(), q.project.PID); err != nil {
		return err
	}
	q.w.Header().Set(consistencyHeader, consistencyStrict)
	// He may have lost his rights in what this site had not got.
	var err error
	q.project, err = h.authorise(q, project, q.repo, need...)
	return err
}

// condition reads If-Match and If-None-Match of a push.
func condition(q *request) (c Condition, err error) {
	if v := q.Header.Get("If-None-Match"); v != "" {
		if strings.TrimSpace(v) != "*" {
			return c, cannotKeep("If-None-Match", v, orNew)
		}
		c.New = true
		if v := q.Header.Get("If-Match"); v != "" {
			return c, cannotKeep("If-Match", v, orNew)
		}
	}
	c.Match, err = match(q, orNew)
	return c, err
}

// deletion reads If-Match of a deletion.
func deletion(q *request) ([]digest.Digest, error) {
	if v := q.Header.Get("If-None-Match"); v != "" {
		return nil, cannotKeep("If-None-Match", v, "")
	}
	return match(q, "")
}

// orNew is what a push may say beside If-Match.
const orNew = ", or If-None-Match: * for a tag that must not be there"

// match reads If-Match; or is what could be said in place of it.
func match(q *request, or string) (all []digest.Digest, err error) {
	v := q.Header.Get("If-Match")
	if v == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(v, ",") {
		text, ok := strings.CutPrefix(strings.TrimSpace(part), `"`)
		text, end := strings.CutSuffix(text, `"`)
		d, err := parseDigest(text)
		if !ok || !end || err != nil {
			return nil, cannotKeep("If-Match", v, or)
		}
		all = append(all, d)
	}
	return all, nil
}

func cannotKeep(name, value, or string) error {
	return refuseStatus(http.StatusBadRequest, errcode.ErrorCodeUnsupported,
		"%s: %q cannot be kept: use If-Match with what the tag says, in quotes as ETag has it%s", name, clip(value), or)
}

// refusedEdit answers for what the control state refuses.
func refusedEdit(no *command.Error) *apiError {
	switch no.Code {
	case command.CodeConflict, command.CodeExists:
		return refuseStatus(http.StatusConflict, errcode.ErrorCodeDenied, "%s", no.Message)
	case command.CodeNotFound:
		return refuse(errcode.ErrorCodeNameUnknown, "%s", no.Message)
	case command.CodeInvalid:
		return refuseStatus(http.StatusBadRequest, errcode.ErrorCodeUnsupported, "%s", no.Message)
	default:
		return refuse(errcode.ErrorCodeDenied, "%s", no.Message)
	}
}

// undecided answers when no majority could decide about tags.
func undecided(u *command.Unavailable) *apiError {
	e := unavailable(u.Error(), u.RetryAfter)
	if len(u.Sites) > 0 {
		e = e.detail(map[string]any{"sites": u.Sites})
	}
	return e
}

// decided finds what the control plane said of an edit or read.
func decided(err error) *apiError {
	var (
		no    *command.Error
		later *command.Unavailable
		never *Refused
	)
	switch {
	case errors.As(err, &never):
		return refuseStatus(never.Status, errcode.ErrorCodeDenied, "%s", never.Reason)
	case errors.As(err, &later):
		return undecided(later)
	case errors.As(err, &no):
		return refusedEdit(no)
	}
	return nil
}
