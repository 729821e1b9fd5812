package catalog

import (
	"testing"

	"github.com/portolan/portolan/node/identity"
)

func TestFreeze(t *testing.T) {
	dir, pid, generation := t.TempDir(), identity.NewProjectID(), [16]byte{1}
	c := openAt(t, dir, Options{})
	if _, index, err := c.Frozen(pid); index != 0 || err != nil {
		t.Fatalf("%d, %v", index, err)
	}
	if err := c.Freeze(t.Context(), pid, generation, 7); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = openAt(t, dir, Options{})
	if g, index, err := c.Frozen(pid); g != generation || index != 7 || err != nil {
		t.Errorf("%x, %d, %v", g, index, err)
	}
	if err := c.DropProject(t.Context(), pid); err != nil {
		t.Fatal(err)
	}
	if _, index, err := c.Frozen(pid); index != 0 || err != nil {
		t.Errorf("dropped: %d, %v", index, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
