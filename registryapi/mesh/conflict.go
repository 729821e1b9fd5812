package mesh

import (
	"context"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/rest"
)

// Conflict is a write of a tag that lost to one which another site made at the same
// time: neither had seen the other.
type Conflict struct {
	Repository string        `json:"repository" doc:"PROJECT/NAME; of a deleted project whose content has gone its id instead of its name"`
	Tag        string        `json:"tag"`
	Loser      digest.Digest `json:"loser" doc:"What the site's write said: it can be pulled by its digest, for 30 days after another write ended the conflict"`
	Winner     digest.Digest `json:"winner,omitempty" doc:"What the tag said when the conflict was found; empty: it was deleted by then"`
	Actor      string        `json:"actor,omitempty" doc:"Who made the losing write; empty: it was not known any more"`
	FoundAt    time.Time     `json:"found_at"`
}

type conflictsIn struct {
	Project string `query:"project" maxLength:"255" doc:"Of this project alone; empty: of all"`
	N       int    `query:"n" default:"100" minimum:"1" maximum:"1000" doc:"How many at most"`
}

type conflictsOut struct{ Body []Conflict }

func (a *API) registerConflicts() {
	rest.Register(a.rest, rest.Op{ID: "list-conflicts", Method: http.MethodGet, Path: "/conflicts", Tag: "tags", Who: rest.SystemAdmin,
		Summary: "Writes of tags made at this site that lost to concurrent ones, the last found first; they are kept for 60 days"}, a.listConflicts)
}

func (a *API) listConflicts(_ context.Context, in *conflictsIn) (*conflictsOut, error) {
	v := a.cfg.View()
	var pid identity.ProjectID
	if in.Project != "" {
		p, ok := v.Project(in.Project)
		if !ok {
			return nil, rest.NotFound("there is no project %q: see the projects with: portolan project list", in.Project)
		}
		pid = p.PID
	}
	found, err := a.cfg.Catalog.Conflicts(pid, in.N)
	if err != nil {
		return nil, err
	}
	out := &conflictsOut{Body: make([]Conflict, len(found))}
	for i, c := range found {
		name := c.PID.String()
		if p, ok := v.ProjectByPID(c.PID); ok && !p.Purged() { // another one may have its name
			name = p.Name
		}
		out.Body[i] = Conflict{Repository: name + "/" + c.Repo, Tag: c.Tag, Loser: c.Loser, Winner: c.Winner, Actor: c.Actor, FoundAt: c.FoundAt}
	}
	return out, nil
}
