package mesh

import (
	"context"
	"net/http"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/registryapi/rest"
)

// SiteCheck is what came of trying the path between two sites.
type SiteCheck struct {
	From   string     `json:"from" doc:"The asked node's site"`
	To     string     `json:"to" doc:"The checked one"`
	At     time.Time  `json:"at"`
	Took   float64    `json:"took_seconds"`
	Passed bool       `json:"passed" doc:"No test failed, and none stayed unknown: what rules bring moves. A pause of either site is a test that fails"`
	Tests  []PathTest `json:"tests" doc:"Each port in both directions, then what was measured"`
}

// PathTest is one test of a path.
type PathTest struct {
	Test   string          `json:"test" doc:"control port, raft, gossip tcp, gossip udp, data port, registry, answer, key, clock, round trip, throughput, space, store or pause"`
	Node   identity.NodeID `json:"node" doc:"The checked node"`
	From   string          `json:"from" doc:"Site that dials or sends"`
	To     string          `json:"to" doc:"Site that is dialed"`
	Result string          `json:"result" enum:"ok,warning,failed,unknown" doc:"unknown: nobody could try it"`
	Detail string          `json:"detail" doc:"What was tried and found"`
	Advice string          `json:"advice,omitempty" doc:"What to do"`
	Value  float64         `json:"value,omitempty" doc:"What was measured"`
	Unit   string          `json:"unit,omitempty" doc:"Of value: s, ms, Mbit/s or GiB"`
}

type checkOut struct{ Body SiteCheck }

func (a *API) registerSiteCheck() {
	if a.cfg.CheckSite == nil {
		return
	}
	rest.Register(a.rest, rest.Op{ID: "check-site", Method: http.MethodPost, Path: "/sites/{name}/check", Tag: "mesh", Who: rest.SystemAdmin,
		Summary: "Try the path to a site and back: ports, keys, clock, round trip, throughput, space, store; it takes up to a minute"}, a.checkSite)
}

func (a *API) checkSite(ctx context.Context, in *siteIn) (*checkOut, error) {
	v := a.cfg.View()
	if _, ok := v.Site(in.Name); !ok {
		return nil, noSite(v, in.Name)
	}
	out, err := a.cfg.CheckSite(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return &checkOut{Body: out}, nil
}
