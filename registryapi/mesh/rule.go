package mesh

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/registryapi/rest"
)

// allSites is the word for every site, those that will join included.
const allSites = "all"

type listRules struct{ Body []Rule }

// RulePath names a rule in a path.
type RulePath struct {
	Rule string `path:"rule" maxLength:"255" doc:"Name or id"`
}

type ruleUpdateIn struct {
	RulePath
	rest.Condition
	Body RuleRequest
}

type ruleDeleteIn struct {
	RulePath
	rest.Condition
}

func (a *API) ruleOut(r state.Rule) *rest.Object[Rule] {
	return rest.ObjectOf(r.ID, r.Version, a.rule(r))
}

func (a *API) registerRules() {
	rest.Register(a.rest, rest.Op{ID: "list-rules", Method: http.MethodGet, Path: "/rules", Tag: "rules", Who: rest.SystemAdmin,
		Summary: "Replication rules, by name"}, func(context.Context, *struct{}) (*listRules, error) {
		out := &listRules{Body: []Rule{}}
		for _, r := range a.cfg.View().Rules() {
			out.Body = append(out.Body, a.rule(r))
		}
		return out, nil
	})
	rest.Register(a.rest, rest.Op{ID: "create-rule", Method: http.MethodPost, Path: "/rules", Tag: "rules", Who: rest.SystemAdmin,
		Status: http.StatusCreated, Summary: "Make a replication rule"}, a.createRule)
	rest.Register(a.rest, rest.Op{ID: "get-rule", Method: http.MethodGet, Path: "/rules/{rule}", Tag: "rules", Who: rest.SystemAdmin,
		Summary: "One replication rule"}, func(_ context.Context, in *RulePath) (*rest.Object[Rule], error) {
		r, err := a.findRule(in.Rule)
		return a.ruleOut(r), err
	})
	rest.Register(a.rest, rest.Op{ID: "update-rule", Method: http.MethodPut, Path: "/rules/{rule}", Tag: "rules", Who: rest.SystemAdmin,
		Summary: "Replace a replication rule"}, a.updateRule)
	rest.Register(a.rest, rest.Op{ID: "delete-rule", Method: http.MethodDelete, Path: "/rules/{rule}", Tag: "rules", Who: rest.SystemAdmin,
		Summary: "Delete a replication rule; what it brought somewhere stays there"}, func(ctx context.Context, in *ruleDeleteIn) (*rest.Empty, error) {
		r, err := a.findRule(in.Rule)
		if err != nil {
			return nil, err
		}
		want, err := in.Expect(r.ID, 0)
		if err != nil {
			return nil, err
		}
		return a.edit(ctx, want, &command.RuleDelete{Id: r.ID, IfVersion: want.Version})
	})
}

func (a *API) findRule(nameOrID string) (state.Rule, error) {
	r, ok := a.cfg.View().Rule(nameOrID)
	if !ok {
		return r, rest.NotFound("there is no rule %q: see the names with: portolan rule list", nameOrID)
	}
	return r, nil
}

func (a *API) createRule(ctx context.Context, in *struct{ Body RuleRequest }) (*rest.Created[Rule], error) {
	body, err := a.ruleCommand(in.Body)
	if err != nil {
		return nil, err
	}
	res, err := a.propose(ctx, &command.RuleCreate{Rule: body})
	if err != nil {
		return nil, err
	}
	r, ok := a.cfg.View().RuleByID(res.ID)
	if !ok {
		return nil, rest.Conflict("the rule %q was deleted at the moment it was made", in.Body.Name)
	}
	return rest.Made(fmt.Sprintf("%s/rules/%d", Prefix, r.ID), a.rule(r)), nil
}

func (a *API) updateRule(ctx context.Context, in *ruleUpdateIn) (*rest.Object[Rule], error) {
	r, err := a.findRule(in.Rule)
	if err != nil {
		return nil, err
	}
	body, err := a.ruleCommand(in.Body)
	if err != nil {
		return nil, err
	}
	want, err := in.Expect(r.ID, in.Body.IfVersion)
	if err != nil {
		return nil, err
	}
	if _, err := a.edit(ctx, want, &command.RuleUpdate{Id: r.ID, Rule: body, IfVersion: want.Version}); err != nil {
		return nil, err
	}
	r, ok := a.cfg.View().RuleByID(r.ID)
	if !ok {
		return nil, rest.Conflict("the rule %q was deleted at the moment it was changed", in.Body.Name)
	}
	return a.ruleOut(r), nil
}

// ruleCommand checks what only people can get wrong; the state machine checks
// the rest against what there is.
func (a *API) ruleCommand(in RuleRequest) (*command.Rule, error) {
	r := &command.Rule{Name: in.Name, Projects: in.Projects, Repositories: in.Repositories, Tags: in.Tags, Types: in.Types, Labels: in.Labels,
		SiteLabels: in.SiteLabels, Copies: in.Copies, Priority: in.Priority, Windows: in.Windows, Bandwidth: in.Bandwidth,
		FollowDeletions: in.FollowDeletions, Disabled: in.Disabled}
	if slices.Contains(in.Sites, allSites) {
		if len(in.Sites) > 1 {
			return nil, rest.Invalid(`"all" stands for every site: give it alone, or names without it`)
		}
		r.AllSites = true
	} else {
		r.Sites = in.Sites
	}
	if len(in.Sites) > 0 && in.SiteLabels != "" {
		return nil, rest.Invalid("give the sites by name or by labels, not both: sites %s, labels %s", strings.Join(in.Sites, ","), in.SiteLabels)
	}
	var wrong []rest.Failure
	for _, p := range a.cfg.CheckRule(state.RuleOf(r)) {
		wrong = append(wrong, rest.Failure{Field: p.Field, Message: p.Message})
	}
	if len(wrong) > 0 {
		return nil, rest.InvalidFields(wrong)
	}
	return r, nil
}

func (a *API) rule(r state.Rule) Rule {
	out := Rule{ID: r.ID, Name: r.Name, Projects: list(r.Projects), Repositories: list(r.Repositories), Tags: list(r.Tags), Types: list(r.Types), Labels: list(r.Labels),
		Sites: list(r.Sites), SiteLabels: r.SiteLabels, Copies: r.Copies, Priority: r.Priority, Windows: list(r.Windows), Bandwidth: r.Bandwidth,
		FollowDeletions: r.FollowDeletions, Disabled: r.Disabled, Version: r.Version, CreatedAt: r.CreatedAt}
	if r.AllSites {
		out.Sites = []string{allSites}
	}
	v := a.cfg.View()
	for _, name := range r.Sites {
		if _, ok := v.Site(name); !ok {
			out.Gone = append(out.Gone, name)
		}
	}
	return out
}

// list is l as JSON shows it: [] and never null.
func list(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}
