package node

import (
	"errors"
	"fmt"
	"testing"

	"github.com/portolan/portolan/node/store"
	v2 "github.com/portolan/portolan/registryapi/v2"
	"github.com/portolan/portolan/transfer/swarm"
)

// What the swarm says for a moment must not look like a fault of the node.
func TestUnavailable(t *testing.T) {
	for _, err := range []error{swarm.ErrBusy, fmt.Errorf("fetch: %w", swarm.ErrBadHolders)} {
		var u *v2.Unavailable
		if got := unavailable(err); !errors.As(got, &u) || u.RetryAfter <= 0 || !errors.Is(got, errors.Unwrap(u)) {
			t.Errorf("%v: %v", err, got)
		}
	}
	if got := unavailable(store.ErrNotFound); !errors.Is(got, store.ErrNotFound) {
		t.Errorf("ErrNotFound became %v", got)
	}
}
