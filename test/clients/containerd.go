package clients

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// containerdConfig keeps a containerd to its own directory, and leaves out what
// pulling and pushing do not need: Kubernetes' interface, other snapshotters.
const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "%[1]s/sock"
[ttrpc]
  address = "%[1]s/sock.ttrpc"
`

// Containerd is a containerd that this test started, with nothing in it.
type Containerd struct{ ctr, sock string }

// StartContainerd starts one. Two of them share nothing, unlike namespaces of
// one, which share content.
func StartContainerd(t testing.TB) *Containerd {
	t.Helper()
	ctr, containerd := Need(t, "ctr"), Need(t, "containerd")
	needRoot(t, "containerd")
	dir := shortDir(t, "pc")
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, containerdConfig, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Containerd{ctr: ctr, sock: filepath.Join(dir, "sock")}
	daemon(t, dir, func() error {
		_, err := c.Try(t, "version")
		return err
	}, nil, exec.CommandContext(context.Background(), containerd, "--config", config))
	return c
}

// Run runs `ctr args…` against it.
func (c *Containerd) Run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.Try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try is Run for commands that may fail.
func (c *Containerd) Try(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return Try(t, nil, c.ctr, append([]string{"--address", c.sock, "--namespace", "test"}, args...)...)
}

// Content reads all that it holds: what each digest's bytes hash to.
func (c *Containerd) Content(t testing.TB) map[string]string {
	t.Helper()
	held := map[string]string{}
	for _, d := range strings.Fields(c.Run(t, "content", "ls", "--quiet")) {
		sum := sha256.Sum256([]byte(c.Run(t, "content", "get", d)))
		held[d] = "sha256:" + hex.EncodeToString(sum[:])
	}
	return held
}
