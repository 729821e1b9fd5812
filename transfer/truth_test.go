package transfer_test

import (
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
)

// hints gives what a site thinks of who holds a blob.
func (n *site) hints(d digest.Digest, of *site) bool {
	n.t.Helper()
	h, err := n.store.Catalog().Holders(d)
	must(n.t, err)
	return slices.Contains(h, of.store.ID())
}

// A store that is put back to an older state, and has given out as many numbers
// again before anybody asks, must not leave hints that are wrong for ever.
func TestSync_ADiskPutBackAndWrittenOn(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"}, noHints)
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	kept := fra.push(pid, "app", "kept")
	backup := fra.copyDisk()
	lost := fra.push(pid, "app", "lost")
	eventually(t, "hints at nyc", func() bool { return nyc.hints(lost.blobs[2], fra) && nyc.hints(kept.blobs[2], fra) })
	cursor, err := nyc.store.Catalog().FeedCursor(fra.store.ID())
	must(t, err)

	b.part(fra, nyc)
	fra.putBack(backup)
	fra.open()
	fra.start()
	var again []image
	for end := uint64(0); end <= cursor.N+3; {
		again = append(again, fra.push(pid, "app", "again"))
		feed, err := fra.store.Catalog().Feed(cursor.N, 1)
		must(t, err)
		if len(feed) > 0 {
			end = cursor.N + uint64(len(again)) // it is beyond where nyc stands
		}
	}
	b.join(fra, nyc)
	eventually(t, "nyc's hints are right", func() bool {
		ok := !nyc.hints(lost.blobs[2], fra) && nyc.hints(kept.blobs[2], fra)
		for _, img := range again {
			ok = ok && nyc.hints(img.blobs[2], fra)
		}
		return ok
	})
	at, err := nyc.store.Catalog().FeedCursor(fra.store.ID())
	must(t, err)
	if at.Epoch == cursor.Epoch {
		t.Error("the feed is in the same epoch as before")
	}
	// A restart begins another epoch and loses nothing: the cursor goes on.
	fra.restart()
	more := fra.push(pid, "app", "more")
	eventually(t, "hints about the new push", func() bool { return nyc.hints(more.blobs[2], fra) })
	if _, _, known, err := fra.store.Catalog().FeedFrom(at, 1); err != nil || !known {
		t.Errorf("a cursor of before a restart: known %v, %v", known, err)
	}
}

// Hints that are wrong without any sign of it are found by the comparison.
func TestSync_WrongHintsArePutRight(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"}, noHints, func(b *bed) { b.truth = 300 * time.Millisecond })
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	img := fra.push(pid, "app", "1")
	gone, never := img.blobs[2], digest.FromString("never there")
	cat, ctx := nyc.store.Catalog(), t.Context()
	for range 3 {
		eventually(t, "hints at nyc", func() bool { return nyc.hints(gone, fra) && !nyc.hints(never, fra) })
		at, err := cat.FeedCursor(fra.store.ID())
		must(t, err)
		must(t, cat.ApplyFeed(ctx, fra.store.ID(), []catalog.FeedEntry{{N: at.N, Digest: gone, State: catalog.Gone}, {N: at.N, Digest: never, State: catalog.Placed}}, at))
	}
	eventually(t, "hints at nyc", func() bool { return nyc.hints(gone, fra) && !nyc.hints(never, fra) })
}
