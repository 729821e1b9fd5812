// Package mesh proves what README.md promises, with real processes, real
// clients and real images: push here, pull there, edit anywhere, add a site,
// lose a site.
package mesh

import (
	"os"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

func TestMain(m *testing.M) {
	code := m.Run()
	cluster.RemoveBinary()
	os.Exit(code)
}
