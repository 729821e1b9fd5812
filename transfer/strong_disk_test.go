package transfer_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/tags"
)

// word is what a tag says, and the number of the command that set it.
type word struct {
	digest digest.Digest
	seq    uint64
}

// decided gives what the control state here says of the tags of a repository.
func (n *site) decided(pid identity.ProjectID) map[string]word {
	out := map[string]word{}
	for t := range n.state.View().StrongTagsSince(pid, 0) {
		if t.Digest != "" {
			out[t.Name] = word{digest.Digest(t.Digest), t.Seq}
		}
	}
	return out
}

// reads gives what the catalogue here says of them.
func (n *site) reads(pid identity.ProjectID) (map[string]word, error) {
	out := map[string]word{}
	err := n.store.Catalog().EachTag(pid, nil, func(s catalog.TagState) error {
		w := word{digest: s.Digest}
		if s.Dot.Inc == 0 { // else a site wrote it
			w.seq = s.Dot.Seq
		}
		out[s.Name] = w
		return nil
	})
	return out, err
}

// saying reports whether a site's tags say just that.
func (n *site) saying(pid identity.ProjectID, want map[string]word) bool {
	got, err := n.reads(pid)
	return err == nil && maps.Equal(got, want)
}

// asDecided reports whether all sites have what the control state says, and nothing else,
// and their sums are true.
func (b *bed) asDecided(pid identity.ProjectID) bool {
	want := b.nodes[0].decided(pid)
	for _, n := range b.nodes {
		stored, counted, err := n.store.Catalog().Recount(context.Background(), pid)
		if err != nil || stored != counted || !n.saying(pid, want) {
			return false
		}
	}
	return equal(pid, b.nodes...)
}

// neverOlder has the test fail if a tag says something older than it does now at one of
// these sites, if one that was deleted is back, or one that was not is gone.
func (b *bed) neverOlder(pid identity.ProjectID, sites ...*site) {
	b.t.Helper()
	upTo := b.nodes[0].mode(pid).Seq
	for _, n := range sites {
		was, err := n.reads(pid)
		must(b.t, err)
		b.t.Cleanup(n.store.Catalog().OnCommit(func(identity.ProjectID) {
			now, err := n.reads(pid)
			if err != nil {
				return // the site ends
			}
			decided := b.nodes[0].decided(pid)
			for name, w := range now {
				if old, ok := was[name]; ok && w.seq < old.seq || !ok && w.seq <= upTo {
					b.t.Errorf("%s: the tag %s says again what %d set, %s", n.name, name, w.seq, w.digest)
				}
			}
			for name := range was {
				if _, ok := now[name]; !ok && decided[name].digest != "" {
					b.t.Errorf("%s: the tag %s is gone, and says %s", n.name, name, decided[name].digest)
				}
			}
		}))
	}
}

// past is what else has become of a project.
type past struct {
	switched  bool // its tags were the sites' own at first
	forgotten bool // most of its deletions are so old that nobody remembers them
}

// moved gives a project with strong tags, and a copy of nyc's disk of before tags were
// set, overwritten and deleted, there and elsewhere; and what they said then.
func moved(t *testing.T, p past) (b *bed, pid identity.ProjectID, old diskCopy, said map[string]word) {
	b = newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	set := func(n *site, text string, names ...string) {
		t.Helper()
		_, err := n.tagged(t.Context(), pid, "app", text, names...)
		must(t, err)
	}
	remove := func(n *site, names ...string) {
		t.Helper()
		must(t, n.door.CatchUp(t.Context(), pid)) // who deletes has seen what is there
		for _, name := range names {
			must(t, n.door.DeleteTag(t.Context(), pid, "app", name, "user:admin", 1))
		}
	}
	if p.switched {
		pid = b.project("prod")
		set(sgp, "eventual", "kept", "gone")
		project, _ := fra.state.View().ProjectByPID(pid)
		b.switchTo(project.ID, command.TagMode_TAG_MODE_STRONG, false)
		eventually(t, "the tags are strong", switched(pid, state.StrongTags, b.nodes...))
	} else {
		pid, _ = b.strong("prod")
		set(sgp, "one", "kept", "gone")
	}
	set(fra, "one", "moved", "moved-here", "gone-here", "again", "last")
	eventually(t, "all agree", func() bool { return b.asDecided(pid) })
	said = fra.decided(pid)
	old = nyc.copyDisk()

	set(fra, "two", "moved", "new", "brief")
	set(nyc, "three", "moved-here", "new-here", "brief-here")
	remove(fra, "gone", "brief", "again")
	remove(nyc, "gone-here", "brief-here")
	set(sgp, "one", "again")
	if p.forgotten {
		const longer = 31 * 24 * time.Hour
		b.proposeAt(time.Now().Add(longer), &command.TagsDelete{ProjectId: pid[:], Repository: "app", Tag: "last", Digest: said["last"].digest.String()})
		if fra.mode(pid).Base == 0 {
			t.Fatal("the deletions are remembered")
		}
	}
	eventually(t, "all agree on what came after", func() bool { return b.asDecided(pid) })
	if got := fra.decided(pid); len(got) < 6 || got["moved"] == said["moved"] || got["again"].digest != said["again"].digest {
		t.Fatalf("the tags say %v, and said %v", got, said)
	}
	return b, pid, old, said
}

// decidesNothing: a site without a majority refuses what needs one.
func (n *site) decidesNothing(pid identity.ProjectID) {
	n.t.Helper()
	if _, err := n.tagged(n.t.Context(), pid, "app", "four", "moved"); !later(err) {
		n.t.Errorf("a push without a majority: %v", err)
	}
	if err := n.door.DeleteTag(n.t.Context(), pid, "app", "moved", "user:admin", 1); !later(err) {
		n.t.Errorf("a deletion without a majority: %v", err)
	}
	if err := n.door.CatchUp(n.t.Context(), pid); !later(err) {
		n.t.Errorf("a strict read without a majority: %v", err)
	}
}

