package access

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
)

const (
	// Service is the audience of tokens and the service of challenges.
	Service = "portolan"
	// TokenPath is where the token service is.
	TokenPath = "/service/token"

	// tokenLife is how long a token is good for: rights are decided at each
	// request anyway, so it bounds only how long a stolen one is of use.
	tokenLife = 30 * time.Minute
	// clockLeeway forgives sites' clocks what the mesh forgives them elsewhere.
	clockLeeway = time.Minute
	// maxTokenBytes bounds what is parsed; ours with maxScopes are below it.
	maxTokenBytes = 16 << 10
	// maxScopes bounds the scopes of one token: a client asks for one
	// repository, or for two when it mounts.
	maxScopes = 32
)

// Scope is what a token is limited to.
type Scope struct {
	// Catalog allows to list repositories.
	Catalog bool
	repos   map[string]map[string]bool // canonical full name -> action words
}

// Allows reports whether the scope has the action for the canonical full name.
func (s *Scope) Allows(name string, action Action) bool {
	return s.repos[name][action.String()]
}

// claims is the token's body. Names are short for the sake of header sizes;
// the registered ones are the standard's.
type claims struct {
	jwt.RegisteredClaims
	// UserID with Subject names the user; both are absent for anonymous.
	UserID int64 `json:"uid,omitempty"`
	// Credential is a print of the stored password hash: with a new password
	// the tokens of the old one are void.
	Credential string        `json:"crd,omitempty"`
	Access     []accessClaim `json:"access,omitempty"`

	scope *Scope
	node  identity.NodeID
}

type accessClaim struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

func credentialPrint(hash string) string {
	sum := sha256.Sum256([]byte("portolan token credential\x00" + hash))
	return hex.EncodeToString(sum[:8])
}

func (a *Access) makeToken(s Subject, v *state.View, scopes []accessClaim) (string, time.Time, error) {
	now := a.cfg.Now()
	c := claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:    v.Mesh().ID.String(),
			Audience:  jwt.ClaimStrings{Service},
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now),
			ExpiresAt: jwt.NewNumericDate(now.Add(tokenLife)),
		},
		Access: scopes,
	}
	if s.Kind == User {
		u, ok := v.UserByID(s.UserID)
		if !ok {
			return "", now, ErrCredentials
		}
		c.Subject, c.UserID, c.Credential = u.Name, u.ID, credentialPrint(u.PasswordHash)
	}
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	t.Header["kid"] = a.cfg.Identity.ID.String()
	signed, err := t.SignedString(a.cfg.Identity.PrivateKey())
	if err != nil {
		return "", now, fmt.Errorf("access: sign token: %w", err)
	}
	return signed, now, nil
}

// verifyToken takes a token that any node of the mesh has signed. Signature
// and form are checked once per token; node, user and time at each request.
func (a *Access) verifyToken(raw string) (Subject, error) {
	if raw == "" || len(raw) > maxTokenBytes {
		return Subject{}, ErrToken
	}
	v := a.cfg.View()
	key := sha256.Sum256([]byte(raw))
	c, ok := a.tokens.Get(key)
	if !ok {
		var err error
		if c, err = parseToken(raw, v, a.cfg.Identity.ID); err != nil {
			a.cfg.Logger.Debug("token refused", slog.Any("error", err))
			return Subject{}, fmt.Errorf("%w (%s)", ErrToken, reason(err))
		}
		a.tokens.Add(key, c)
	}
	now := a.cfg.Now()
	switch {
	case now.After(c.ExpiresAt.Add(clockLeeway)):
		a.tokens.Remove(key)
		return Subject{}, fmt.Errorf("%w (expired)", ErrToken)
	case now.Before(c.NotBefore.Add(-clockLeeway)):
		return Subject{}, fmt.Errorf("%w (made in the future: check the clocks of the sites)", ErrToken)
	case c.Issuer != v.Mesh().ID.String():
		return Subject{}, fmt.Errorf("%w (made by another mesh)", ErrToken)
	}
	if !signs(v, c.node, a.cfg.Identity.ID) {
		a.tokens.Remove(key)
		return Subject{}, fmt.Errorf("%w (made by a node that is no member)", ErrToken)
	}
	if c.UserID == 0 {
		return Subject{Scope: c.scope}, nil
	}
	u, ok := v.UserByID(c.UserID)
	if !ok || u.Name != c.Subject || credentialPrint(u.PasswordHash) != c.Credential {
		return Subject{}, fmt.Errorf("%w (its user has changed)", ErrToken)
	}
	return Subject{Kind: User, UserID: u.ID, Name: u.Name, Admin: u.Admin, Scope: c.scope}, nil
}

