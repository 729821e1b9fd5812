package mesh

import (
	"context"
	"net/http"
	"slices"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/registryapi/rest"
)

// Voters is how many sites vote.
type Voters struct {
	Voters  int      `json:"voters" enum:"3,5" doc:"How many sites vote, where there are as many: 3 outlive the loss of one, 5 of two"`
	Sites   []string `json:"sites" doc:"Those that vote now"`
	Version uint64   `json:"resource_version" doc:"Goes up with every edit of the mesh's settings"`
}

// VotersRequest changes a Voters.
type VotersRequest struct {
	Voters    int    `json:"voters" enum:"3,5"`
	IfVersion uint64 `json:"resource_version,omitempty" doc:"Refuse if the mesh's settings have another version; 0: any"`
}

type setVotersIn struct {
	rest.Condition
	Body VotersRequest
}

func (a *API) registerVoters() {
	rest.Register(a.rest, rest.Op{ID: "get-voters", Method: http.MethodGet, Path: "/voters", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "How many sites vote, and which do"}, func(context.Context, *struct{}) (*rest.Object[Voters], error) {
		return a.voters(), nil
	})
	rest.Register(a.rest, rest.Op{ID: "set-voters", Method: http.MethodPut, Path: "/voters", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Change how many sites vote; votes are given and taken in the next seconds"}, func(ctx context.Context, in *setVotersIn) (*rest.Object[Voters], error) {
		want, err := in.Expect(meshID, in.Body.IfVersion)
		if err != nil {
			return nil, err
		}
		if _, err := a.edit(ctx, want, &command.VotersSet{Voters: uint32(in.Body.Voters), IfVersion: want.Version}); err != nil {
			return nil, err
		}
		return a.voters(), nil
	})
}

func (a *API) voters() *rest.Object[Voters] {
	v := a.cfg.View()
	out := Voters{Voters: v.Mesh().WantsVoters(), Sites: []string{}, Version: v.Mesh().Version}
	for _, id := range a.cfg.Consensus().Voters {
		if n, ok := v.Node(id); ok {
			out.Sites = append(out.Sites, n.Site)
		}
	}
	slices.Sort(out.Sites)
	return rest.ObjectOf(meshID, out.Version, out)
}
