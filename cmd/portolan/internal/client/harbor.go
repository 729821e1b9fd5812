package client

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/portolan/portolan/registryapi/harbor"
)

// Me gives the user whose login the client has.
func (c *Client) Me(ctx context.Context) (harbor.User, error) {
	return get[harbor.User](ctx, c, harbor.Prefix+"/users/current", nil)
}

// Projects gives the projects that the user can see, by name.
func (c *Client) Projects(ctx context.Context) ([]harbor.Project, error) {
	return all[harbor.Project](ctx, c, harbor.Prefix+"/projects", nil)
}

// projectPath addresses a project by name, even if the name is a number:
// harbor takes a number for an id, which no name can be confused with here.
func (c *Client) projectPath(ctx context.Context, name string) (string, error) {
	if _, err := strconv.ParseInt(name, 10, 64); err == nil {
		found, err := all[harbor.Project](ctx, c, harbor.Prefix+"/projects", url.Values{"q": {"name=" + name}})
		if err != nil {
			return "", err
		}
		if len(found) == 1 {
			return fmt.Sprintf("%s/projects/%d", harbor.Prefix, found[0].ID), nil
		}
	}
	return harbor.Prefix + "/projects/" + url.PathEscape(name), nil
}

// Project gives one project.
func (c *Client) Project(ctx context.Context, name string) (harbor.Project, error) {
	path, err := c.projectPath(ctx, name)
	if err != nil {
		return harbor.Project{}, err
	}
	return get[harbor.Project](ctx, c, path, nil)
}

// CreateProject makes a project.
func (c *Client) CreateProject(ctx context.Context, r harbor.ProjectRequest) (harbor.Project, error) {
	return create[harbor.Project](ctx, c, harbor.Prefix+"/projects", r)
}

// DeleteProject deletes a project; with repositories in it only by force.
func (c *Client) DeleteProject(ctx context.Context, name string, force bool) error {
	path, err := c.projectPath(ctx, name)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodDelete, path, url.Values{"force": {strconv.FormatBool(force)}}, nil, nil)
	return err
}

// Members gives a project's members.
func (c *Client) Members(ctx context.Context, project string) ([]harbor.Member, error) {
	path, err := c.projectPath(ctx, project)
	if err != nil {
		return nil, err
	}
	return all[harbor.Member](ctx, c, path+"/members", nil)
}

// SetMember gives a user a role in a project, whether he has one or not.
func (c *Client) SetMember(ctx context.Context, project, user string, role int) error {
	path, err := c.projectPath(ctx, project)
	if err != nil {
		return err
	}
	m, ok, err := c.member(ctx, path, user)
	if err != nil {
		return err
	}
	if ok {
		_, err = c.do(ctx, http.MethodPut, fmt.Sprintf("%s/members/%d", path, m.ID), nil, harbor.MemberRequest{RoleID: role}, nil)
		return err
	}
	_, err = c.do(ctx, http.MethodPost, path+"/members", nil, harbor.MemberRequest{RoleID: role, User: harbor.MemberUser{Name: user}}, nil)
	return err
}

// DeleteMember takes a user's role in a project away.
func (c *Client) DeleteMember(ctx context.Context, project, user string) error {
	path, err := c.projectPath(ctx, project)
	if err != nil {
		return err
	}
	m, ok, err := c.member(ctx, path, user)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%s is not a member of project %s: see who is with: portolan project member list %s", user, project, project)
	}
	_, err = c.do(ctx, http.MethodDelete, fmt.Sprintf("%s/members/%d", path, m.ID), nil, nil, nil)
	return err
}

func (c *Client) member(ctx context.Context, projectPath, user string) (harbor.Member, bool, error) {
	members, err := all[harbor.Member](ctx, c, projectPath+"/members", url.Values{"entityname": {user}})
	for _, m := range members {
		if m.EntityName == user {
			return m, true, nil
		}
	}
	return harbor.Member{}, false, err
}

// Users gives all users, by name.
func (c *Client) Users(ctx context.Context) ([]harbor.User, error) {
	return all[harbor.User](ctx, c, harbor.Prefix+"/users", nil)
}

// User finds a user by name.
func (c *Client) User(ctx context.Context, name string) (harbor.User, error) {
	found, err := all[harbor.User](ctx, c, harbor.Prefix+"/users", url.Values{"username": {name}})
	if err != nil {
		return harbor.User{}, err
	}
	for _, u := range found {
		if u.Name == name {
			return u, nil
		}
	}
	return harbor.User{}, &Error{Status: http.StatusNotFound, Code: "NOT_FOUND",
		Message: fmt.Sprintf("there is no user %q: see the names with: portolan user list", name)}
}

// CreateUser makes a user.
func (c *Client) CreateUser(ctx context.Context, r harbor.UserRequest) (harbor.User, error) {
	return create[harbor.User](ctx, c, harbor.Prefix+"/users", r)
}

// DeleteUser deletes a user.
func (c *Client) DeleteUser(ctx context.Context, name string) error {
	u, err := c.User(ctx, name)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodDelete, fmt.Sprintf("%s/users/%d", harbor.Prefix, u.ID), nil, nil, nil)
	return err
}

// SetPassword changes the password of the user with the id; old is needed for
// the client's own user.
func (c *Client) SetPassword(ctx context.Context, id int64, old, new string) error {
	_, err := c.do(ctx, http.MethodPut, fmt.Sprintf("%s/users/%d/password", harbor.Prefix, id), nil, harbor.Password{Old: old, New: new}, nil)
	return err
}

// create makes an object and reads it back from where it was put.
func create[T any](ctx context.Context, c *Client, path string, in any) (T, error) {
	var none T
	a, err := c.do(ctx, http.MethodPost, path, nil, in, nil)
	if err != nil {
		return none, err
	}
	return get[T](ctx, c, a.header.Get("Location"), nil)
}
