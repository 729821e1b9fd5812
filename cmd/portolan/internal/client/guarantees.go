package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/portolan/portolan/registryapi/mesh"
)

func guaranteesPath(project string) string {
	return mesh.Prefix + "/projects/" + url.PathEscape(project) + "/guarantees"
}

// Guarantees gives what a project's pushes promise.
func (c *Client) Guarantees(ctx context.Context, project string) (mesh.Guarantees, error) {
	return get[mesh.Guarantees](ctx, c, guaranteesPath(project), nil)
}

// SetGuarantees changes what a project's pushes promise.
func (c *Client) SetGuarantees(ctx context.Context, project string, r mesh.GuaranteesRequest) (mesh.Guarantees, error) {
	var out mesh.Guarantees
	_, err := c.do(ctx, http.MethodPut, guaranteesPath(project), nil, r, &out)
	return out, err
}
