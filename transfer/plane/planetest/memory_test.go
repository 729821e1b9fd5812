package planetest

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/plane"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestNet(t *testing.T) {
	Run(t, func(t *testing.T) (a, b plane.Host) {
		n := NewNet()
		x, y := n.Join(identity.NodeID{1}), n.Join(identity.NodeID{2})
		t.Cleanup(func() { _, _ = x.Close(), y.Close() })
		return x, y
	})
}
