package transfer_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
)

// TestHold_Deletions: a deletion that is answered at a site which is removed a moment
// later would be undone by that, so none is taken.
func TestHold_Deletions(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	d, err := nyc.tagged(t.Context(), pid, "app", "one", "1", "2")
	must(t, err)
	eventually(t, "the tags at fra", func() bool { return equal(pid, fra, nyc) })
	deletions := func(n *site) map[string]func() error {
		index := n.state.View().Index()
		return map[string]func() error{
			"a tag":        func() error { return n.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", index) },
			"a manifest":   func() error { return n.door.DeleteManifest(t.Context(), pid, "app", d, "user:admin", index) },
			"a repository": func() error { return n.door.DeleteRepository(t.Context(), pid, "app", "user:admin", index) },
		}
	}
	index := b.announce("nyc")
	_, err = fra.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "nyc", For: time.Minute, Announced: index})
	must(t, err)
	for what, remove := range deletions(nyc) {
		if err := remove(); !later(err) || !strings.Contains(err.Error(), "site nyc is about to be removed and takes no deletions at the moment") {
			t.Errorf("%s at the leaving site: %v", what, err)
		}
	}
	for _, n := range []*site{fra, nyc} {
		if n.tag(pid, "app", "1") != d || n.tag(pid, "app", "2") != d {
			t.Errorf("a tag is gone at %s", n.name)
		}
	}
	must(t, deletions(fra)["a tag"]())
	b.propose(&command.SiteLeave{Id: b.row("nyc").ID, Withdraw: true, Announced: index})
	for _, what := range []string{"a manifest", "a repository"} {
		if err := deletions(nyc)[what](); err != nil && !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("%s once the removal was called off: %v", what, err)
		}
	}
	eventually(t, "all is gone", func() bool { return fra.tag(pid, "app", "2") == "" && equal(pid, fra, nyc) })
}

// meanwhile does something while an edit is under way.
type meanwhile struct {
	control
	do func()
}

func (m meanwhile) Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error) {
	m.do()
	return m.control.Propose(ctx, actor, body)
}

// TestHold_DeletionUnderWay is waited for as a push is.
func TestHold_DeletionUnderWay(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	_, err := nyc.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	eventually(t, "the tag at fra", func() bool { return equal(pid, fra, nyc) })
	index := b.announce("nyc")
	ask := func() error {
		_, err := fra.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "nyc", For: time.Minute, Announced: index})
		return err
	}
	asked := false
	door := nyc.doorWith(meanwhile{control{nyc}, func() {
		asked = true
		var busy *transfer.PushingError
		if err := ask(); !errors.As(err, &busy) || busy.UnderWay != 1 {
			t.Errorf("a deletion is under way: %v", err)
		}
	}}, nil)
	must(t, door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", nyc.state.View().Index()))
	if !asked {
		t.Fatal("nobody was asked")
	}
	must(t, ask())
}

// TestLastCopies_NothingOnlyTheLeavingSiteKnows: asked at the leaving site itself, what
// was written there has to be at another one: after the removal nobody gets it.
func TestLastCopies_NothingOnlyTheLeavingSiteKnows(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	_, err := nyc.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	eventually(t, "the tag is everywhere", func() bool { return equal(pid, fra, nyc, sgp) })
	b.part(fra, nyc)
	b.part(sgp, nyc)
	must(t, nyc.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", nyc.state.View().Index()))
	index := b.announce("nyc")
	ask := func() error {
		_, err := nyc.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "nyc", For: time.Minute, Announced: index})
		return err
	}
	var unshared *transfer.UnsharedError
	if err := ask(); !errors.As(err, &unshared) || unshared.Site != "nyc" || unshared.Project != "prod" {
		t.Fatalf("a deletion that no other site has: %v", err)
	}
	b.join(sgp, nyc) // one is enough
	eventually(t, "sgp has it", func() bool { return ask() == nil })
	if sgp.tag(pid, "app", "1") != "" {
		t.Error("sgp has the tag still")
	}
}
