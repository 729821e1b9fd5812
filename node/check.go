package node

import (
	"context"
	"errors"

	"github.com/portolan/portolan/node/preflight"
	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/registryapi/rest"
)

// checkSite tries the path to each node of a site.
func (n *node) checkSite(ctx context.Context, site string) (mesh.SiteCheck, error) {
	out := mesh.SiteCheck{From: n.cfg.Settings.Site, To: site, At: n.cfg.Now(), Passed: true, Tests: []mesh.PathTest{}}
	for _, m := range n.view().NodesOf(site) {
		if m.ID == n.id.ID {
			continue
		}
		r, err := n.checker.Check(ctx, m.ID)
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
