package catalog

import "github.com/portolan/portolan/node/identity"

// Stores gives the other stores whose feeds were read, in the order of their ids:
// tens of them.
func (c *Catalog) Stores() ([]identity.StoreID, error) {
	var out []identity.StoreID
	err := c.view(func(r reader) error {
		return r.scan([]byte{tabStore}, nil, false, func(key, _ []byte) (bool, error) {
			id, ok := parseStore(key)
			if !ok {
				return false, damaged(key)
			}
			out = append(out, id)
			return true, nil
		})
	})
	return out, err
}
