package transfer_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/test/smalldisk"
)

// A site's disk is full of other things: what a rule brings there waits, everybody is
// told why, and it comes by itself when there is room.
func TestRule_DiskFull(t *testing.T) {
	disk := smalldisk.Mount(t, "512m")
	b := newBed(t, []string{"fra", "nyc"}, func(b *bed) { b.disks = map[string]string{"nyc": disk} })
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	b.rule(everywhere("prod"))
	first := fra.push(pid, "app", "0.9")
	eventually(t, "the first image at nyc", func() bool { return nyc.holds(first) })

	free, total, err := blobs.Free(disk)
	must(t, err)
	others := filepath.Join(disk, "others")
	// The catalogue goes on: blobs stop first.
	if out, err := exec.Command("fallocate", "-l", fmt.Sprint(free-total*5/16), others).CombinedOutput(); err != nil {
		t.Fatalf("fallocate: %s", out)
	}
	img := fra.push(pid, "app", "1.0")
	const why = "no space left in this store"
	eventually(t, "nyc says why it waits", func() bool {
		list, _, _, failed := nyc.rec.Pending(10)
		return failed == 1 && len(list) == 1 && strings.Contains(list[0].Reason, why)
	})
	eventually(t, "fra is told why nyc waits", func() bool {
		st := fra.status(pid, "app", "1.0", img.digest, "nyc")
		return len(st) == 1 && !st[0].Complete && strings.Contains(st[0].Reason, why)
	})
	layer := img.blobs[len(img.blobs)-1]
	if _, err := nyc.store.Stat(t.Context(), layer); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the layer is there: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(disk, "store", "partial")); err != nil || len(left) > 0 {
		t.Errorf("files of fetches are left: %v, %v", left, err)
	}
	must(t, os.Remove(others))
	eventually(t, "the image at nyc when there is room", func() bool { return nyc.holds(img) })
	if list, ready, running, failed := nyc.rec.Pending(10); ready+running+failed != 0 {
		t.Errorf("still pending: %+v", list)
	}
}
