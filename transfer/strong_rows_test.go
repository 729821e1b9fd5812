package transfer_test

import (
	"errors"
	"testing"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/tags"
)

// TestStrong_RowsThatWereLost: until its catalogue is counted a site has fewer tags, and
// none that says something older. It gets them from its own control state, or from the
// others if that is behind.
func TestStrong_RowsThatWereLost(t *testing.T) {
	const entries, vectors = 0x01, 0x03
	for name, c := range map[string]struct {
		past  past
		table byte
		in    int  // one row in so many is lost
		alone bool // its control state tells it, and nobody else
	}{
		"all entries, its control state has them":        {table: entries, in: 1, alone: true},
		"all entries of a project that was switched":     {past: past{switched: true}, table: entries, in: 1, alone: true},
		"half of the entries, the others have them":      {table: entries, in: 2},
		"what it has seen, its control state has it all": {table: vectors, in: 1, alone: true},
	} {
		t.Run(name, func(t *testing.T) {
			b, pid, old, _ := moved(t, c.past)
			fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
			nyc.stop()
			if lost := nyc.lose(c.table, c.in); lost == 0 {
				t.Fatal("nothing is lost")
			}
			if c.alone {
				b.part(fra, nyc)
				b.part(nyc, sgp)
			} else {
				nyc.stateBack(old.index)
			}
			nyc.open()
			for name, w := range fra.decided(pid) {
				if got := nyc.tag(pid, "app", name); got != "" && got != w.digest {
					t.Errorf("the tag %s says %s, and not %s", name, got, w.digest)
				}
			}
			b.neverOlder(pid, fra, sgp)
			if c.alone && !c.past.switched {
				nyc.asksTheState(pid)
			}
			nyc.start()
			if !c.alone {
				nyc.decidesNothing(pid)
			}
			eventually(t, "nyc has what was decided", func() bool { return nyc.saying(pid, fra.decided(pid)) })
			b.neverOlder(pid, nyc)
			if c.alone {
				b.join(fra, nyc)
				b.join(nyc, sgp)
			} else {
				nyc.behind(false)
			}
			nyc.goesOn(pid)
		})
	}
}

// asksTheState: what is written at a site that lost rows, and does not know it yet, is
// compared with what was decided, and is read there.
func (n *site) asksTheState(pid identity.ProjectID) {
	n.t.Helper()
	ctx, fra := n.t.Context(), n.nodes[0]
	door := n.doorWith(control{n}, alone{})
	put, err := n.manifest(ctx, pid, "app", "six")
	must(n.t, err)
	put.Tags = []string{"again"}
	if err := door.Put(ctx, put, tags.Condition{New: true}); !errors.Is(err, tags.ErrCondition) {
		n.t.Errorf("a push of a tag that must be new, and was lost here: %v", err)
	}
	before := fra.mode(pid).Seq
	must(n.t, door.Put(ctx, put, tags.Condition{}))
	info, err := n.store.Catalog().Tag(pid, "app", "again")
	if after := fra.mode(pid).Seq; err != nil || info.Digest != put.Digest || info.Dot != (catalog.Dot{Seq: after}) || after <= before {
		n.t.Errorf("the push of again as %s by command %d, after %d, is read as %s by %+v, %v", put.Digest, after, before, info.Digest, info.Dot, err)
	}
	must(n.t, door.DeleteTag(ctx, pid, "app", "kept", "user:admin", 1))
	if _, ok := fra.decided(pid)["kept"]; ok {
		n.t.Error("a tag that was lost at the site that deletes it is still there")
	}
	if err := door.DeleteTag(ctx, pid, "app", "gone", "user:admin", 1); !errors.Is(err, catalog.ErrNotFound) {
		n.t.Errorf("deleting what is gone: %v", err)
	}
}
