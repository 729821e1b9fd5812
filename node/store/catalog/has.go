package catalog

import "github.com/portolan/portolan/node/identity"

// HasProject reports whether there is anything of a project here, or was before it
// was dropped anew: whether Projects lists it.
func (c *Catalog) HasProject(pid identity.ProjectID) (has bool, err error) {
	err = c.view(func(r reader) error {
		row, err := r.get(keyCheck(pid))
		has = row != nil
		return err
	})
	return has, err
}
