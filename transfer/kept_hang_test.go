package transfer_test

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/transfer/swarm"
	syncer "github.com/portolan/portolan/transfer/sync"
)

// TestKeep_ANodeThatHangsKeepsNoOtherOut: a site asks for more than there are workers, and
// nothing of it comes. What another site's push wants kept comes meanwhile.
func TestKeep_ANodeThatHangsKeepsNoOtherOut(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	hangs, goes := b.project("hangs"), b.project("goes")
	nyc.sticks(func(w swarm.Want) bool { return w.PID == hangs })
	var never []syncer.Piece
	for i := range 100 {
		never = append(never, syncer.Piece{Digest: digest.FromString(fmt.Sprint("never ", i)), Size: 1 << 20})
	}
	eventually(t, "nyc tries to get what it can", func() bool {
		_, err := fra.sync.Keep(t.Context(), nyc.id.ID, hangs, "app", never)
		return err == nil && nyc.held.Load() >= 32
	})
	d, err := sgp.store.PutBytes(t.Context(), []byte("it comes"), store.Link{PID: goes, Repo: "app"})
	must(t, err)
	eventually(t, "the other site's push is kept", func() bool {
		k, err := sgp.sync.Keep(t.Context(), nyc.id.ID, goes, "app", []syncer.Piece{{Digest: d.Digest, Size: d.Size}})
		return err == nil && k.Kept[0]
	})
	if n := nyc.held.Load(); n != 32 {
		t.Errorf("%d of the others' run", n)
	}
}
