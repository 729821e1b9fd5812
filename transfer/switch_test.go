package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

// TestSwitch_DuringPushes: while all sites push and delete, each its own tags and
// one that they share, the project goes to strong tags and back, twice. Nothing
// that was answered is lost, and nothing that was deleted comes back.
func TestSwitch_DuringPushes(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	pid := b.project("prod")
	p, _ := b.site("fra").state.View().ProjectByPID(pid)

	ctx, cancel := context.WithCancel(t.Context())
	type answered struct{ tags map[string]digest.Digest } // "": deleted
	got := make([]answered, len(b.nodes))
	pushes := make([]int, len(b.nodes))
	var wg sync.WaitGroup
	for i, n := range b.nodes {
		got[i].tags = map[string]digest.Digest{}
		wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				tag := fmt.Sprintf("%s-%d", n.name, k%7)
				if k%5 == 4 {
					switch err := n.door.DeleteTag(context.Background(), pid, "app", tag, "user:admin", n.state.View().Index()); {
					case err == nil:
						got[i].tags[tag] = ""
					case errors.Is(err, catalog.ErrNotFound), later(err):
					default:
						t.Errorf("%s deletes %s: %v", n.name, tag, err)
					}
					continue
				}
				d, err := n.tagged(context.Background(), pid, "app", fmt.Sprint(n.name, k), tag)
				switch {
				case err == nil:
					got[i].tags[tag] = d
					pushes[i]++
				case later(err):
				default:
					t.Errorf("%s pushes %s: %v", n.name, tag, err)
				}
				// The shared tag: who loses hears of it, and that is all.
				if _, err := n.tagged(context.Background(), pid, "app", fmt.Sprint("shared", n.name, k), "latest"); err != nil && !later(err) && !refusedWith(err, command.CodeConflict) {
					t.Errorf("%s pushes latest: %v", n.name, err)
				}
			}
		})
	}
	for _, to := range []state.TagMode{state.StrongTags, state.EventualTags, state.StrongTags, state.EventualTags} {
		b.switchTo(p.ID, command.TagMode(to), false)
		eventually(t, "the switch to "+to.String()+" is done", switched(pid, to, b.nodes...))
		begun := time.Now()
		eventually(t, "pushes in the mode "+to.String(), func() bool {
			for _, n := range b.nodes {
				if !slices.ContainsFunc([]string{"0", "1", "2", "3", "4", "5", "6"}, func(k string) bool {
					info, err := n.store.Catalog().Tag(pid, "app", n.name+"-"+k)
					return err == nil && (to == state.StrongTags) == (info.Dot.Inc == 0) && (to == state.StrongTags || info.At.After(begun))
				}) {
					return false
				}
			}
			return true
		})
	}
	cancel()
	wg.Wait()
	eventually(t, "the catalogues agree", func() bool { return equal(pid, b.nodes...) })
	for i, n := range b.nodes {
		if pushes[i] == 0 {
			t.Errorf("%s pushed nothing", n.name)
		}
		for tag, want := range got[i].tags {
			for _, o := range b.nodes {
				if d := o.tag(pid, "app", tag); d != want {
					t.Errorf("%s: the tag %s says %q, and the last answer was %q", o.name, tag, d, want)
				}
			}
		}
	}
}

// later: the answer was to try again later.
func later(err error) bool {
	var u *command.Unavailable
	return errors.As(err, &u)
}

func TestSwitch_WaitsForASite_ForcedMakesItLate(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	one, err := sgp.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	eventually(t, "the tag is everywhere", func() bool { return fra.tag(pid, "app", "1") == one && nyc.tag(pid, "app", "1") == one })

	sgp.behind(true)
	b.part(fra, sgp)
	b.part(nyc, sgp)
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, false)
	eventually(t, "sgp is waited for", func() bool {
		w := fra.door.AskWaiting(t.Context(), pid)
		return len(w) == 1 && w[0].Site == "sgp"
	})
	if _, err := fra.tagged(t.Context(), pid, "app", "two", "1"); !later(err) {
		t.Fatalf("a push while the tags switch: %v", err)
	}
	// It does not know, and goes on as before.
	late, err := sgp.tagged(t.Context(), pid, "app", "late", "1")
	must(t, err)
	late2, err := sgp.tagged(t.Context(), pid, "app", "late", "2")
	must(t, err)

	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, true)
	eventually(t, "the switch is done without it", switched(pid, state.StrongTags, fra, nyc))
	if got := fra.mode(pid).Late; !slices.Equal(got, []string{"sgp"}) {
		t.Errorf("late: %v", got)
	}
	two, err := nyc.tagged(t.Context(), pid, "app", "two", "3")
	must(t, err)

	b.join(fra, sgp)
	b.join(nyc, sgp)
	sgp.behind(false)
	eventually(t, "what was late lost, and is kept", func() bool {
		for _, n := range b.nodes {
			if n.tag(pid, "app", "1") != one || n.tag(pid, "app", "2") != "" || n.tag(pid, "app", "3") != two {
				return false
			}
			if _, err := n.store.Catalog().Manifest(pid, "app", late); err != nil {
				return false
			}
		}
		return equal(pid, b.nodes...)
	})
	if late != late2 {
		t.Fatalf("%s and %s", late, late2)
	}
}

