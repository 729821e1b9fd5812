package peer

import (
	"testing"

	"github.com/portolan/portolan/transfer/plane"
	"github.com/portolan/portolan/transfer/plane/planetest"
)

func TestHost_IsADataPlane(t *testing.T) {
	planetest.Run(t, func(t *testing.T) (a, b plane.Host) {
		var m mesh
		return plane.Of(m.start(t)), plane.Of(m.start(t))
	})
}
