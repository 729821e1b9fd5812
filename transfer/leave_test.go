package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/swarm"
)

// lastCopies goes through all parts of the answer.
func (n *site) lastCopies(q transfer.LeaveQuestion) (all transfer.LeaveAnswer, err error) {
	n.t.Helper()
	if !q.Lost && q.Project == "" {
		q.Announced = n.announce(q.Site)
	}
	for range 1000 {
		part, err := n.rec.LastCopies(context.Background(), q)
		if err != nil {
			return all, err
		}
		all.Copies, all.Unseen = append(all.Copies, part.Copies...), append(all.Unseen, part.Unseen...)
		all.Manifests += part.Manifests
		if q.After = part.Next; q.After == "" {
			return all, nil
		}
	}
	n.t.Fatal("it never ends")
	return
}

func TestLastCopies(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	prod, stage := b.project("prod"), b.project("stage")
	b.rule(&command.Rule{Name: "two", Projects: []string{"prod"}, Sites: []string{"nyc"}})
	kept, only, foreign := sgp.push(prod, "app", "1.0"), sgp.push(stage, "app", "2.0"), fra.push(stage, "web", "1")
	eventually(t, "the kept image at nyc, all entries at all", func() bool {
		return nyc.holds(kept) && equal(prod, fra, nyc, sgp) && equal(stage, fra, nyc, sgp)
	})

	for _, at := range []*site{fra, sgp} { // at another site, and at the leaving one itself
		got, err := at.lastCopies(transfer.LeaveQuestion{Site: "sgp", For: time.Minute})
		must(t, err)
		if len(got.Copies) != 1 || got.Manifests != 3 || len(got.Unseen) != 0 {
			t.Fatalf("at %s: %+v", at.name, got)
		}
		c := got.Copies[0]
		// The manifest itself came with its entry, the blobs did not.
		if c.Repository != "stage/app" || c.Digest != only.digest || !slices.Equal(c.Tags, []string{"2.0"}) || len(c.Content) != len(only.blobs) || c.Bytes <= 2<<20 {
			t.Errorf("at %s: %+v", at.name, c)
		}
		for _, d := range only.blobs {
			if !slices.Contains(c.Content, d) {
				t.Errorf("%s is not named", d)
			}
		}
	}
	if got, err := nyc.lastCopies(transfer.LeaveQuestion{Site: "fra", For: time.Minute}); err != nil || len(got.Copies) != 1 || got.Copies[0].Digest != foreign.digest {
		t.Errorf("of fra: %+v %v", got, err)
	}

	t.Run("a copy that was pulled does not count and is told", func(t *testing.T) {
		for _, d := range only.blobs {
			must(t, nyc.fetchCached(d, stage))
		}
		got, err := fra.lastCopies(transfer.LeaveQuestion{Site: "sgp", For: time.Minute})
		must(t, err)
		if len(got.Copies) != 1 || !slices.Equal(got.Copies[0].Cached, []string{"nyc"}) {
			t.Errorf("%+v", got)
		}
	})

	t.Run("a site in between that does not answer is told", func(t *testing.T) {
		b.part(fra, nyc)
		got, err := fra.lastCopies(transfer.LeaveQuestion{Site: "sgp", For: time.Minute})
		must(t, err)
		if len(got.Copies) != 2 {
			t.Fatalf("%+v", got)
		}
		i := slices.IndexFunc(got.Copies, func(c transfer.LastCopy) bool { return c.Digest == kept.digest })
		if i < 0 || !slices.Equal(got.Copies[i].Silent, []string{"nyc"}) {
			t.Errorf("%+v", got)
		}
		b.join(fra, nyc)
	})

	t.Run("lost", func(t *testing.T) {
		sgp.stop()
		var silent *transfer.SilentError
		if _, err := fra.lastCopies(transfer.LeaveQuestion{Site: "sgp", For: time.Minute}); !errors.As(err, &silent) || silent.Site != "sgp" {
			t.Errorf("asked and dead: %v", err)
		}
		got, err := fra.lastCopies(transfer.LeaveQuestion{Site: "sgp", Lost: true, For: time.Minute})
		must(t, err)
		if len(got.Copies) != 1 || got.Copies[0].Digest != only.digest {
			t.Errorf("%+v", got)
		}
	})
}

