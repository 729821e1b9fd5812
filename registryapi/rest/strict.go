package rest

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/portolan/portolan/registryapi/access"
)

// What a request may say about how fresh its answer shall be, and what each
// answer says of it.
const (
	// ConsistencyHeader is "local" (also if it is missing) or "strict".
	ConsistencyHeader = "X-Portolan-Consistency"
	// IndexHeader is the raft index of the state that was read, at least.
	IndexHeader = "X-Portolan-Index"
	// StalenessHeader is how many seconds ago the node heard from the leader: so
	// old the state may be. 0 at the leader, and after a strict read; it is
	// missing where no leader was ever heard.
	StalenessHeader = "X-Portolan-Staleness"

	consistencyStrict = "strict"
	consistencyLocal  = "local"
)

// Replica is the node's copy of the control state. *consensus.Node is one.
type Replica interface {
	// CatchUp returns when the copy has every edit that was answered before.
	CatchUp(ctx context.Context) (uint64, error)
	// Staleness gives the index that the copy has, and how long ago the leader
	// was heard; -1: never.
	Staleness() (index uint64, behind time.Duration)
}

// freshness catches up where that is asked for, and says how fresh an answer is.
// It comes after who: a stranger must not make the mesh work.
func (a *API) freshness(need Who) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		index, behind := a.cfg.Replica.Staleness()
		switch want := ctx.Header(ConsistencyHeader); want {
		case "", consistencyLocal:
		case consistencyStrict:
			again, at, err := a.catchUp(ctx, need)
			if err != nil {
				_, w := humago.Unwrap(ctx)
				a.write(w, a.answer(ctx.Context(), "strict read", err))
				return
			}
			ctx, index, behind = again, at, 0
			ctx.SetHeader(ConsistencyHeader, consistencyStrict)
		default:
			_, w := humago.Unwrap(ctx)
			a.write(w, Invalid("%s: %q is not known here: use strict, or leave it out for what this node has", ConsistencyHeader, want))
			return
		}
		ctx.SetHeader(IndexHeader, strconv.FormatUint(index, 10))
		if behind >= 0 {
			ctx.SetHeader(StalenessHeader, strconv.FormatFloat(behind.Seconds(), 'f', 3, 64))
		}
		next(ctx)
	}
}

func (a *API) catchUp(ctx huma.Context, need Who) (huma.Context, uint64, error) {
	if Subject(ctx.Context()).Kind != access.User {
		return ctx, 0, fail(http.StatusUnauthorized, "a strict read needs a login, as it makes all voting sites work: send a user name and a password, or leave out %s", ConsistencyHeader)
	}
	at, err := a.cfg.Replica.CatchUp(ctx.Context())
	if err != nil {
		return ctx, 0, err
	}
	// He may have lost his rights in what this node had not got.
	r, _ := humago.Unwrap(ctx)
	s, err := a.authenticate(r, need)
	return huma.WithValue(ctx, subjectKey{}, s), at, err
}

// consistencyParam describes the header; it is the same in all operations.
var consistencyParam = &huma.Param{
	Name: ConsistencyHeader, In: "header",
	Description: "strict: the answer has every edit that was answered anywhere before; it needs a login and a majority of the voting sites, " +
		"and costs what an edit costs; without a majority it is 503 with the sites. local, or missing: what this node has. Answers say " +
		IndexHeader + " (raft index of what was read) and " + StalenessHeader + " (seconds since the leader was heard).",
	Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{consistencyLocal, consistencyStrict}, Default: consistencyLocal},
}
