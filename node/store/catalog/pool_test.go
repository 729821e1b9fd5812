package catalog

import (
	"testing"
	"time"

	"github.com/dgraph-io/ristretto/v2/z"
)

// Badger keeps eight allocators for ever while tables are built: none is left to it.
// If a version of Badger names its pool otherwise, this is where it shows.
func TestPool_KeepsNoAllocator(t *testing.T) {
	c, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	returned := allocators(c.db)
	if returned == nil {
		t.Fatal("the database's allocators are not found")
	}
	deadline := time.After(20 * time.Second)
	const many = 1000
	for range many { // as many builders end; Badger alone would release one in two seconds
		select {
		case returned <- z.NewAllocator(1<<10, "test"):
		case <-deadline:
			t.Fatal("allocators that came back are kept")
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
