package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/rules"
	"github.com/portolan/portolan/transfer/swarm"
	"github.com/portolan/portolan/transfer/tags"
)

// TestPushes_DoNotWaitForRules: a backfill that fills all its places, at the
// highest priority, holds up neither durable pushes nor claimed blobs.
func TestPushes_DoNotWaitForRules(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	big, other := b.project("big"), b.project("other")
	nyc.sticks(func(w swarm.Want) bool { return w.PID == big })
	b.rule(&command.Rule{Name: "all", Projects: []string{"big"}, AllSites: true, Priority: 100})
	for i := range 40 {
		fra.pushLayers(big, "app", "", []string{fmt.Sprint(i)}, []byte(fmt.Sprint("one", i)), []byte(fmt.Sprint("two", i)))
	}
	eventually(t, "the rule fills its places", func() bool { return nyc.held.Load() >= 40 })

	pid, _ := b.durable("prod", 2)
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), within/2)
	defer cancel()
	must(t, fra.door.Put(ctx, put, tags.Condition{}))

	img := fra.push(other, "app")
	eventually(t, "nyc knows the image", func() bool {
		_, err := nyc.store.Catalog().Manifest(other, "app", img.digest)
		return err == nil
	})
	var want []transfer.Descriptor
	for _, d := range img.blobs {
		row, err := fra.store.Catalog().Blob(d)
		must(t, err)
		want = append(want, transfer.Descriptor{Digest: d, Size: row.Size})
	}
	c, err := nyc.rec.Claim(t.Context(), other, "copy", want)
	if err != nil || len(c.Claimed) != len(want) {
		t.Fatalf("claim: %+v, %v", c, err)
	}
	eventually(t, "what was claimed is here", func() bool {
		for _, d := range img.blobs {
			if nyc.class(d) != catalog.Home {
				return false
			}
		}
		return true
	})
}

// first gives a repository for whose pushes at fra a site is asked first.
func (b *bed) first(pid identity.ProjectID, site string) string {
	b.t.Helper()
	view := b.site("fra").state.View()
	p, _ := view.ProjectByPID(pid)
	for i := range 1000 {
		repo := fmt.Sprint("app", i)
		if s := rules.Order(p, repo, "fra", view.ContentSites()); s[1].Name == site {
			return repo
		}
	}
	b.t.Fatalf("%s is never first", site)
	return ""
}

// TestDurable_ASiteThatGetsNothingIsNotWaitedForAlone: it says that all is on its
// way there, and nothing comes.
func TestDurable_ASiteThatGetsNothingIsNotWaitedForAlone(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.durable("prod", 2)
	nyc.sticks(func(w swarm.Want) bool { return w.PID == pid })
	eventually(t, "fra reaches all", func() bool { // who is away is asked last
		peers := fra.sync.Peers()
		return len(peers) == 2 && peers[0].Error == "" && peers[1].Error == ""
	})
	put, err := fra.manifest(t.Context(), pid, b.first(pid, "nyc"), "one")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	must(t, fra.door.Put(ctx, put, tags.Condition{}))
	if nyc.held.Load() == 0 {
		t.Error("nyc was not asked")
	}
	if n := b.have(pid, put); n != 2 {
		t.Errorf("%d sites have it", n)
	}
}

// TestDurable_TimeOverNamesWhoIsStillAtIt: D3.
func TestDurable_TimeOverNamesWhoIsStillAtIt(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.durable("prod", 2)
	nyc.sticks(func(w swarm.Want) bool { return w.PID == pid })
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var few *tags.NotDurable
	if err := fra.door.Put(ctx, put, tags.Condition{}); !errors.As(err, &few) || few.Have != 1 || len(few.Away) != 1 || few.Away[0].Site != "nyc" {
		t.Fatalf("the time is over while nyc is at it: %v", err)
	}
}
