package v2

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/access"
)

// syncingRetry is when a site that takes a project in may have all of it: a
// million entries take about a minute.
const syncingRetry = 10 * time.Second

// unauthenticated answers credentials that were not taken.
func (h *Handler) unauthenticated(q *request, err error) error {
	var busy *access.TooMany
	if errors.As(err, &busy) {
		return err
	}
	problem := ""
	if errors.Is(err, access.ErrToken) {
		problem = "invalid_token"
	}
	return h.unauthorised(q, problem, err.Error(), h.scopes(q)...)
}

// scopes are those that the request's token would need.
func (h *Handler) scopes(q *request) []string {
	if q.route.repo == "" {
		return nil
	}
	method := q.Method
	if method == "HEAD" {
		method = "GET"
	}
	return challengeScopes(q, needs(q.route.name, method))
}

// challengeScopes asks for pull beside push: a push looks at what is there, and
// clients keep the token for that. A mount needs to pull from its source too.
func challengeScopes(q *request, actions []access.Action) []string {
	if len(actions) == 1 && actions[0] == access.Push {
		actions = []access.Action{access.Pull, access.Push}
	}
	scopes := []string{access.RepositoryScope(q.route.repo, actions...)}
	from := q.query.Get("from")
	if from == "" || q.query.Get("mount") == "" {
		return scopes
	}
	if project, repo, err := q.access.Canonical(q.Request, from); err == nil {
		scopes = append(scopes, access.RepositoryScope(project+"/"+repo, access.Pull))
	}
	return scopes
}

// unauthorised makes the 401 answer that sends the client to the token service.
func (h *Handler) unauthorised(q *request, problem, message string, scopes ...string) error {
	h.cfg.Access.Challenge(q.w, q.Request, problem, scopes...)
	return refuse(errcode.ErrorCodeUnauthorized, "%s", message)
}

// authorise finds the project if the subject may do all of actions in the
// repository, and refuses otherwise. Who may not see a project hears the same
// whether it is there or not.
func (h *Handler) authorise(q *request, project, repo string, actions ...access.Action) (state.Project, error) {
	v := h.cfg.View()
	q.aclIndex = v.Index()
	name := project + "/" + repo
	p, exists := v.Project(project)
	a := h.cfg.Access

	// A token that was not made for this is no reason to say more.
	if s := q.subject.Scope; s != nil {
		for _, act := range actions {
			if !s.Allows(name, act) {
				return p, h.unauthorised(q, "insufficient_scope", "the token is not for this: ask the token service for one",
					challengeScopes(q, actions)...)
			}
		}
	}
	may := exists
	for _, act := range actions {
		may = may && a.CanRepository(q.subject, p, repo, act)
	}
	if !may {
		return p, h.denied(q, p, exists, project, repo, actions)
	}
	switch p.Residence(h.cfg.Site) {
	case state.Out:
		return p, refuse(errcode.ErrorCodeDenied, "project %s is not kept at site %s: use %s", project, h.cfg.Site, strings.Join(p.Sites, ", "))
	case state.Leaving:
		if slices.Contains(actions, access.Push) || slices.Contains(actions, access.Delete) {
			return p, refuse(errcode.ErrorCodeDenied, "project %s leaves site %s, which takes no pushes and deletes any more: use %s", project, h.cfg.Site, strings.Join(p.Sites, ", "))
		}
	case state.Syncing:
		// Never "not found": what is not here yet may be at every other site.
		return p, &Unavailable{Reason: "site " + h.cfg.Site + " takes project " + project + " in and has not yet all of it", RetryAfter: syncingRetry}
	}
	return p, nil
}

// leavingSays makes "not found" of a site that leaves the project what it can say:
// it has not got it, and is sent nothing new.
func (h *Handler) leavingSays(q *request, err error) error {
	var answer *apiError
	if !errors.As(err, &answer) || answer.status != http.StatusNotFound || q.project.Residence(h.cfg.Site) != state.Leaving {
		return err
	}
	return refuse(errcode.ErrorCodeDenied, "project %s leaves site %s, which has not got this: use %s", q.project.Name, h.cfg.Site, strings.Join(q.project.Sites, ", "))
}

func (h *Handler) denied(q *request, p state.Project, exists bool, project, repo string, actions []access.Action) error {
	words := make([]string, len(actions))
	for i, act := range actions {
		words[i] = act.String()
	}
	what := strings.Join(words, " and ")
	switch {
	case q.subject.Kind == access.Anonymous:
		return h.unauthorised(q, "", "log in to "+what+" "+project+"/"+repo, challengeScopes(q, actions)...)
	case !exists && q.subject.Admin:
		return refuse(errcode.ErrorCodeNameUnknown, "project %s is not there: make it with: portolan project create %s", project, project)
	case exists && h.cfg.Access.CanRepository(scopeless(q.subject), p, repo, access.ReadProject):
		return refuse(errcode.ErrorCodeDenied, "%s may not %s %s/%s: ask an administrator of project %s for a role that may", q.subject.Name, what, project, repo, project)
	}
	return refuse(errcode.ErrorCodeDenied,
		"project %s is not there, or %s may not see it: make it with: portolan project create %s, or ask its administrator for a role", project, q.subject.Name, project)
}

// scopeless is the subject without its token's limits: for choosing words, not
// for granting anything.
func scopeless(s access.Subject) access.Subject {
	s.Scope = nil
	return s
}
