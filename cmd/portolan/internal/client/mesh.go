package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/portolan/portolan/registryapi/mesh"
)

// Status gives the mesh as the node sees it.
func (c *Client) Status(ctx context.Context) (mesh.Status, error) {
	return get[mesh.Status](ctx, c, mesh.Prefix+"/status", nil)
}

// Sites gives all sites, by name.
func (c *Client) Sites(ctx context.Context) ([]mesh.Site, error) {
	return get[[]mesh.Site](ctx, c, mesh.Prefix+"/sites", nil)
}

// Nodes gives all nodes, by site.
func (c *Client) Nodes(ctx context.Context) ([]mesh.Node, error) {
	return get[[]mesh.Node](ctx, c, mesh.Prefix+"/nodes", nil)
}

// DrainSite asks a site to be left in peace, or takes that back.
func (c *Client) DrainSite(ctx context.Context, name string, drain bool) (mesh.Site, error) {
	verb := "undrain"
	if drain {
		verb = "drain"
	}
	var out mesh.Site
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/sites/"+url.PathEscape(name)+"/"+verb, nil, nil, &out)
	return out, err
}

// KeepSite calls off a removal that was begun.
func (c *Client) KeepSite(ctx context.Context, name string) (mesh.Site, error) {
	var out mesh.Site
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/sites/"+url.PathEscape(name)+"/keep", nil, nil, &out)
	return out, err
}

// RemoveSite does a part of a removal; repeat it with the answer's After until
// it is done.
func (c *Client) RemoveSite(ctx context.Context, name string, r mesh.RemovalRequest) (mesh.Removal, error) {
	return c.remove(ctx, "/sites/"+url.PathEscape(name), r)
}

// RemoveNode is RemoveSite for one node, by its id.
func (c *Client) RemoveNode(ctx context.Context, id string, r mesh.RemovalRequest) (mesh.Removal, error) {
	return c.remove(ctx, "/nodes/"+url.PathEscape(id), r)
}

func (c *Client) remove(ctx context.Context, path string, r mesh.RemovalRequest) (mesh.Removal, error) {
	var out mesh.Removal
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+path+"/remove", nil, r, &out)
	return out, err
}

// Profile gives the mesh's raft timings.
func (c *Client) Profile(ctx context.Context) (mesh.Profile, error) {
	return get[mesh.Profile](ctx, c, mesh.Prefix+"/profile", nil)
}

// SetProfile changes the mesh's raft timings.
func (c *Client) SetProfile(ctx context.Context, name string) (mesh.Profile, error) {
	var out mesh.Profile
	_, err := c.do(ctx, http.MethodPut, mesh.Prefix+"/profile", nil, mesh.ProfileRequest{Name: name}, &out)
	return out, err
}

// Voters says how many sites vote.
func (c *Client) Voters(ctx context.Context) (mesh.Voters, error) {
	return get[mesh.Voters](ctx, c, mesh.Prefix+"/voters", nil)
}

// SetVoters changes how many sites vote.
func (c *Client) SetVoters(ctx context.Context, n int) (mesh.Voters, error) {
	var out mesh.Voters
	_, err := c.do(ctx, http.MethodPut, mesh.Prefix+"/voters", nil, mesh.VotersRequest{Voters: n}, &out)
	return out, err
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	Site      string
	ExpiresIn time.Duration // 0: the node's default
}

// CreateToken makes a join token. Only this answer has its text.
func (c *Client) CreateToken(ctx context.Context, r TokenRequest) (mesh.Token, error) {
	body := mesh.TokenRequest{Site: r.Site}
	if r.ExpiresIn != 0 {
		body.ExpiresIn = r.ExpiresIn.String()
	}
	var out mesh.Token
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/tokens", nil, body, &out)
	return out, err
}

// Tokens gives all join tokens, without their texts.
func (c *Client) Tokens(ctx context.Context) ([]mesh.Token, error) {
	return get[[]mesh.Token](ctx, c, mesh.Prefix+"/tokens", nil)
}

// Token gives one join token, without its text.
func (c *Client) Token(ctx context.Context, id int64) (mesh.Token, error) {
	return get[mesh.Token](ctx, c, mesh.Prefix+"/tokens/"+strconv.FormatInt(id, 10), nil)
}

