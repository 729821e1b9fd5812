package transfer_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

// durable makes a project whose pushes wait for n sites.
func (b *bed) durable(name string, n uint32, sites ...string) (identity.ProjectID, int64) {
	b.t.Helper()
	pid := identity.NewProjectID()
	return pid, b.propose(&command.ProjectCreate{ProjectId: pid[:], Name: name, Sites: sites, Durability: n})
}

// whole reports whether a site durably has all of an image: entry and blobs.
func (n *site) whole(pid identity.ProjectID, put catalog.Put) bool {
	_, err := n.store.Catalog().Manifest(pid, put.Repo, put.Digest)
	return err == nil && !slices.ContainsFunc(put.Refs, func(r catalog.Ref) bool {
		c := n.class(r.Digest)
		return c != catalog.Placed && c != catalog.Home
	})
}

// have counts the sites where an image is whole.
func (b *bed) have(pid identity.ProjectID, put catalog.Put) (n int) {
	for _, s := range b.nodes {
		if s.whole(pid, put) {
			n++
		}
	}
	return n
}

func TestDurable_AnsweredWhenSitesHaveAll(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp", "syd"}, noHints)
	pid, id := b.durable("prod", 3)
	put, err := b.site("fra").manifest(t.Context(), pid, "app", "one")
	must(t, err)
	put.Tags = []string{"1"}
	must(t, b.site("fra").door.Put(t.Context(), put, tags.Condition{}))
	if n := b.have(pid, put); n != 3 {
		t.Errorf("%d sites have a push that was answered", n)
	}
	// Afterwards as many are wanted, whoever they were: an older image moves too.
	b.propose(&command.ProjectUpdate{Id: id, Durability: proto32(4)})
	eventually(t, "all sites have it", func() bool { return b.have(pid, put) == 4 })
}

func proto32(n uint32) *uint32 { return &n }

func TestDurable_ASiteIsAway(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.durable("prod", 2)
	b.part(fra, nyc)
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	put.Tags = []string{"1"}
	var few *tags.NotDurable
	err = fra.door.Put(t.Context(), put, tags.Condition{})
	if !errors.As(err, &few) || few.Visible || few.Have != 1 || few.Want != 2 || len(few.Away) != 1 || few.Away[0].Site != "nyc" || few.RetryAfter == 0 {
		t.Fatalf("a push while a site of two is away: %+v", err)
	}
	if _, err := fra.store.Catalog().Manifest(pid, "app", put.Digest); !errors.Is(err, catalog.ErrNotFound) || fra.tag(pid, "app", "1") != "" {
		t.Errorf("something of it is visible: %v", err)
	}
	b.join(fra, nyc)
	eventually(t, "the same push is taken", func() bool { return fra.door.Put(t.Context(), put, tags.Condition{}) == nil })
	if n := b.have(pid, put); n != 2 || nyc.tag(pid, "app", "1") != put.Digest {
		t.Errorf("%d sites have it", n)
	}
}

func TestDurable_AnotherSiteStandsIn(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp", "syd"})
	pid, _ := b.durable("prod", 3)
	b.part(b.site("fra"), b.site("nyc"))
	put, err := b.site("fra").manifest(t.Context(), pid, "app", "one")
	must(t, err)
	must(t, b.site("fra").door.Put(t.Context(), put, tags.Condition{}))
	if n := b.have(pid, put); n < 3 {
		t.Errorf("%d sites have it", n)
	}
}

// cut lets a link go between the blobs and the entry.
type cutAfter struct {
	tags.Copies
	do func()
}

func (c cutAfter) Hold(ctx context.Context, p state.Project, repo string, blobs []syncer.Piece, n int) (tags.Held, error) {
	h, err := c.Copies.Hold(ctx, p, repo, blobs, n)
	if err == nil {
		c.do()
	}
	return h, err
}

func TestDurable_CutBetweenBlobsAndEntry(t *testing.T) {
	for _, strong := range []bool{false, true} {
		b := newBed(t, []string{"fra", "nyc"}, noHints)
		fra, nyc := b.site("fra"), b.site("nyc")
		pid, _ := b.durable("prod", 2)
		if strong {
			pid, _ = b.strong("strong") // two sites without being told
		}
		put, err := fra.manifest(t.Context(), pid, "app", "one")
		must(t, err)
		put.Tags = []string{"1"}
		door := fra.doorWith(control{fra}, cutAfter{fra.rec, func() { b.part(fra, nyc) }})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err = door.Put(ctx, put, tags.Condition{})
		cancel()
		var few *tags.NotDurable
		says := "; it will complete by itself, and pushing again is safe"
		if strong { // nobody sets its tag later
			says = "; its manifest is stored and will be at the other sites, the tag 1 was not set: push again"
		}
		if !errors.As(err, &few) || !few.Visible || few.Have != 1 || !strings.Contains(err.Error(), "stored at 1 of 2") || !strings.HasSuffix(err.Error(), says) {
			t.Fatalf("strong %v: cut before the entry: %v", strong, err)
		}
		if got := fra.tag(pid, "app", "1"); (got != "") == strong {
			t.Errorf("strong %v: the tag says %q", strong, got)
		}
		b.join(fra, nyc)
		eventually(t, "it completes by itself, but for a strong tag", func() bool {
			return b.have(pid, put) == 2 && (strong || nyc.tag(pid, "app", "1") == put.Digest)
		})
		if got := fra.tag(pid, "app", "1"); (got != "") == strong {
			t.Errorf("strong %v: the tag says %q once the manifest is at both", strong, got)
		}
		must(t, fra.door.Put(t.Context(), put, tags.Condition{})) // again is as good as once
		if got := fra.tag(pid, "app", "1"); got != put.Digest {
			t.Errorf("strong %v: the tag says %q after the same push again", strong, got)
		}
	}
}

