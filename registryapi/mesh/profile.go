package mesh

import (
	"context"
	"net/http"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/registryapi/rest"
)

// Profile is the raft timings of the mesh.
type Profile struct {
	Name      string  `json:"name" enum:"lan,wan,far" doc:"What the mesh is set to"`
	InUse     string  `json:"in_use" doc:"What the answering node runs with: a restart takes what the mesh is set to"`
	Suggested string  `json:"suggested,omitempty" doc:"What fits the round trips between the voters; empty: the answering node does not lead, or they are not known yet"`
	RoundTrip float64 `json:"round_trip_ms" doc:"Longest usual round trip between the leader and another voter, in milliseconds; 0: not known here"`
	Version   uint64  `json:"resource_version" doc:"Goes up with every edit of the mesh's settings"`
}

// ProfileRequest changes a Profile.
type ProfileRequest struct {
	Name      string `json:"name" enum:"lan,wan,far"`
	IfVersion uint64 `json:"resource_version,omitempty" doc:"Refuse if the mesh's settings have another version; 0: any"`
}

type setProfileIn struct {
	rest.Condition
	Body ProfileRequest
}

// meshID stands for the mesh in ETags: there is one.
const meshID = 0

func (a *API) registerProfile() {
	rest.Register(a.rest, rest.Op{ID: "get-profile", Method: http.MethodGet, Path: "/profile", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "The mesh's raft timings"}, func(context.Context, *struct{}) (*rest.Object[Profile], error) {
		return a.profile(), nil
	})
	rest.Register(a.rest, rest.Op{ID: "set-profile", Method: http.MethodPut, Path: "/profile", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Change the mesh's raft timings; each node takes them at its next start"}, func(ctx context.Context, in *setProfileIn) (*rest.Object[Profile], error) {
		want, err := in.Expect(meshID, in.Body.IfVersion)
		if err != nil {
			return nil, err
		}
		if _, err := a.edit(ctx, want, &command.ProfileSet{Profile: in.Body.Name, IfVersion: want.Version}); err != nil {
			return nil, err
		}
		return a.profile(), nil
	})
}

func (a *API) profile() *rest.Object[Profile] {
	m, c := a.cfg.View().Mesh(), a.cfg.Consensus()
	return rest.ObjectOf(meshID, m.Version, Profile{Name: m.Profile, InUse: c.Profile, Suggested: c.Suggested, RoundTrip: c.RoundTrip, Version: m.Version})
}
