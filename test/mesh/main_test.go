// Package mesh proves what README.md promises, with real processes, real
// clients and real images: push here, pull there, edit anywhere, add a site,
// lose a site.
package mesh

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/portolan/portolan/test/cluster"
)

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		// `make check` is the quick loop; `make test` and CI run these.
		fmt.Println("whole meshes are not run with -short")
		return
	}
	code := m.Run()
	cluster.RemoveBinary()
	os.Exit(code)
}
