package mesh

import (
	"log/slog"
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/apitest"
)

func TestAPI_Voters(t *testing.T) {
	f := newFixture(t)
	v := decode[Voters](f, f.want(200, "admin", "GET", "/voters", ""))
	if v.Voters != 3 || len(v.Sites) != 1 || v.Sites[0] != "fra" || v.Version == 0 {
		t.Errorf("%+v", v)
	}
	five := decode[Voters](f, f.want(200, "admin", "PUT", "/voters", `{"voters":5}`))
	if five.Voters != 5 || five.Version <= v.Version {
		t.Errorf("%+v", five)
	}
	if s := decode[Status](f, f.want(200, "admin", "GET", "/status", "")); s.VotersWanted != 5 {
		t.Errorf("the status says %d", s.VotersWanted)
	}
	f.want(409, "admin", "PUT", "/voters", `{"voters":3,"resource_version":1}`)
	f.want(422, "admin", "PUT", "/voters", `{"voters":4}`)
	f.want(401, "", "GET", "/voters", "")
}

func TestAPI_RoundTrips(t *testing.T) {
	f := newFixture(t)
	if s := decode[Status](f, f.want(200, "admin", "GET", "/status", "")); len(s.RoundTrips) != 2 {
		t.Errorf("the status has %v", s.RoundTrips)
	}
	for name, want := range map[string]float64{"fra": 81.5, "nyc": 82} {
		s := decode[Site](f, f.want(200, "admin", "GET", "/sites/"+name, ""))
		if len(s.RoundTrips) != 1 || s.RoundTrips[0].RTT != want {
			t.Errorf("%s has %v", name, s.RoundTrips)
		}
	}
	if s := decode[Site](f, f.want(200, "admin", "GET", "/sites/sgp", "")); s.RoundTrips == nil || len(s.RoundTrips) != 0 {
		t.Errorf("sgp has %v", s.RoundTrips)
	}
}

// TestNewStatus: a witness says how the mesh is, and has no other operation.
func TestNewStatus(t *testing.T) {
	f := newFixture(t)
	m := f.mesh
	api, err := NewStatus(Config{View: m.State.View, Replica: m, Access: m.Access, Self: m.Identity.ID, Site: m.Site,
		Consensus: func() Consensus { return Consensus{} }, Peer: func(identity.NodeID) (bool, time.Duration) { return false, 0 },
		Version: "test", Now: time.Now, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{"/status": 200, "/sites": 200, "/sites/fra": 200, "/nodes": 200, "/openapi.json": 200,
		"/voters": 404, "/profile": 404, "/tokens": 404, "/rules": 404, "/tags?repository=library/a": 404, "/where?image=library/a:1": 404} {
		if a := apitest.Call(f, api, "admin", "GET", Prefix+path, ""); a.Status != want {
			t.Errorf("%s: %d, want %d: %s", path, a.Status, want, a.Body)
		}
	}
	if _, err := NewStatus(Config{}); err == nil {
		t.Error("an empty Config was taken")
	}
}