// RevokeToken takes a join token back; it stays in the list.
func (c *Client) RevokeToken(ctx context.Context, id int64) error {
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/tokens/"+strconv.FormatInt(id, 10)+"/revoke", nil, nil, nil)
	return err
}

// DeleteToken forgets a join token.
func (c *Client) DeleteToken(ctx context.Context, id int64) error {
	_, err := c.do(ctx, http.MethodDelete, mesh.Prefix+"/tokens/"+strconv.FormatInt(id, 10), nil, nil, nil)
	return err
}

// Rules gives all replication rules, by name.
func (c *Client) Rules(ctx context.Context) ([]mesh.Rule, error) {
	return get[[]mesh.Rule](ctx, c, mesh.Prefix+"/rules", nil)
}

// Rule finds a replication rule by name or id.
func (c *Client) Rule(ctx context.Context, name string) (mesh.Rule, error) {
	return get[mesh.Rule](ctx, c, mesh.Prefix+"/rules/"+url.PathEscape(name), nil)
}

// CreateRule makes a replication rule.
func (c *Client) CreateRule(ctx context.Context, r mesh.RuleRequest) (mesh.Rule, error) {
	var out mesh.Rule
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/rules", nil, r, &out)
	return out, err
}

// UpdateRule replaces a replication rule.
func (c *Client) UpdateRule(ctx context.Context, id int64, r mesh.RuleRequest) (mesh.Rule, error) {
	var out mesh.Rule
	_, err := c.do(ctx, http.MethodPut, mesh.Prefix+"/rules/"+strconv.FormatInt(id, 10), nil, r, &out)
	return out, err
}

// PreviewRule says what a replication rule would move.
func (c *Client) PreviewRule(ctx context.Context, r mesh.PreviewRequest) (mesh.Preview, error) {
	var out mesh.Preview
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/rules/preview", nil, r, &out)
	return out, err
}

// LabelSite sets and takes away labels of a site.
func (c *Client) LabelSite(ctx context.Context, name string, r mesh.LabelRequest) (mesh.Site, error) {
	var out mesh.Site
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/sites/"+url.PathEscape(name)+"/labels", nil, r, &out)
	return out, err
}

// DeleteRule deletes a replication rule.
func (c *Client) DeleteRule(ctx context.Context, name string) error {
	_, err := c.do(ctx, http.MethodDelete, mesh.Prefix+"/rules/"+url.PathEscape(name), nil, nil, nil)
	return err
}

// Tags gives all tags of a repository, by name.
func (c *Client) Tags(ctx context.Context, repository string) ([]mesh.Tag, error) {
	out := []mesh.Tag{}
	q := url.Values{"repository": {repository}, "n": {"1000"}}
	for {
		var part []mesh.Tag
		a, err := c.do(ctx, http.MethodGet, mesh.Prefix+"/tags", q, nil, &part)
		if err != nil {
			return nil, err
		}
		out = append(out, part...)
		next := a.header.Get("X-Next")
		if next == "" {
			return out, nil
		}
		q.Set("after", next)
	}
}

// DeleteTag deletes a tag, given as PROJECT/NAME:TAG; only if it says the digest, unless that
// is empty.
func (c *Client) DeleteTag(ctx context.Context, image, says string) error {
	match := ""
	if says != "" {
		match = `"` + says + `"`
	}
	_, err := c.doIf(ctx, match, http.MethodDelete, mesh.Prefix+"/tags", url.Values{"image": {image}}, nil, nil)
	return err
}

// Where says which sites have an image; no sites: all.
func (c *Client) Where(ctx context.Context, image string, sites []string) (mesh.Where, error) {
	return get[mesh.Where](ctx, c, mesh.Prefix+"/where", placement(image, sites))
}

// Wait waits for at most so long (and never more than mesh.MaxSlice) until the
// sites have an image. Repeat it with the Image of its answer.
func (c *Client) Wait(ctx context.Context, image string, sites []string, atMost time.Duration) (mesh.Wait, error) {
	q := placement(image, sites)
	q.Set("for", atMost.String())
	return get[mesh.Wait](ctx, c, mesh.Prefix+"/wait", q)
}

func placement(image string, sites []string) url.Values {
	q := url.Values{"image": {image}}
	if len(sites) > 0 {
		q.Set("sites", strings.Join(sites, ","))
	}
	return q
}
