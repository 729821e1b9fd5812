// Package smalldisk gives tests a file system that they can fill.
package smalldisk

import (
	"context"
	"os"
	"os/exec"
	"testing"
)

// Mount mounts a tmpfs of a size (as mount has it: 512m) at a directory of its own, and
// takes it away at the test's end. That needs root: elsewhere the test is skipped, but
// not on CI, where it fails.
func Mount(t testing.TB, size string) (dir string) {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("CI") != "" {
		skip = t.Fatalf
	}
	if os.Geteuid() != 0 {
		skip("mounting a small tmpfs needs root")
	}
	dir = t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir).CombinedOutput(); err != nil {
		skip("no tmpfs can be mounted here: %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), "umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	})
	return dir
}
