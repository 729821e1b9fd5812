package ports

import (
	"errors"
	"syscall"
	"testing"
)

// TestFree_NotToOthers: what a process was given, and has nobody listening on, no
// other is given.
func TestFree_NotToOthers(t *testing.T) {
	p := Free(t)
	if c, err := claim(p); err == nil {
		c.Close()
		t.Error("it is claimed a second time")
	} else if !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
}