// sizeOf finds a blob's size in the manifests that name it.
func (n *site) sizeOf(d digest.Digest, pid identity.ProjectID) int64 {
	_, size, _, err := n.store.Catalog().LinkedIn(pid, d)
	must(n.t, err)
	return size
}

// fetchCached is what a pull leaves behind.
func (n *site) fetchCached(d digest.Digest, pid identity.ProjectID) error {
	var err error
	eventually(n.t, "a pull", func() bool {
		err = n.swarm.Fetch(context.Background(), swarm.Want{Digest: d, PID: pid, Class: catalog.Cached, Size: n.sizeOf(d, pid)})
		return err == nil
	})
	return err
}

// TestLastCopies_InParts: any cut gives the same list.
func TestLastCopies_InParts(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	const repos = 5
	for i := range repos {
		fra.push(pid, fmt.Sprint("app", i), "1")
	}
	eventually(t, "entries at nyc", func() bool { return equal(pid, fra, nyc) })
	got, err := nyc.lastCopies(transfer.LeaveQuestion{Site: "fra"}) // no time: one page for each call
	must(t, err)
	if len(got.Copies) != repos || got.Manifests != repos {
		t.Errorf("%d copies of %d manifests", len(got.Copies), got.Manifests)
	}
	index := b.announce("fra")
	part, err := nyc.rec.LastCopies(context.Background(), transfer.LeaveQuestion{Site: "fra", Announced: index})
	if err != nil || len(part.Copies) != 1 || part.Next == "" {
		t.Errorf("one part is %+v %v", part, err)
	}
	if _, err := nyc.rec.LastCopies(context.Background(), transfer.LeaveQuestion{Site: "fra", After: "%"}); !errors.Is(err, transfer.ErrCursor) {
		t.Error(err)
	}
}

// TestLastCopies_Residency: nobody judges what may not rest with him.
func TestLastCopies_Residency(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, sgp := b.site("fra"), b.site("sgp")
	two, own := b.project("two", "nyc", "sgp"), b.project("own", "sgp")
	sgp.push(two, "app", "1")
	sgp.push(own, "app", "1")
	got, err := fra.lastCopies(transfer.LeaveQuestion{Site: "sgp", For: time.Minute})
	must(t, err)
	if len(got.Copies) != 0 || len(got.Unseen) != 2 || got.Unseen[0].Project != "own" || len(got.Unseen[0].Sites) != 0 || !slices.Equal(got.Unseen[1].Sites, []string{"nyc"}) {
		t.Errorf("at fra: %+v", got)
	}
	got, err = sgp.lastCopies(transfer.LeaveQuestion{Site: "sgp", For: time.Minute})
	must(t, err)
	if len(got.Copies) != 2 || len(got.Unseen) != 0 {
		t.Errorf("at sgp: %+v", got)
	}
}

// TestDrain_OtherHoldersFirst: of two holders the one that drains is asked last.
func TestDrain_OtherHoldersFirst(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	b.rule(&command.Rule{Name: "two", Projects: []string{"prod"}, Sites: []string{"nyc"}})
	img := fra.push(pid, "app", "1.0")
	eventually(t, "two holders known at sgp", func() bool {
		stores, err := sgp.store.Catalog().Holders(img.blobs[2])
		return err == nil && len(stores) == 2 && nyc.holds(img)
	})
	for _, drains := range []*site{fra, nyc} {
		row, _ := sgp.state.View().Site(drains.name)
		b.propose(&command.SiteDrain{Id: row.ID, Drain: true})
		got := sgp.sync.Holders(context.Background(), img.blobs[2], pid, 0)
		if len(got) != 2 || got[1] != drains.id.ID {
			t.Errorf("%s drains: asked are %v", drains.name, got)
		}
		b.propose(&command.SiteDrain{Id: row.ID})
	}
}