func TestDurable_ClientGone(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.durable("prod", 2)
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	put.Tags = []string{"1"}
	ctx, cancel := context.WithCancel(t.Context())
	door := fra.doorWith(control{fra}, cutAfter{fra.rec, cancel})
	if err := door.Put(ctx, put, tags.Condition{}); !errors.Is(err, context.Canceled) {
		t.Fatalf("the client is gone: %v", err)
	}
	must(t, fra.door.Put(t.Context(), put, tags.Condition{}))
	if n := b.have(pid, put); n != 2 {
		t.Errorf("%d sites have it", n)
	}
	eventually(t, "the other site has the tag", func() bool { return nyc.tag(pid, "app", "1") == put.Digest })
}

func TestDurable_NeverOutsideOfResidency_NorLess(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid, id := b.durable("prod", 2, "fra", "nyc")
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	must(t, fra.door.Put(t.Context(), put, tags.Condition{}))
	for _, r := range put.Refs {
		if sgp.class(r.Digest) != 0 {
			t.Errorf("site sgp, which may not hold the project, has %s", r.Digest)
		}
	}
	if _, err := sgp.sync.Keep(t.Context(), nyc.id.ID, pid, "app", []syncer.Piece{{Digest: digest.FromString("x"), Size: 1}}); err == nil {
		t.Error("nyc keeps blobs for a site that may not hold the project")
	}
	for _, n := range []uint32{3, 6} {
		if _, err := (control{fra}).Propose(t.Context(), "user:admin", &command.ProjectUpdate{Id: id, Durability: &n}); !refusedWith(err, command.CodeInvalid) {
			t.Errorf("durability %d of two sites: %v", n, err)
		}
	}
	// A site goes for good: less than was promised is not promised in silence.
	nyc.stop()
	b.mu.Lock()
	b.nodes = []*site{fra, sgp}
	b.mu.Unlock()
	b.propose(&command.NodeRemove{NodeId: nyc.id.ID[:], Lost: true})
	two, err := fra.manifest(t.Context(), pid, "app", "two")
	must(t, err)
	var few *tags.NotDurable
	if err := fra.door.Put(t.Context(), two, tags.Condition{}); !errors.As(err, &few) || few.Visible || !strings.Contains(err.Error(), "1 site in all") {
		t.Errorf("a push that one site of two could have: %v", err)
	}
	b.propose(&command.ProjectUpdate{Id: id, Durability: proto32(1)})
	must(t, fra.door.Put(t.Context(), two, tags.Condition{}))
}

// TestDurable_ALostHolderIsReplaced: what was promised of a push holds after its
// answer, too.
func TestDurable_ALostHolderIsReplaced(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra := b.site("fra")
	pid, _ := b.durable("prod", 2)
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	put.Tags = []string{"1"}
	must(t, fra.door.Put(t.Context(), put, tags.Condition{}))
	i := slices.IndexFunc(b.nodes, func(n *site) bool { return n != fra && n.whole(pid, put) })
	if i < 0 || b.have(pid, put) != 2 {
		t.Fatalf("%d sites have it, not fra and one other", b.have(pid, put))
	}
	lost := b.nodes[i]
	lost.stop()
	b.mu.Lock()
	b.nodes = slices.Delete(slices.Clone(b.nodes), i, i+1)
	b.mu.Unlock()
	b.propose(&command.NodeRemove{NodeId: lost.id.ID[:], Lost: true})
	eventually(t, "the third site has taken a copy", func() bool { return b.have(pid, put) == 2 })
	two, err := fra.manifest(t.Context(), pid, "app", "two")
	must(t, err)
	must(t, fra.door.Put(t.Context(), two, tags.Condition{})) // and it stands in for pushes
}

// TestDurable_TheOtherSiteRestarts: a lease that was answered outlives a restart.
func TestDurable_TheOtherSiteRestarts(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.durable("prod", 2)
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	p, _ := fra.state.View().ProjectByPID(pid)
	blobs := []syncer.Piece{}
	for _, r := range put.Refs {
		blobs = append(blobs, syncer.Piece{Digest: r.Digest, Size: r.Size})
	}
	if _, err := fra.rec.Hold(t.Context(), p, "app", blobs, 2); err != nil {
		t.Fatal(err)
	}
	nyc.restart()
	for _, r := range put.Refs {
		if _, _, linked, err := nyc.store.Catalog().LinkedIn(pid, r.Digest); err != nil || !linked || nyc.class(r.Digest) != catalog.Placed {
			t.Errorf("%s after a restart: linked %v, class %v, %v", r.Digest, linked, nyc.class(r.Digest), err)
		}
	}
}