var errNotMember = errors.New("made by a node that is no member")

func reason(err error) string {
	switch {
	case errors.Is(err, errNotMember):
		return errNotMember.Error()
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return "wrong signature"
	}
	return "malformed"
}

// signs reports whether a node's tokens are good: those of members are, and a
// node's own, so that one that was removed still serves what it has. Everywhere
// else a removed node's tokens die with its key.
func signs(v *state.View, node, self identity.NodeID) bool {
	_, member := v.Node(node)
	return member || node == self
}

func parseToken(raw string, v *state.View, self identity.NodeID) (*claims, error) {
	c := &claims{}
	// Times and issuer are judged at each use, by verifyToken.
	p := jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation())
	_, err := p.ParseWithClaims(raw, c, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		id, err := identity.ParseNodeID(kid)
		if err != nil {
			return nil, err
		}
		if !signs(v, id, self) {
			return nil, errNotMember
		}
		c.node = id
		return id.PublicKey(), nil
	})
	if err != nil {
		return nil, err
	}
	if c.ExpiresAt == nil || c.NotBefore == nil || !contains(c.Audience, Service) || (c.UserID == 0) != (c.Subject == "") {
		return nil, errors.New("claims are missing")
	}
	c.scope = &Scope{repos: map[string]map[string]bool{}}
	for _, s := range c.Access {
		switch s.Type {
		case "registry":
			c.scope.Catalog = c.scope.Catalog || s.Name == "catalog"
		case "repository":
			if c.scope.repos[s.Name] == nil {
				c.scope.repos[s.Name] = map[string]bool{}
			}
			for _, act := range s.Actions {
				c.scope.repos[s.Name][act] = true
			}
		}
	}
	return c, nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// parseScopes reads the scopes that a client asks for: "repository:NAME:a,b"
// and "registry:catalog:*", space separated or in several parameters. What is
// not understood is left out, as the protocol wants; the request that needs it
// will be refused with a reason.
func (a *Access) parseScopes(r *http.Request, params []string) []accessClaim {
	var out []accessClaim
	for _, s := range strings.Fields(strings.Join(params, " ")) {
		if len(out) == maxScopes {
			break
		}
		typ, rest, ok := strings.Cut(s, ":")
		i := strings.LastIndexByte(rest, ':') // a name may have a port in it
		if !ok || i < 0 {
			continue
		}
		name, words := rest[:i], rest[i+1:]
		// "repository(plugin)" is the form with a class, long out of use.
		typ, _, _ = strings.Cut(typ, "(")
		switch typ {
		case "registry":
			if name == "catalog" {
				out = append(out, accessClaim{Type: "registry", Name: "catalog", Actions: []string{"*"}})
			}
		case "repository":
			project, repo, err := a.Canonical(r, name)
			if err != nil {
				continue
			}
			var actions []string
			for _, w := range strings.Split(words, ",") {
				switch w {
				case "*":
					actions = []string{Pull.String(), Push.String(), Delete.String()}
				case Pull.String(), Push.String(), Delete.String():
					if !contains(actions, w) {
						actions = append(actions, w)
					}
				}
			}
			if len(actions) > 0 {
				out = append(out, accessClaim{Type: "repository", Name: project + "/" + repo, Actions: actions})
			}
		}
	}
	return out
}

// RepositoryScope writes the scope of a challenge. name is the name as the
// client wrote it: it compares.
func RepositoryScope(name string, actions ...Action) string {
	words := make([]string, len(actions))
	for i, act := range actions {
		words[i] = act.String()
	}
	return "repository:" + name + ":" + strings.Join(words, ",")
}

// CatalogScope is the scope of a challenge at the list of repositories.
const CatalogScope = "registry:catalog:*"

// Challenge sets the header of a 401 answer that sends a client to the token
// service under the name by which it reached this node. problem is "", or
// "invalid_token" or "insufficient_scope" of RFC 6750.
func (a *Access) Challenge(w http.ResponseWriter, r *http.Request, problem string, scopes ...string) {
	c := "Bearer realm=" + strconv.Quote(a.ExternalURL(r)+TokenPath) + ",service=" + strconv.Quote(Service)
	if len(scopes) > 0 {
		c += ",scope=" + strconv.Quote(strings.Join(scopes, " "))
	}
	if problem != "" {
		c += ",error=" + strconv.Quote(problem)
	}
	w.Header().Set("WWW-Authenticate", c)
}
