package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/portolan/portolan/registryapi/mesh"
	"github.com/portolan/portolan/registryapi/rest"
)

// Keys gives the keys that the nodes share, without the keys themselves.
func (c *Client) Keys(ctx context.Context) (mesh.Keys, error) {
	return get[mesh.Keys](ctx, c, mesh.Prefix+"/keys", nil)
}

// RotateKeys asks for new keys.
func (c *Client) RotateKeys(ctx context.Context, r mesh.RotateRequest) (mesh.Keys, error) {
	var out mesh.Keys
	_, err := c.do(ctx, http.MethodPost, mesh.Prefix+"/keys/rotate", nil, r, &out)
	return out, err
}

// SetRecovery says to whom backups are sealed.
func (c *Client) SetRecovery(ctx context.Context, r mesh.RecoveryRequest) (mesh.Keys, error) {
	var out mesh.Keys
	_, err := c.do(ctx, http.MethodPut, mesh.Prefix+"/keys/recovery", nil, r, &out)
	return out, err
}

// Backup writes a backup to w. With an error, what w has got is no backup. local
// takes what the node has, though a majority be out of reach.
func (c *Client) Backup(ctx context.Context, w io.Writer, local bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.server+mesh.Prefix+"/backup", nil)
	if err != nil {
		return fmt.Errorf("%q is not a server: write it as http://HOST:PORT or https://HOST", c.server)
	}
	req.Header.Set("User-Agent", "portolan")
	if !local {
		req.Header.Set(rest.ConsistencyHeader, "strict")
	}
	if c.username != "" {
		req.SetBasicAuth(c.username, c.password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
			return context.Canceled
		}
		return &Unreachable{Server: c.server, Err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return &Unreachable{Server: c.server, Err: err}
		}
		return c.failure(resp, b)
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("the backup did not arrive whole: %w", err)
	}
	return nil
}
