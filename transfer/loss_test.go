package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/portolan/portolan/node/store"
)

// A database that lost rows of entries is noticed by its sums and filled again
// by the others, and its loss deletes nothing anywhere.
func TestSync_RowsThatWereLostComeBack(t *testing.T) {
	const entryTable = 0x01
	b := newBed(t, []string{"fra", "nyc", "sgp"}, noHints)
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	want := map[string]image{}
	for i := range 4 {
		for _, n := range b.nodes {
			tag := fmt.Sprint(n.name, i)
			want[tag] = n.pushLayers(pid, "app", "", []string{tag}, []byte(tag))
		}
	}
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
	nyc.stop()
	if lost := nyc.lose(entryTable, 2); lost < 10 {
		t.Fatalf("%d rows were lost", lost)
	}
	nyc.open()
	nyc.start()
	stored, counted, err := nyc.store.Catalog().Recount(context.Background(), pid)
	must(t, err)
	if stored == counted {
		t.Log("the rows came back before they were counted")
	}
	// What is written meanwhile must not hide the loss.
	want["late"] = fra.pushLayers(pid, "app", "", []string{"late"}, []byte("late"))
	eventually(t, "all tags at all sites, and sums that are true", func() bool {
		for _, n := range b.nodes {
			for tag, img := range want {
				if n.tag(pid, "app", tag) != img.digest {
					return false
				}
			}
			stored, counted, err := n.store.Catalog().Recount(context.Background(), pid)
			if err != nil || stored != counted {
				return false
			}
		}
		return equal(pid, fra, nyc, sgp)
	})
	// And it goes on as before.
	nyc.pushLayers(pid, "app", "", []string{"after"}, []byte("after"))
	eventually(t, "a push of nyc elsewhere", func() bool { return equal(pid, fra, nyc, sgp) && sgp.tag(pid, "app", "after") != "" })
}

// A blob that is lost at the site that accepted it, however, is never served
// wrong there, and comes back from a copy.
func TestReconciler_ABlobLostAtHomeComesBack(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	b.rule(everywhere("prod"))
	img := fra.push(pid, "app", "1.0")
	layer := img.blobs[2]
	path := filepath.Join(fra.dir, "store", "blobs", "sha256", layer.Encoded()[:2], layer.Encoded())
	for name, damage := range map[string]func() error{
		"deleted":   func() error { return os.Remove(path) },
		"truncated": func() error { return os.Truncate(path, 1<<20) },
		"flipped": func() error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("portolan"), 2<<20)
			return errors.Join(err, f.Close())
		},
	} {
		eventually(t, "the image at both sites", func() bool { return fra.holds(img) && nyc.holds(img) })
		must(t, damage())
		var err error
		if blob, oerr := fra.store.Open(context.Background(), layer); oerr != nil {
			err = oerr
		} else {
			_, err = io.Copy(io.Discard, blob)
			_ = blob.Close()
		}
		if !errors.Is(err, store.ErrCorrupt) {
			t.Fatalf("%s: read it: %v", name, err)
		}
		eventually(t, name+": the blob at its home again", func() bool { return fra.holds(img) })
	}
}
