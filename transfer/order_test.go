package transfer_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/swarm"
	"github.com/portolan/portolan/transfer/tags"
)

// slowLink caps what one site sends another.
func (b *bed) slowLink(from, to string, mbit uint32) {
	b.t.Helper()
	b.propose(&command.BudgetSet{From: from, To: to, Mbit: mbit})
}

// random are layers of so many bytes each.
func random(n, size int) (layers [][]byte) {
	for range n {
		l := make([]byte, size)
		_, _ = rand.Read(l)
		layers = append(layers, l)
	}
	return layers
}

// arrivals says of images how many of their layers have come to a site.
type arrivals struct {
	mu    sync.Mutex
	image map[digest.Digest]int
	left  []int
	each  func(left []int, i int) // is told that a layer of image i has come; mu is held
}

func (n *site) arriving(each func(left []int, i int)) *arrivals {
	a := &arrivals{image: map[digest.Digest]int{}, each: each}
	seen := func(w swarm.Want) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if i, ok := a.image[w.Digest]; ok {
			delete(a.image, w.Digest)
			a.left[i]--
			a.each(a.left, i)
		}
	}
	n.seen.Store(&seen)
	return a
}

// push pushes an image, which is one to be looked for.
func (a *arrivals) push(from *site, pid identity.ProjectID, repo string, layers [][]byte) image {
	a.mu.Lock()
	for _, l := range layers {
		a.image[digest.FromBytes(l)] = len(a.left)
	}
	a.left = append(a.left, len(layers))
	a.mu.Unlock()
	return from.pushLayers(pid, repo, "", []string{"1"}, layers...)
}

// whole is how many of the images have come with all their layers.
func (a *arrivals) whole() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, left := range a.left {
		if left == 0 {
			n++
		}
	}
	return n
}

// TestArtifacts_CompleteInOrder: over a slow link older images are whole before much
// of newer ones comes, not all of them at the end.
func TestArtifacts_CompleteInOrder(t *testing.T) {
	const (
		images, layers = 16, 12
		ahead          = 5 // images whose layers have places at the same time, and one
	)
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	b.slowLink("fra", "nyc", 60)
	b.rule(&command.Rule{Name: "all", Projects: []string{"prod"}, AllSites: true})
	var late []string
	come := nyc.arriving(func(left []int, i int) {
		if left[i] > 0 {
			return
		}
		for j := i + ahead; j < len(left); j++ {
			if left[j] < layers {
				late = append(late, fmt.Sprintf("%d layers of image %d came before image %d was whole", layers-left[j], j, i))
			}
		}
	})
	var all []image
	for i := range images {
		all = append(all, come.push(fra, pid, fmt.Sprint("app", i), random(layers, 100<<10)))
	}
	for i, img := range all {
		eventually(t, fmt.Sprint("image ", i), func() bool { return nyc.holds(img) })
	}
	come.mu.Lock()
	defer come.mu.Unlock()
	for _, l := range late {
		t.Error(l)
	}
}

// slowBackfill has a rule bring more images than have places at once, over a link on
// which that takes minutes, and returns when as many as can be are under way.
func (b *bed) slowBackfill(from, to *site, priority int32) *arrivals {
	b.t.Helper()
	pid := b.project("backfill")
	b.slowLink(from.name, to.name, 20)
	b.rule(&command.Rule{Name: "backfill", Projects: []string{"backfill"}, AllSites: true, Priority: priority})
	come := to.arriving(func([]int, int) {})
	const images = 20
	for i := range images {
		come.push(from, pid, fmt.Sprint("app", i), random(2, 4<<20))
	}
	eventually(b.t, "the backfill has all its places", func() bool {
		n := 0
		for _, p := range to.swarm.Progress() {
			if p.Total == 4<<20 {
				n++
			}
		}
		return n >= 32
	})
	return come
}

// TestPriority_PassesWhatIsUnderWay: an image that a rule of a higher priority wants
// does not wait until one of 16 others is whole.
func TestPriority_PassesWhatIsUnderWay(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("urgent")
	b.rule(&command.Rule{Name: "urgent", Projects: []string{"urgent"}, AllSites: true, Priority: 5})
	backfill := b.slowBackfill(fra, nyc, 0)
	before := backfill.whole()
	for i := range 3 {
		img := fra.pushLayers(pid, fmt.Sprint("app", i), "", []string{"1"}, random(6, 300<<10)...)
		eventually(t, fmt.Sprint("urgent image ", i), func() bool { return nyc.holds(img) })
	}
	if n := backfill.whole() - before; n > 3 {
		t.Errorf("%d images of the backfill became whole: what is urgent waited for them", n)
	}
}

// TestPushes_DoNotWaitForRulesOnTheLink: what a durable push, or a claim, wants passes
// what rules have asked for before over a link that is full of it.
func TestPushes_DoNotWaitForRulesOnTheLink(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.durable("prod", 2)
	other := b.project("other")
	backfill := b.slowBackfill(fra, nyc, 100)
	before := backfill.whole()
	put, err := fra.manifest(t.Context(), pid, "app", string(random(1, 2<<20)[0]))
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	must(t, fra.door.Put(ctx, put, tags.Condition{}))
	img := fra.pushLayers(other, "app", "", []string{"1"}, random(2, 1<<20+1)...)
	var want []transfer.Descriptor
	for _, d := range img.blobs {
		row, err := fra.store.Catalog().Blob(d)
		must(t, err)
		want = append(want, transfer.Descriptor{Digest: d, Size: row.Size})
	}
	eventually(t, "nyc claims the image's blobs", func() bool {
		c, err := nyc.rec.Claim(t.Context(), other, "copy", want)
		return err == nil && len(c.Claimed) == len(want)
	})
	eventually(t, "what was claimed is here", func() bool {
		return !slices.ContainsFunc(img.blobs, func(d digest.Digest) bool { return nyc.class(d) != catalog.Home })
	})
	if n := backfill.whole() - before; n > 3 {
		t.Errorf("%d images of the backfill became whole: the pushes waited for them", n)
	}
}