// TestRemoved_StoreIsForgotten: at who is there, and at who was away.
func TestRemoved_StoreIsForgotten(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	img, other := sgp.push(pid, "app", "1.0"), nyc.push(pid, "web", "1.0")
	knows := func(n *site) bool {
		stores, err := n.store.Catalog().Holders(img.blobs[0])
		must(t, err)
		return slices.Contains(stores, sgp.store.ID())
	}
	eventually(t, "all know what sgp holds", func() bool { return knows(fra) && knows(nyc) })
	eventually(t, "fra knows what nyc holds", func() bool {
		stores, err := fra.store.Catalog().Holders(other.blobs[0])
		return err == nil && slices.Equal(stores, []identity.StoreID{nyc.store.ID()})
	})
	nyc.stop()
	b.propose(&command.NodeRemove{NodeId: sgp.id.ID[:], Lost: true})
	eventually(t, "fra forgets it", func() bool { return !knows(fra) })
	nyc.restart()
	eventually(t, "nyc forgets it", func() bool { return !knows(nyc) })
	stores, err := fra.store.Catalog().Stores()
	must(t, err)
	if !slices.Equal(stores, []identity.StoreID{nyc.store.ID()}) {
		t.Errorf("stores that fra knows: %v", stores)
	}
}

// TestLastCopies_HoldsPushes: what was found about the leaving site is still true
// a moment later.
func TestLastCopies_HoldsPushes(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	prod := b.project("prod")
	nyc.push(prod, "app", "1")
	eventually(t, "the entry at fra", func() bool { return equal(prod, fra, nyc) })
	begin := func(n *site) (end func()) {
		t.Helper()
		end, wait := n.rec.BeginPush()
		if wait != 0 {
			t.Fatalf("%s takes no pushes for %s", n.name, wait)
		}
		return end
	}
	for _, at := range []*site{fra, nyc} { // at another site, and at the leaving one itself
		end := begin(nyc)
		var busy *transfer.PushingError
		if _, err := at.lastCopies(transfer.LeaveQuestion{Site: "nyc", For: time.Minute}); !errors.As(err, &busy) || busy.UnderWay != 1 {
			t.Errorf("at %s, with a push under way: %v", at.name, err)
		}
		if end, wait := nyc.rec.BeginPush(); wait <= 0 {
			end()
			t.Errorf("nyc takes pushes while %s asks what it holds", at.name)
		}
		end()
		got, err := at.lastCopies(transfer.LeaveQuestion{Site: "nyc", For: time.Minute})
		must(t, err)
		if len(got.Copies) != 1 {
			t.Errorf("at %s: %+v", at.name, got)
		}
		begin(fra)()
		nyc.ahead.Add(int64(5 * time.Minute)) // no removal came
		begin(nyc)()
	}
	// Who is lost is not asked.
	if _, err := fra.lastCopies(transfer.LeaveQuestion{Site: "nyc", Lost: true, For: time.Minute}); err != nil {
		t.Error(err)
	}
	begin(nyc)()
}

// TestLastCopies_WhatWasDeleted: a deleted project can be restored for a week, and its
// content is nobody's to lose until then; of a deleted image nothing can come back.
func TestLastCopies_WhatWasDeleted(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	gone, prod := b.project("gone"), b.project("prod")
	img, untagged := nyc.push(gone, "app", "1"), nyc.push(prod, "app", "1")
	must(t, nyc.store.Catalog().DeleteManifest(t.Context(), prod, "app", untagged.digest, "user:admin", 1))
	p, _ := fra.state.View().ProjectByPID(gone)
	b.propose(&command.ProjectDelete{Id: p.ID})
	for _, at := range []*site{fra, nyc} {
		got, err := at.lastCopies(transfer.LeaveQuestion{Site: "nyc", For: time.Minute})
		if err != nil || len(got.Copies) != 1 || got.Copies[0].Digest != img.digest || !got.Copies[0].Deleted {
			t.Errorf("at %s only nyc holds %+v, %v", at.name, got.Copies, err)
		}
	}
	b.propose(&command.ProjectRestore{Id: p.ID})
	b.rule(&command.Rule{Name: "all", Projects: []string{"*"}, AllSites: true})
	eventually(t, "the restored image at fra", func() bool { return fra.holds(img) })
	b.propose(&command.ProjectDelete{Id: p.ID})
	if got, err := fra.lastCopies(transfer.LeaveQuestion{Site: "nyc", For: time.Minute}); err != nil || len(got.Copies) != 0 {
		t.Errorf("only nyc holds %+v, %v", got.Copies, err)
	}
}
