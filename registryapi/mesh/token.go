package mesh

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/rest"
)

// TokenFor is a join token's life if nobody says otherwise: a working day and
// the night after it.
const TokenFor = 24 * time.Hour

type listTokens struct{ Body []Token }

// TokenPath names a token in a path.
type TokenPath struct {
	ID int64 `path:"id" minimum:"1"`
}

type tokenEditIn struct {
	TokenPath
	rest.Condition
}

func (a *API) registerTokens() {
	rest.Register(a.rest, rest.Op{ID: "list-tokens", Method: http.MethodGet, Path: "/tokens", Tag: "tokens", Who: rest.SystemAdmin,
		Summary: "Join tokens, oldest first, without their secrets"}, func(context.Context, *struct{}) (*listTokens, error) {
		out := &listTokens{Body: []Token{}}
		for _, t := range a.cfg.View().Tokens() {
			out.Body = append(out.Body, a.token(t))
		}
		return out, nil
	})
	rest.Register(a.rest, rest.Op{ID: "create-token", Method: http.MethodPost, Path: "/tokens", Tag: "tokens", Who: rest.SystemAdmin,
		Status: http.StatusCreated, Summary: "Make a join token; its text is shown this once"}, a.createToken)
	rest.Register(a.rest, rest.Op{ID: "get-token", Method: http.MethodGet, Path: "/tokens/{id}", Tag: "tokens", Who: rest.SystemAdmin,
		Summary: "One join token, without its secret"}, func(_ context.Context, in *TokenPath) (*rest.Object[Token], error) {
		t, ok := a.cfg.View().Token(in.ID)
		if !ok {
			return nil, rest.NotFound("there is no token %d: see the ids with: portolan token list", in.ID)
		}
		return rest.ObjectOf(t.ID, t.Version, a.token(t)), nil
	})
	rest.Register(a.rest, rest.Op{ID: "revoke-token", Method: http.MethodPost, Path: "/tokens/{id}/revoke", Tag: "tokens", Who: rest.SystemAdmin,
		Summary: "Take a join token back; it stays in the list, and whoever comes with it is told"}, func(ctx context.Context, in *tokenEditIn) (*rest.Object[Token], error) {
		want, err := in.Expect(in.ID, 0)
		if err != nil {
			return nil, err
		}
		if _, err := a.edit(ctx, want, &command.TokenRevoke{Id: in.ID, IfVersion: want.Version}); err != nil {
			return nil, err
		}
		t, ok := a.cfg.View().Token(in.ID)
		if !ok {
			return nil, rest.Conflict("the token %d was deleted at the moment it was revoked", in.ID)
		}
		return rest.ObjectOf(t.ID, t.Version, a.token(t)), nil
	})
	rest.Register(a.rest, rest.Op{ID: "delete-token", Method: http.MethodDelete, Path: "/tokens/{id}", Tag: "tokens", Who: rest.SystemAdmin,
		Summary: "Delete a join token; whoever comes with it is told that it is not known"}, func(ctx context.Context, in *tokenEditIn) (*rest.Empty, error) {
		want, err := in.Expect(in.ID, 0)
		if err != nil {
			return nil, err
		}
		return a.edit(ctx, want, &command.TokenDelete{Id: in.ID, IfVersion: want.Version})
	})
}

func (a *API) createToken(ctx context.Context, in *struct{ Body TokenRequest }) (*rest.Created[Token], error) {
	life := TokenFor
	if in.Body.ExpiresIn != "" {
		var err error
		if life, err = time.ParseDuration(in.Body.ExpiresIn); err != nil || life <= 0 {
			return nil, rest.Invalid("%q is not how long a token may live: write it as 90m or 24h", in.Body.ExpiresIn)
		}
	}
	if life > state.MaxTokenFor {
		return nil, rest.Invalid("a token may live %d days at most, not %s", int(state.MaxTokenFor.Hours()/24), life)
	}
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // crypto/rand.Read never fails (Go 1.24)
	hash := sha256.Sum256(secret[:])
	expires := a.cfg.Now().Add(life)
	res, err := a.propose(ctx, &command.TokenCreate{Site: in.Body.Site, SecretHash: hash[:], ExpiresUnixNs: expires.UnixNano()})
	if err != nil {
		return nil, err
	}
	t, ok := a.cfg.View().Token(res.ID)
	if !ok {
		return nil, rest.Conflict("the token %d was deleted at the moment it was made: make another", res.ID)
	}
	out := a.token(t)
	if out.Token, err = a.cfg.JoinToken(JoinToken{ID: t.ID, Secret: secret, Site: t.Site, ExpiresAt: t.ExpiresAt}); err != nil {
		return nil, fmt.Errorf("mesh: write token %d: %w", t.ID, err)
	}
	return rest.Made(fmt.Sprintf("%s/tokens/%d", Prefix, t.ID), out), nil
}

func (a *API) token(t state.Token) Token {
	out := Token{ID: t.ID, Site: t.Site, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt, CreatedBy: t.CreatedBy, State: "open"}
	switch {
	case !t.UsedBy.IsZero():
		out.State, out.UsedBy, out.UsedAt = "used", t.UsedBy.String(), t.UsedAt
	case t.Revoked():
		out.State, out.RevokedBy, out.RevokedAt = "revoked", t.RevokedBy, t.RevokedAt
	case a.cfg.Now().After(t.ExpiresAt):
		out.State = "expired"
	}
	return out
}