// goesOn: all agree in the end, and what a site pushes and deletes then is compared with
// what was decided, and comes after it everywhere.
func (n *site) goesOn(pid identity.ProjectID) {
	n.t.Helper()
	ctx, fra := n.t.Context(), n.nodes[0]
	eventually(n.t, "all agree", func() bool { return n.asDecided(pid) })
	for _, name := range []string{"gone", "gone-here", "brief"} {
		if err := n.door.DeleteTag(ctx, pid, "app", name, "user:admin", 1); !errors.Is(err, catalog.ErrNotFound) {
			n.t.Errorf("deleting %s, which is gone: %v", name, err)
		}
	}
	put, err := n.manifest(ctx, pid, "app", "five")
	must(n.t, err)
	put.Tags = []string{"new"}
	if err := n.door.Put(ctx, put, tags.Condition{New: true}); !errors.Is(err, tags.ErrCondition) {
		n.t.Errorf("a push of a tag that must be new, and was set elsewhere: %v", err)
	}
	before := fra.mode(pid).Seq
	five, err := n.tagged(ctx, pid, "app", "five", "moved", "gone")
	must(n.t, err)
	for _, name := range []string{"moved", "gone"} {
		info, err := n.store.Catalog().Tag(pid, "app", name)
		if after := fra.mode(pid).Seq; err != nil || info.Digest != five || info.Dot != (catalog.Dot{Seq: after}) || after <= before {
			n.t.Errorf("the push of %s as %s by command %d, after %d, is read as %s by %+v, %v", name, five, after, before, info.Digest, info.Dot, err)
		}
	}
	must(n.t, n.door.DeleteTag(ctx, pid, "app", "new", "user:admin", 1))
	eventually(n.t, "all agree again", func() bool { return n.asDecided(pid) })
	if got := fra.decided(pid); got["moved"].digest != five || got["gone"].digest != five || got["new"].digest != "" {
		n.t.Errorf("the tags say %v", got)
	}
}

// TestStrong_ADiskPutBack: a store is put back to an older copy, and nobody helps it but
// its own control state.
func TestStrong_ADiskPutBack(t *testing.T) {
	for name, p := range map[string]past{
		"of a project that was created so":          {},
		"of a project that was switched":            {switched: true},
		"and most deletions are remembered nowhere": {forgotten: true},
	} {
		t.Run(name, func(t *testing.T) {
			b, pid, old, said := moved(t, p)
			fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
			nyc.putBack(old)
			b.part(fra, nyc)
			b.part(nyc, sgp)
			nyc.open()
			if !nyc.saying(pid, said) {
				t.Fatal("the disk is not as it was")
			}
			nyc.start()
			must(t, nyc.door.CatchUp(t.Context(), pid))
			if got, err := nyc.reads(pid); err != nil || !maps.Equal(got, fra.decided(pid)) {
				t.Errorf("after a strict read the tags say %v, and not %v (%v)", got, fra.decided(pid), err)
			}
			b.neverOlder(pid, b.nodes...)
			b.join(fra, nyc)
			b.join(nyc, sgp)
			nyc.goesOn(pid)
		})
	}
}

// TestStrong_ADiskPutBackWithItsControlState: a site is wholly as it was. It says what
// it said then, and decides nothing by it.
func TestStrong_ADiskPutBackWithItsControlState(t *testing.T) {
	t.Run("the others tell it", func(t *testing.T) {
		b, pid, old, _ := moved(t, past{})
		fra, nyc := b.site("fra"), b.site("nyc")
		nyc.putBack(old)
		nyc.stateBack(old.index)
		nyc.open()
		nyc.start()
		eventually(t, "nyc has what the others have", func() bool { return nyc.saying(pid, fra.decided(pid)) })
		b.neverOlder(pid, b.nodes...)
		nyc.decidesNothing(pid)
		nyc.behind(false)
		nyc.goesOn(pid)
	})
	t.Run("its control state catches up", func(t *testing.T) {
		b, pid, old, said := moved(t, past{})
		fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
		nyc.putBack(old)
		nyc.stateBack(old.index)
		b.part(fra, nyc)
		b.part(nyc, sgp)
		nyc.open()
		nyc.start()
		b.neverOlder(pid, fra, sgp)
		nyc.decidesNothing(pid)
		if got, err := nyc.reads(pid); err != nil || !maps.Equal(got, said) {
			t.Errorf("the tags say %v, and said %v (%v)", got, said, err)
		}
		// Who has seen the older tag there deletes it when there is a majority again.
		door := nyc.doorWith(before{control{nyc}, func(proto.Message) { nyc.behind(false) }}, nil)
		err := door.DeleteTag(t.Context(), pid, "app", "moved", "user:admin", 1)
		if now := fra.decided(pid)["moved"].digest; !refusedWith(err, command.CodeConflict) || !strings.Contains(err.Error(), "set meanwhile, to "+now.String()) {
			t.Errorf("a deletion of what was overwritten elsewhere: %v", err)
		}
		must(t, nyc.door.CatchUp(t.Context(), pid))
		if got, err := nyc.reads(pid); err != nil || !maps.Equal(got, fra.decided(pid)) {
			t.Errorf("after a strict read the tags say %v, and not %v (%v)", got, fra.decided(pid), err)
		}
		b.neverOlder(pid, nyc)
		b.join(fra, nyc)
		b.join(nyc, sgp)
		nyc.goesOn(pid)
	})
}
