package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/swarm"
	syncer "github.com/portolan/portolan/transfer/sync"
)

// TestLastCopies_PushedBetweenTwoParts: the gate opens by itself, or with a
// restart; what was looked at before says nothing then.
func TestLastCopies_PushedBetweenTwoParts(t *testing.T) {
	for name, opens := range map[string]func(*site){
		"time":    func(n *site) { n.ahead.Add(int64(5 * time.Minute)) },
		"restart": func(n *site) { n.restart() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t, []string{"fra", "nyc"})
			fra, nyc := b.site("fra"), b.site("nyc")
			pid := b.project("prod")
			for i := range 3 {
				nyc.push(pid, fmt.Sprint("app", i), "1")
			}
			eventually(t, "entries at fra", func() bool { return equal(pid, fra, nyc) })
			index := b.announce("nyc")
			first, err := fra.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "nyc", Announced: index}) // one page
			if err != nil || len(first.Copies) != 1 || first.Next == "" || first.Anew {
				t.Fatalf("first part: %+v, %v", first, err)
			}
			opens(nyc)
			end, wait := nyc.rec.BeginPush()
			if end == nil {
				t.Fatalf("nyc takes no pushes for %s", wait)
			}
			img := nyc.push(pid, "app0", "2") // behind what was looked at
			end()
			var all transfer.LeaveAnswer
			anew := 0
			for next := first.Next; next != ""; next = all.Next {
				var part transfer.LeaveAnswer
				eventually(t, "nyc answers", func() bool {
					part, err = fra.rec.LastCopies(context.Background(), transfer.LeaveQuestion{Site: "nyc", After: next, Announced: index})
					return !errors.As(err, new(*transfer.SilentError)) && !errors.As(err, new(*transfer.UnwillingError))
				})
				must(t, err)
				if part.Anew {
					all, anew = transfer.LeaveAnswer{}, anew+1
				}
				all.Copies, all.Next = append(all.Copies, part.Copies...), part.Next
			}
			found := map[digest.Digest]int{}
			for _, c := range all.Copies {
				found[c.Digest]++
			}
			if anew != 1 || len(found) != 4 || found[img.digest] != 1 {
				t.Errorf("begun anew %d times; %d last copies, the new one %d times", anew, len(found), found[img.digest])
			}
		})
	}
}

// TestLetGo_NotWhatAPushWasPromised: its entry has not come yet.
func TestLetGo_NotWhatAPushWasPromised(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	b.rule(&command.Rule{Name: "versions", Projects: []string{"prod"}, Tags: []string{"v*"}, Sites: []string{"nyc"}, FollowDeletions: true})
	img := fra.push(pid, "app", "v1")
	eventually(t, "the image at nyc", func() bool { return nyc.holds(img) })
	promised, last := img.blobs[0], img.blobs[len(img.blobs)-1]
	k, err := fra.sync.Keep(t.Context(), nyc.id.ID, pid, "other", []syncer.Piece{{Digest: promised, Size: 1}})
	if err != nil || len(k.Kept) != 1 || !k.Kept[0] {
		t.Fatalf("%+v, %v", k, err)
	}
	must(t, fra.store.Catalog().DeleteTag(t.Context(), pid, "app", "v1", "user:admin", 1))
	// Blobs are looked at in this order.
	eventually(t, "nyc lets go of the last blob", func() bool { return nyc.class(last) == catalog.Cached })
	if c := nyc.class(promised); c != catalog.Placed {
		t.Errorf("a promised copy has class %d", c)
	}
}

// TestHold_PinsAndKeeps: what other sites rely on counts as pushed here.
func TestHold_PinsAndKeeps(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	fra.push(pid, "app", "1") // a project without entries is not asked for
	eventually(t, "entries", func() bool { return equal(pid, fra, nyc, sgp) })
	var blobs []digest.Digest
	for _, text := range []string{"uploaded, and named by nothing yet", "another"} {
		d, err := nyc.store.PutBytes(t.Context(), []byte(text), store.Link{PID: pid, Repo: "app"})
		must(t, err)
		blobs = append(blobs, d.Digest)
	}
	goOn := fra.sticks(func(w swarm.Want) bool { return w.Digest == blobs[0] })
	until := time.Now().Add(time.Hour)
	c, err := fra.rec.Claim(t.Context(), pid, "app", []transfer.Descriptor{{Digest: blobs[0], Size: 34}})
	if err != nil || len(c.Claimed) != 1 {
		t.Fatalf("claim: %+v, %v", c, err)
	}
	var busy *transfer.PushingError
	if _, err := sgp.lastCopies(transfer.LeaveQuestion{Site: "nyc", For: time.Minute}); !errors.As(err, &busy) || busy.UnderWay != 1 {
		t.Fatalf("a blob that fra relies on and has not got: %v", err)
	}
	if pinned, err := fra.sync.Pin(t.Context(), nyc.id.ID, pid, blobs[1:], until); err == nil {
		t.Errorf("nyc promises %v while it is judged", pinned)
	}
	if k, err := fra.sync.Keep(t.Context(), nyc.id.ID, pid, "app", []syncer.Piece{{Digest: blobs[1], Size: 7}}); err == nil {
		t.Errorf("nyc keeps %+v while it is judged", k)
	}
	goOn()
	eventually(t, "fra has it", func() bool { return fra.class(blobs[0]) == catalog.Home })
	eventually(t, "nyc knows that", func() bool {
		_, err := sgp.lastCopies(transfer.LeaveQuestion{Site: "nyc", For: time.Minute})
		return err == nil
	})
}
