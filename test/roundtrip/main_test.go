// Package roundtrip pushes with every client at one site of a running mesh and
// pulls with it at another, and compares what went in with what came out, byte
// for byte: docker, containerd, podman, skopeo, crane, regctl, oras-go, helm,
// cosign, and plain HTTP for names by sha512.
package roundtrip

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
		fmt.Println("round trips through a mesh are not run with -short")
		return
	}
	code := m.Run()
	cluster.RemoveBinary()
	os.Exit(code)
}
