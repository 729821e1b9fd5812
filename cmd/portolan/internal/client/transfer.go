package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"github.com/portolan/portolan/registryapi/mesh"
)

// Budgets gives the caps on links.
func (c *Client) Budgets(ctx context.Context) ([]mesh.Budget, error) {
	return get[[]mesh.Budget](ctx, c, mesh.Prefix+"/budgets", nil)
}

// SetBudget caps a link.
func (c *Client) SetBudget(ctx context.Context, r mesh.BudgetRequest) (mesh.Budget, error) {
	var out mesh.Budget
	_, err := c.do(ctx, http.MethodPut, mesh.Prefix+"/budgets", nil, r, &out)
	return out, err
}

// DeleteBudget takes a cap away.
func (c *Client) DeleteBudget(ctx context.Context, from, to string) error {
	_, err := c.do(ctx, http.MethodDelete, mesh.Prefix+"/budgets", url.Values{"from": {from}, "to": {to}}, nil, nil)
	return err
}

// Transfers says what comes to the site of the node that is asked.
func (c *Client) Transfers(ctx context.Context) (mesh.Transfers, error) {
	return get[mesh.Transfers](ctx, c, mesh.Prefix+"/transfers", nil)
}

// Scrub says how far the node that is asked is with reading its blobs again.
func (c *Client) Scrub(ctx context.Context) (mesh.Scrub, error) {
	return get[mesh.Scrub](ctx, c, mesh.Prefix+"/scrub", nil)
}

// StartScrub has the node that is asked read all its blobs again.
func (c *Client) StartScrub(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/scrub", nil, nil, nil)
	return err
}

// Conflicts gives the last n writes of tags of the asked node's site that lost; of
// all projects if none is named.
func (c *Client) Conflicts(ctx context.Context, project string, n int) ([]mesh.Conflict, error) {
	return get[[]mesh.Conflict](ctx, c, mesh.Prefix+"/conflicts", url.Values{"project": {project}, "n": {strconv.Itoa(n)}})
}

// CheckSite tries the path to a site and back, from the node that is asked. It
// takes up to a minute.
func (c *Client) CheckSite(ctx context.Context, site string) (mesh.SiteCheck, error) {
	var out mesh.SiteCheck
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/sites/"+url.PathEscape(site)+"/check", nil, nil, &out)
	return out, err
}

// HoldArtifact pauses or cancels what rules bring of an artifact.
func (c *Client) HoldArtifact(ctx context.Context, r mesh.HoldRequest) error {
	_, err := c.do(ctx, http.MethodPut, mesh.Prefix+"/transfers/held", nil, r, nil)
	return err
}

// ResumeArtifact lets what rules bring of an artifact go on.
func (c *Client) ResumeArtifact(ctx context.Context, image, site string) error {
	_, err := c.do(ctx, http.MethodDelete, mesh.Prefix+"/transfers/held", url.Values{"image": {image}, "site": {site}}, nil, nil)
	return err
}

// PauseRule stops what a rule brings to a site, or to all, or lets it go on.
func (c *Client) PauseRule(ctx context.Context, rule, site string, paused bool) error {
	method := http.MethodDelete
	if paused {
		method = http.MethodPut
	}
	_, err := c.do(ctx, method, mesh.Prefix+"/transfers/paused-rules/"+url.PathEscape(rule), url.Values{"site": {site}}, nil, nil)
	return err
}

// PauseSite stops what rules bring to a site, or lets it go on.
func (c *Client) PauseSite(ctx context.Context, site string, paused bool) error {
	method := http.MethodDelete
	if paused {
		method = http.MethodPut
	}
	_, err := c.do(ctx, method, mesh.Prefix+"/transfers/paused/"+url.PathEscape(site), nil, nil, nil)
	return err
}
