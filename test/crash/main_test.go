// Package crash takes the power from the real binary, kills it, and starts it
// again, while clients push. Whatever a client was told holds afterwards.
package crash

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
		fmt.Println("whole nodes are not run with -short")
		return
	}
	code := m.Run()
	cluster.RemoveBinary()
	os.Exit(code)
}
