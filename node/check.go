package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/preflight"
	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/registryapi/rest"
)

// checkSite tries the path to each node of a site.
func (n *node) checkSite(ctx context.Context, site string) (mesh.SiteCheck, error) {
	out := mesh.SiteCheck{From: n.cfg.Settings.Site, To: site, At: n.cfg.Now(), Passed: true, Tests: []mesh.PathTest{}}
	nodes := slices.DeleteFunc(n.view().NodesOf(site), func(m state.Node) bool { return m.ID == n.id.ID })
	end := time.Now().Add(preflight.CheckFor)
	for i, m := range nodes {
		// Each has its part of the time, so that the client hears of all.
		ctx, cancel := context.WithTimeout(ctx, time.Until(end)/time.Duration(len(nodes)-i))
		r, err := n.checker.Check(ctx, m.ID)
		cancel()
		if errors.Is(err, preflight.ErrBusy) {
			return out, rest.Conflict("%s", err.Error())
		}
		if err != nil {
			return out, err
		}
		out.Took += r.Took.Seconds()
		for _, l := range r.Lines {
			out.Passed = out.Passed && (l.Result == preflight.OK || l.Result == preflight.Warning)
			out.Tests = append(out.Tests, mesh.PathTest{Test: l.Test, Node: m.ID, From: l.From, To: l.To, Result: string(l.Result),
				Detail: l.Detail, Advice: l.Advice, Value: l.Value, Unit: l.Unit})
		}
	}
	if len(out.Tests) == 0 {
		return out, rest.Conflict("site %s has no node but the one that answers: ask another site's node (--server)", site)
	}
	n.log.Info("a path was checked", "to", site, "passed", out.Passed, "took", out.Took)
	return out, nil
}