func TestSwitch_CalledOff(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, id := b.strong("prod")
	one, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	nyc.behind(true)
	b.switchTo(id, command.TagMode_TAG_MODE_EVENTUAL, false)
	eventually(t, "nyc is waited for", func() bool { return len(fra.door.AskWaiting(t.Context(), pid)) == 1 })
	if err := fra.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1); !later(err) {
		t.Fatalf("a deletion while the tags switch: %v", err)
	}
	b.switchTo(id, command.TagMode_TAG_MODE_STRONG, false)
	two, err := fra.tagged(t.Context(), pid, "app", "two", "2")
	must(t, err)
	nyc.behind(false)
	eventually(t, "all go on as before", func() bool {
		return switched(pid, state.StrongTags, fra, nyc)() && nyc.tag(pid, "app", "1") == one && nyc.tag(pid, "app", "2") == two && equal(pid, fra, nyc)
	})
}

func TestSwitch_GoesOnWhenASiteIsRemoved(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	one, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	sgp.stop()
	b.mu.Lock()
	b.nodes = b.nodes[:2]
	b.mu.Unlock()
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, false)
	eventually(t, "sgp is waited for", func() bool { return len(fra.door.AskWaiting(t.Context(), pid)) == 1 })
	b.propose(&command.NodeRemove{NodeId: sgp.id.ID[:], Lost: true})
	eventually(t, "the switch ends without it", switched(pid, state.StrongTags, fra, nyc))
	if late := fra.mode(pid).Late; len(late) != 0 {
		t.Errorf("late: %v", late)
	}
	two, err := nyc.tagged(t.Context(), pid, "app", "two", "2")
	must(t, err)
	eventually(t, "both agree", func() bool {
		return fra.tag(pid, "app", "1") == one && fra.tag(pid, "app", "2") == two && equal(pid, fra, nyc)
	})
}

// TestSwitch_TheCoordinatorDies: it has imported a part, while a site is waited for.
func TestSwitch_TheCoordinatorDies(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	for i := range 5 {
		_, err := nyc.tagged(t.Context(), pid, "app", fmt.Sprint(i), fmt.Sprint(i))
		must(t, err)
	}
	b.part(fra, sgp)
	b.part(nyc, sgp) // nobody has all answers: the switch goes on until they are joined
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, false)
	gone := make([]byte, 32)
	gone[0] = 1
	b.propose(&command.TagsMode{Id: p.ID, Step: command.TagsMode_STEP_IMPORT, Index: fra.mode(pid).Index, NodeId: gone, First: true,
		Tags: []*command.ImportedTag{{Repository: "app", Name: "none", Digest: digest.FromString("none").String()}}})
	if m := fra.mode(pid); !m.Switching() || m.Staged != 1 {
		t.Fatalf("a part was not imported while the switch was under way: %+v", m)
	}
	b.join(fra, sgp)
	b.join(nyc, sgp)
	eventually(t, "another one ends it", switched(pid, state.StrongTags, b.nodes...))
	eventually(t, "with what the sites have", func() bool {
		return sgp.tag(pid, "app", "4") != "" && sgp.tag(pid, "app", "none") == "" && equal(pid, b.nodes...)
	})
	if n := fra.state.View().StrongTags(); n != 5 {
		t.Errorf("%d strong tags", n)
	}
}

// TestSwitch_ASiteThatLacksStrongWrites takes no eventual ones: they would be
// concurrent with what it has not seen.
func TestSwitch_ASiteThatLacksStrongWrites(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"}, noHints)
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, id := b.strong("prod")
	b.part(fra, nyc)
	nyc.behind(true)
	nyc.stop() // or it might write down what it gets to know on the way
	one, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	one.Tags = []string{"1"}
	must(t, fra.doorWith(control{fra}, alone{}).Put(t.Context(), one, tags.Condition{}))
	b.switchTo(id, command.TagMode_TAG_MODE_EVENTUAL, true)
	eventually(t, "fra goes on alone", switched(pid, state.EventualTags, fra))
	nyc.behind(false)
	nyc.open()
	nyc.start() // it has the state now, and nothing of the tag
	if _, err := nyc.tagged(t.Context(), pid, "app", "two", "1"); !later(err) {
		t.Fatalf("an eventual push that has not seen what was strong: %v", err)
	}
	b.join(fra, nyc)
	eventually(t, "nyc has it", func() bool { return nyc.tag(pid, "app", "1") == one.Digest })
	var two digest.Digest
	eventually(t, "nyc takes pushes", func() bool { two, err = nyc.tagged(t.Context(), pid, "app", "two", "1"); return err == nil })
	eventually(t, "both agree", func() bool { return fra.tag(pid, "app", "1") == two && equal(pid, fra, nyc) })
}

