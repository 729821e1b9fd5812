package rest

import (
	"context"
	"errors"
	"net/http"
	"reflect"

	"github.com/portolan/portolan/registryapi/access"
)

var typeFailures = reflect.TypeFor[Failures]()

// authenticate finds out who asks and whether he may call an operation at all.
func (a *API) authenticate(r *http.Request, need Who) (access.Subject, error) {
	s, err := a.cfg.Auth.Authenticate(r)
	var many *access.TooMany
	switch {
	case errors.As(err, &many):
		return s, &Error{Status: http.StatusTooManyRequests, Code: CodeTooMany, Message: many.Error(), RetryAfter: many.RetryAfter}
	case errors.Is(err, access.ErrCredentials), errors.Is(err, access.ErrScheme):
		return s, fail(http.StatusUnauthorized, "%s", err)
	case errors.Is(err, access.ErrToken):
		return s, fail(http.StatusUnauthorized, "registry tokens are for /v2 only: use a user name and a password here")
	case err != nil:
		return s, err
	}
	if need != Anyone && s.Kind != access.User {
		return s, fail(http.StatusUnauthorized, "this needs a login: send a user name and a password (portolan login)")
	}
	if need == SystemAdmin && !s.Admin {
		return s, Forbidden("only a system administrator may do this; %s is none", s.Name)
	}
	return s, nil
}

// Actor gives who asks, in the form that commands and the audit trail take.
func Actor(ctx context.Context) string { return Subject(ctx).Actor() }
