package node

import (
	"context"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/rules"
)

// checkRule judges a rule's fields for the API.
func checkRule(r state.Rule) []mesh.RuleProblem {
	var out []mesh.RuleProblem
	for _, p := range rules.Check(r) {
		out = append(out, mesh.RuleProblem(p))
	}
	return out
}

// previewRule answers what a rule would move.
func (n *node) previewRule(ctx context.Context, q mesh.PreviewQuestion) (mesh.Preview, error) {
	a, err := n.reconciler.Preview(ctx, transfer.PreviewQuestion(q))
	out := mesh.Preview{Matched: a.Matched, Artifacts: a.Artifacts, Looked: a.Looked, Names: a.Names, Partial: a.Partial}
	for _, s := range a.Sites {
		out.Sites = append(out.Sites, mesh.PreviewSite(s))
	}
	for _, u := range a.Unseen {
		out.Unseen = append(out.Unseen, mesh.Unseen(u))
	}
	return out, err
}
