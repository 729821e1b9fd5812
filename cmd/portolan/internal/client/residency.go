package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/portolan/portolan/registryapi/mesh"
)

func residencyPath(project string) string {
	return mesh.Prefix + "/projects/" + url.PathEscape(project) + "/sites"
}

// Residency says where a project may rest.
func (c *Client) Residency(ctx context.Context, project string) (mesh.Residency, error) {
	return get[mesh.Residency](ctx, c, residencyPath(project), nil)
}

// SetResidency changes where a project may rest.
func (c *Client) SetResidency(ctx context.Context, project string, r mesh.ResidencyRequest) (mesh.Residency, error) {
	var out mesh.Residency
	_, err := c.do(ctx, http.MethodPut, residencyPath(project), nil, r, &out)
	return out, err
}

// ProjectLosses gives a part of what a site alone holds of a project.
func (c *Client) ProjectLosses(ctx context.Context, project, site, after string) (mesh.ProjectLosses, error) {
	q := url.Values{}
	if after != "" {
		q.Set("after", after)
	}
	return get[mesh.ProjectLosses](ctx, c, residencyPath(project)+"/"+url.PathEscape(site)+"/last-copies", q)
}

// RestoreProject takes a deletion back.
func (c *Client) RestoreProject(ctx context.Context, project string) error {
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/projects/"+url.PathEscape(project)+"/restore", nil, nil, nil)
	return err
}
