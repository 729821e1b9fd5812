package access

import (
	"errors"
	"net/http"
)

// Who may read what is neither a repository nor an API: the values of
// --metrics-for.
const (
	ForAnyone = "anyone"
	ForUsers  = "users"
	ForAdmins = "admins"
)

// Only lets those through to next whom who names, by basic authentication;
// ForAnyone asks nobody. A word that is not one of the three lets admins alone
// through.
func (a *Access) Only(who string, next http.Handler) http.Handler {
	if who == ForAnyone {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := a.Authenticate(r)
		var busy *TooMany
		switch {
		case errors.As(err, &busy):
			w.Header().Set("Retry-After", RetryAfter(busy.RetryAfter))
			http.Error(w, err.Error(), http.StatusTooManyRequests)
		case err != nil:
			w.Header().Set("WWW-Authenticate", `Basic realm="`+Service+`"`)
			http.Error(w, err.Error(), http.StatusUnauthorized)
		case s.Kind != User:
			w.Header().Set("WWW-Authenticate", `Basic realm="`+Service+`"`)
			http.Error(w, "log in to read this", http.StatusUnauthorized)
		case who != ForUsers && !s.Admin:
			http.Error(w, "only administrators may read this", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}
