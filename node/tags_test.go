package node

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/registryapi/rest"
	"github.com/portolan/portolan/transfer/tags"
)

// TestManagement_ConditionsOnTags: what the door says of a condition is an answer that
// people can do something with.
func TestManagement_ConditionsOnTags(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		says   string
	}{
		{fmt.Errorf("%w: the tag 1 says sha256:1", tags.ErrCondition), http.StatusPreconditionFailed, "the tag 1 says sha256:1: look again, and repeat"},
		{tags.ErrNoCondition, http.StatusBadRequest, "portolan project tags NAME strong"},
		{catalog.ErrNotFound, http.StatusNotFound, ""},
	} {
		got, ok := rest.FromError(asManagement(c.err))
		if !ok || got.Status != c.status || !strings.Contains(got.Message, c.says) {
			t.Errorf("%v: %d %q, want %d with %q", c.err, got.Status, got.Message, c.status, c.says)
		}
	}
	if asManagement(nil) != nil {
		t.Error("no error is one")
	}
}
