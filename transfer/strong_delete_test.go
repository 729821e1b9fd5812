package transfer_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/tags"
)

// overtaken gives a door of n's before whose first deletion something happens.
func (n *site) overtaken(do func()) *tags.Door {
	once := sync.OnceFunc(do)
	return n.doorWith(before{control{n}, func(body proto.Message) {
		if _, ok := body.(*command.TagsDelete); ok {
			once()
		}
	}}, nil)
}

// twice pushes a tag at one site that both have then, and gives a push over it.
func (b *bed) twice(pid identity.ProjectID, fra, nyc *site) (one digest.Digest, over func() digest.Digest) {
	b.t.Helper()
	one, err := fra.tagged(b.t.Context(), pid, "app", "one", "1")
	must(b.t, err)
	eventually(b.t, "both have the tag", func() bool { return nyc.tag(pid, "app", "1") == one })
	return one, func() digest.Digest {
		two, err := fra.tagged(b.t.Context(), pid, "app", "two", "1")
		must(b.t, err)
		return two
	}
}

// TestStrong_DeleteOfWhatWasOverwritten: who saw the first image deletes the tag at a
// site that is behind, and the second one, pushed elsewhere, stays.
func TestStrong_DeleteOfWhatWasOverwritten(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	_, over := b.twice(pid, fra, nyc)
	var two digest.Digest
	err := nyc.overtaken(func() { two = over() }).DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1)
	if !refusedWith(err, command.CodeConflict) || !strings.Contains(err.Error(), "set meanwhile, to "+two.String()) {
		t.Fatalf("a deletion of what was overwritten: %v", err)
	}
	// Who looks again, as he is told, sees it, and may delete it.
	if got := nyc.tag(pid, "app", "1"); got != two {
		t.Errorf("after the refusal nyc reads %q, not %s", got, two)
	}
	must(t, nyc.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1))
	eventually(t, "it is gone everywhere", func() bool { return fra.tag(pid, "app", "1") == "" && equal(pid, fra, nyc) })
}

// TestStrong_DeleteWithMatch: a condition is held against what was answered anywhere
// before, and what comes after that loses as a push does.
func TestStrong_DeleteWithMatch(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	one, over := b.twice(pid, fra, nyc)
	remove := func(d *tags.Door, match ...digest.Digest) error {
		return d.DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1, match...)
	}
	if err := remove(nyc.door, digest.FromString("x")); !errors.Is(err, tags.ErrCondition) || !strings.Contains(err.Error(), one.String()) {
		t.Errorf("a tag that says something else: %v", err)
	}
	var two digest.Digest
	if err := remove(nyc.overtaken(func() { two = over() }), one); !refusedWith(err, command.CodeConflict) {
		t.Errorf("overwritten after the look: %v", err)
	}
	if err := remove(nyc.door, one); !errors.Is(err, tags.ErrCondition) {
		t.Errorf("overwritten before: %v", err)
	}
	if got := fra.tag(pid, "app", "1"); got != two {
		t.Fatalf("the tag says %q", got)
	}
	must(t, remove(nyc.door, one, two))
	if err := remove(nyc.door, two); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("deleted already: %v", err)
	}
	plain := b.project("plain")
	_, err := fra.tagged(t.Context(), plain, "app", "one", "1")
	must(t, err)
	if err := fra.door.DeleteTag(t.Context(), plain, "app", "1", "user:admin", 1, one); !errors.Is(err, tags.ErrNoCondition) || fra.tag(plain, "app", "1") == "" {
		t.Errorf("eventual tags: %v", err)
	}
}

// TestDelete_TagOfAManifest: a tag that says another manifest is not this one's, whichever
// mode, and whether that was so before the look or comes after it.
func TestDelete_TagOfAManifest(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	one, over := b.twice(pid, fra, nyc)
	remove := func(d *tags.Door, pid identity.ProjectID, of digest.Digest) error {
		return d.DeleteTagOf(t.Context(), pid, "app", "1", of, "user:admin", 1)
	}
	var two digest.Digest
	if err := remove(nyc.overtaken(func() { two = over() }), pid, one); !refusedWith(err, command.CodeConflict) {
		t.Errorf("overwritten after the look: %v", err)
	}
	if err := remove(nyc.door, pid, one); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("overwritten before: %v", err)
	}
	if got := fra.tag(pid, "app", "1"); got != two {
		t.Fatalf("the tag says %q", got)
	}
	must(t, remove(nyc.door, pid, two))
	plain := b.project("plain")
	put, err := fra.tagged(t.Context(), plain, "app", "three", "1")
	must(t, err)
	if err := remove(fra.door, plain, one); !errors.Is(err, catalog.ErrNotFound) || fra.tag(plain, "app", "1") == "" {
		t.Errorf("an eventual tag that says something else: %v", err)
	}
	must(t, remove(fra.door, plain, put))
	if got := fra.tag(plain, "app", "1"); got != "" {
		t.Errorf("it still says %s", got)
	}
}