// alone holds every push at this site.
type alone struct{}

func (alone) Hold(context.Context, state.Project, string, []syncer.Piece, int) (tags.Held, error) {
	return alone{}, nil
}
func (alone) Covered(context.Context, catalog.Dot) error { return nil }

// TestSwitch_WaitsForWritesUnderWay: a write that passed the gate before the switch is
// waited for, and is in what the switch imports.
func TestSwitch_WaitsForWritesUnderWay(t *testing.T) {
	const pushes = 8
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	p, _ := fra.state.View().ProjectByPID(pid)
	inside, goOn := make(chan struct{}, pushes), make(chan struct{})
	hold := func() {
		inside <- struct{}{}
		<-goOn
	}
	fra.inGate.Store(&hold)
	release := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release) // before the sites stop
	var (
		wg  sync.WaitGroup
		got [pushes]digest.Digest
	)
	for i := range pushes {
		wg.Go(func() {
			var err error
			if got[i], err = fra.tagged(context.Background(), pid, "app", fmt.Sprint(i), fmt.Sprint(i)); err != nil {
				t.Errorf("a push that passed the gate before the switch: %v", err)
			}
		})
	}
	for range pushes {
		<-inside
	}
	fra.inGate.Store(nil)
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, false)
	// It would be ready within milliseconds if it did not wait for them.
	ask, cancel := context.WithTimeout(t.Context(), time.Second)
	waits := nyc.door.AskWaiting(ask, pid)
	cancel()
	if !slices.ContainsFunc(waits, func(w tags.Wait) bool { return w.Site == "fra" }) || !fra.mode(pid).Switching() {
		t.Errorf("fra has writes under way, and the switch waits for %v; %+v", waits, fra.mode(pid))
	}
	if _, err := fra.tagged(t.Context(), pid, "app", "late", "late"); !later(err) {
		t.Errorf("a push after the switch began: %v", err)
	}
	release()
	wg.Wait()
	eventually(t, "the switch is done", switched(pid, state.StrongTags, fra, nyc))
	for i, d := range got {
		row, ok := fra.state.View().StrongTag(pid, "app", fmt.Sprint(i))
		if !ok || row.Digest != d.String() {
			t.Errorf("the answered tag %d is not in the state: %+v", i, row)
		}
	}
}

func TestSwitch_MoreTagsThanFit(t *testing.T) {
	if testing.Short() {
		t.Skip("100,000 tags take some seconds")
	}
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod", "fra")
	p, _ := fra.state.View().ProjectByPID(pid)
	one, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	strong, _ := b.strong("strong", "fra")
	full, _ := b.strong("full", "nyc") // which is away: nobody writes them down
	nyc.stop()
	b.mu.Lock()
	b.nodes = b.nodes[:1]
	b.mu.Unlock()
	for n := 0; n < state.MaxStrongTags; {
		set := &command.TagsSet{ProjectId: full[:], Repository: "app", Digest: one.String(), Since: fra.state.View().Index()}
		for ; len(set.GetTags()) < 64 && n < state.MaxStrongTags; n++ {
			set.Tags = append(set.Tags, &command.TagSaid{Name: fmt.Sprint(n)})
		}
		b.propose(set)
	}
	if _, err := fra.tagged(t.Context(), strong, "app", "one", "one-more"); !refusedWith(err, command.CodeDenied) {
		t.Fatalf("one tag more than the most: %v", err)
	}
	b.switchTo(p.ID, command.TagMode_TAG_MODE_STRONG, false)
	eventually(t, "the switch is called off", func() bool { return fra.mode(pid).Note != "" && !fra.mode(pid).Switching() })
	if fra.mode(pid).Mode != state.EventualTags || fra.tag(pid, "app", "1") != one {
		t.Errorf("%+v, %s", fra.mode(pid), fra.tag(pid, "app", "1"))
	}
	_, err = fra.tagged(t.Context(), pid, "app", "two", "1")
	must(t, err)
}
