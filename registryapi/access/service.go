package access

import (
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"
)

// maxFormBytes bounds the body of an OAuth2 token request.
const maxFormBytes = 64 << 10

type tokenResponse struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	ExpiresIn   int    `json:"expires_in"`
	IssuedAt    string `json:"issued_at"`
	TokenType   string `json:"token_type"`
	Scope       string `json:"scope,omitempty"`
}

// TokenHandler is the Docker token service: GET with basic authentication or
// none, POST with an OAuth2 password grant. There are no refresh tokens.
func (a *Access) TokenHandler() http.Handler { return http.HandlerFunc(a.serveToken) }

func (a *Access) serveToken(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	var subject Subject
	var scopes []string
	var err error
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		scopes = r.URL.Query()["scope"]
		subject, err = a.Authenticate(r)
	case http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, maxFormBytes)
		if perr := r.ParseForm(); perr != nil {
			tokenError(w, http.StatusBadRequest, errcode.ErrorCodeUnsupported, "the form cannot be read: send application/x-www-form-urlencoded")
			return
		}
		if g := r.PostForm.Get("grant_type"); g != "password" {
			tokenError(w, http.StatusBadRequest, errcode.ErrorCodeUnsupported, "only grant_type=password is supported: log in with user name and password")
			return
		}
		scopes = r.PostForm["scope"]
		subject, err = a.Login(r, r.PostForm.Get("username"), r.PostForm.Get("password"))
	default:
		w.Header().Set("Allow", "GET, POST")
		tokenError(w, http.StatusMethodNotAllowed, errcode.ErrorCodeUnsupported, "the token service takes GET and POST")
		return
	}
	if err != nil {
		var busy *TooMany
		if errors.As(err, &busy) {
			w.Header().Set("Retry-After", RetryAfter(busy.RetryAfter))
			tokenError(w, http.StatusTooManyRequests, errcode.ErrorCodeTooManyRequests, err.Error())
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="`+Service+`"`)
		tokenError(w, http.StatusUnauthorized, errcode.ErrorCodeUnauthorized, err.Error())
		return
	}
	asked := a.parseScopes(r, scopes)
	token, issued, err := a.makeToken(subject, a.cfg.View(), asked)
	if err != nil {
		a.cfg.Logger.Error("token not made", slog.Any("error", err))
		tokenError(w, http.StatusInternalServerError, errcode.ErrorCodeUnknown, "the token could not be made: see the node's log")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(tokenResponse{ // an error is the client's leaving
		Token: token, AccessToken: token, TokenType: "Bearer",
		ExpiresIn: int(tokenLife / time.Second),
		IssuedAt:  issued.UTC().Format(time.RFC3339),
	})
}

func tokenError(w http.ResponseWriter, status int, code errcode.ErrorCode, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(errcode.Errors{code.WithMessage(message)})
}

// RetryAfter writes a duration for the header of that name: whole seconds, at
// least one.
func RetryAfter(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}