// unanswered carries out deletions, and nobody hears of it.
type unanswered struct{ control }

func (c unanswered) Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error) {
	if _, err := c.control.Propose(ctx, actor, body); err != nil {
		return command.Result{}, err
	}
	return command.Result{}, &command.Unavailable{Reason: "leadership was lost", RetryAfter: time.Second, Indeterminate: true}
}

// TestStrong_DeleteWhoseAnswerWasLost ends as deleted when it is repeated.
func TestStrong_DeleteWhoseAnswerWasLost(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	one, _ := b.twice(pid, fra, nyc)
	for name, match := range map[string][]digest.Digest{"whatever it says": nil, "with a condition": {one}} {
		_, err := fra.tagged(t.Context(), pid, "app", "one", "1")
		must(t, err)
		must(t, nyc.door.CatchUp(t.Context(), pid))
		if err := nyc.doorWith(unanswered{control{nyc}}, nil).DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1, match...); !later(err) {
			t.Fatalf("%s: %v", name, err)
		}
		for _, n := range []*site{nyc, fra, nyc} {
			if err := n.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1, match...); !errors.Is(err, catalog.ErrNotFound) {
				t.Errorf("%s, again at %s: %v", name, n.name, err)
			}
		}
	}
}

// TestStrong_DeleteOfATagThatIsNotHereYet: what was answered elsewhere before can be
// deleted at a site that has not got it.
func TestStrong_DeleteOfATagThatIsNotHereYet(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"}, noHints)
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	b.part(fra, nyc)
	nyc.behind(true)
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	put.Tags = []string{"1"}
	must(t, fra.doorWith(control{fra}, alone{}).Put(t.Context(), put, tags.Condition{}))
	if got := nyc.tag(pid, "app", "1"); got != "" {
		t.Fatalf("nyc has %s", got)
	}
	must(t, nyc.doorWith(catchingUp{control{nyc}}, nil).DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1))
	eventually(t, "fra writes it down", func() bool { return fra.tag(pid, "app", "1") == "" })
}

// catchingUp is the control plane of a site whose state is behind until it asks.
type catchingUp struct{ control }

func (c catchingUp) CatchUp(ctx context.Context) (uint64, error) {
	c.n.behind(false)
	return c.control.CatchUp(ctx)
}

// TestStrong_DeleteRepository takes what was seen: a tag that was set anew meanwhile
// stays, with its manifest.
func TestStrong_DeleteRepository(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	one, over := b.twice(pid, fra, nyc)
	other, err := fra.tagged(t.Context(), pid, "app", "other", "2")
	must(t, err)
	eventually(t, "both have the other tag", func() bool { return nyc.tag(pid, "app", "2") == other })
	var two, three digest.Digest
	door := nyc.overtaken(func() {
		two = over()
		three, err = fra.tagged(t.Context(), pid, "app", "three", "3")
		must(t, err)
	})
	if err := door.DeleteRepository(t.Context(), pid, "app", "user:admin", 1); !refusedWith(err, command.CodeConflict) || !strings.Contains(err.Error(), "prod/app is deleted but for what changed meanwhile") {
		t.Errorf("a repository with a tag that was overwritten: %v", err)
	}
	eventually(t, "what was seen is gone, and nothing else", func() bool {
		for _, n := range b.nodes {
			if n.tag(pid, "app", "1") != two || n.tag(pid, "app", "2") != "" || n.tag(pid, "app", "3") != three {
				return false
			}
			for d, want := range map[digest.Digest]bool{one: false, other: false, two: true, three: true} {
				if _, err := n.store.Catalog().Manifest(pid, "app", d); (err == nil) != want {
					return false
				}
			}
		}
		return equal(pid, fra, nyc)
	})
	// As after a loss of rows: that this site has seen it is with the manifests alone.
	must(t, nyc.store.Catalog().DropVector(t.Context(), pid))
	must(t, nyc.door.DeleteRepository(t.Context(), pid, "app", "user:admin", 1))
	if err := nyc.door.DeleteRepository(t.Context(), pid, "app", "user:admin", 1); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("deleted again: %v", err)
	}
}
