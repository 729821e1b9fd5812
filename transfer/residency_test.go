package transfer_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/swarm"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

func (b *bed) sites(pid identity.ProjectID, force bool, names ...string) {
	b.t.Helper()
	p, ok := b.nodes[0].state.View().ProjectByPID(pid)
	if !ok {
		b.t.Fatal("no such project")
	}
	b.propose(&command.ProjectSites{Id: p.ID, Sites: names, Force: force})
}

// later proposes at a later time of the mesh.
func (b *bed) later(by time.Duration, body proto.Message) {
	b.t.Helper()
	b.raft.Lock()
	defer b.raft.Unlock()
	env, err := command.New("user:admin", time.Now().Add(by), body)
	must(b.t, err)
	b.log = append(b.log, env)
	for _, n := range b.nodes {
		n.apply(env)
	}
}

// is: the state at a site says so of another.
func (n *site) is(pid identity.ProjectID, site string) state.Residence {
	p, _ := n.state.View().ProjectByPID(pid)
	return p.Residence(site)
}

// has: anything of the project, or of the image, is at the site.
func (n *site) has(pid identity.ProjectID, img image) bool {
	n.t.Helper()
	all, err := n.store.Catalog().Projects()
	must(n.t, err)
	return slices.Contains(all, pid) || slices.ContainsFunc(append(slices.Clone(img.blobs), img.digest), func(d digest.Digest) bool { return n.class(d) != 0 })
}

func (n *site) steady(t *testing.T, pid identity.ProjectID, as state.Residence) {
	t.Helper()
	eventually(t, n.name+" is "+as.String(), func() bool { return n.is(pid, n.name) == as })
}

func TestResidency_ASiteLeavesAndComesBack(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	img := sgp.push(pid, "app", "1.0") // no rule: sgp alone has its blobs
	other := b.project("other")
	kept := sgp.push(other, "app", "1.0")
	b.sites(pid, false, "fra", "nyc")
	sgp.steady(t, pid, state.Out)
	eventually(t, "sgp has let go", func() bool { return !sgp.has(pid, img) })
	if !fra.holds(img) && !nyc.holds(img) {
		t.Fatal("nobody holds the image any more")
	}
	if !sgp.holds(kept) {
		t.Error("sgp let go of another project's image")
	}
	if left, err := sgp.store.Catalog().LetGos("", 1000); err != nil || len(left) == 0 {
		t.Errorf("blobs that a transfer may still bring are not looked out for: %d %v", len(left), err)
	}
	late := fra.push(pid, "app", "2.0")

	b.sites(pid, false)
	sgp.steady(t, pid, state.Resident)
	if sgp.tag(pid, "app", "1.0") != img.digest || sgp.tag(pid, "app", "2.0") != late.digest {
		t.Error("sgp is a member and has not all tags")
	}
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
	// The new incarnation, not the old numbers.
	back := sgp.push(pid, "app", "3.0")
	eventually(t, "its push at fra", func() bool { return fra.tag(pid, "app", "3.0") == back.digest })
}

func TestResidency_LeavingWaits(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	first := sgp.push(pid, "app", "0")
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
	b.part(sgp, fra)
	b.part(sgp, nyc)
	img := sgp.push(pid, "app", "1.0")
	b.sites(pid, false, "fra", "nyc")
	eventually(t, "sgp says what it waits for", func() bool { return strings.Contains(sgp.home.Reason(pid), "does not answer") })
	if sgp.is(pid, "sgp") != state.Leaving || !sgp.has(pid, img) {
		t.Fatal("sgp left although nobody has its push")
	}
	// No pushes and deletes any more, from anybody who began before.
	var no *command.Error
	err := sgp.door.Put(context.Background(), catalog.Put{PID: pid, Repo: "app", Digest: img.digest, Size: int64(len(img.body)), Bytes: img.body, Tags: []string{"late"},
		MediaType: "application/vnd.oci.image.manifest.v1+json", Home: "sgp"}, tags.Condition{})
	if !errors.As(err, &no) || no.Code != command.CodeDenied || !strings.Contains(no.Message, "fra, nyc") {
		t.Errorf("a push at a leaving site: %v", err)
	}
	if err := sgp.door.DeleteTag(context.Background(), pid, "app", "1.0", "user:admin", 0); !errors.As(err, &no) {
		t.Errorf("a delete at a leaving site: %v", err)
	}
	sgp.restart()
	b.join(sgp, nyc)
	b.join(sgp, fra) // either may be the one that takes its copies over
	sgp.steady(t, pid, state.Out)
	eventually(t, "sgp has let go", func() bool { return !sgp.has(pid, img) && !sgp.has(pid, first) })
	eventually(t, "fra has the tag", func() bool { return fra.tag(pid, "app", "1.0") == img.digest })
	if !fra.holds(img) && !nyc.holds(img) {
		t.Error("nobody holds the image any more")
	}
}

// A site whose control state is an old one lets go of nothing by it.
func TestResidency_AnOldStateLetsGoOfNothing(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, sgp := b.site("fra"), b.site("sgp")
	pid := b.project("prod")
	img := sgp.push(pid, "app", "1.0")
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, sgp) })
	sgp.behind(true)
	b.sites(pid, true, "fra", "nyc")
	b.sites(pid, false)
	// The state of in between, and no majority in reach.
	b.raft.Lock()
	sgp.apply(b.log[len(b.log)-2])
	b.raft.Unlock()
	if sgp.is(pid, "sgp") != state.Out {
		t.Fatal("the old state does not say that it is out")
	}
	eventually(t, "sgp waits for the mesh", func() bool { return sgp.home.Reason(pid) != "" })
	if !sgp.has(pid, img) || sgp.tag(pid, "app", "1.0") != img.digest {
		t.Fatal("it let go of a project that it may hold")
	}
	sgp.behind(false)
	sgp.steady(t, pid, state.Resident)
	if !sgp.holds(img) {
		t.Error("it has lost the image")
	}
}

func TestResidency_ByForce(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	img := sgp.push(pid, "app", "1.0")
	eventually(t, "fra knows it", func() bool { return fra.tag(pid, "app", "1.0") == img.digest })
	a, err := fra.rec.LastCopies(t.Context(), transfer.LeaveQuestion{Site: "sgp", Project: "prod", For: within})
	if err != nil || len(a.Copies) != 1 || a.Copies[0].Repository != "prod/app" {
		t.Fatalf("what is lost: %+v, %v", a, err)
	}
	if _, wait := sgp.rec.BeginPush(); wait > 0 {
		t.Error("asking for the losses of a project holds all pushes")
	}
	b.part(sgp, fra) // nobody can fetch it first
	b.part(sgp, nyc)
	b.sites(pid, true, "fra", "nyc")
	eventually(t, "sgp has let go", func() bool { return !sgp.has(pid, img) })
	eventually(t, "it said so", func() bool {
		p, _ := fra.state.View().ProjectByPID(pid)
		return len(p.Expelled) == 0
	})
}

// Everything rests at a site and is then named at another alone: that one takes
// it in before the first lets go.
func TestResidency_Moves(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod", "fra")
	img := fra.push(pid, "app", "1.0")
	b.sites(pid, false, "sgp")
	fra.steady(t, pid, state.Out)
	sgp.steady(t, pid, state.Resident)
	eventually(t, "fra has let go", func() bool { return !fra.has(pid, img) })
	if !sgp.holds(img) || sgp.tag(pid, "app", "1.0") != img.digest {
		t.Error("sgp has not got it")
	}
	if nyc.has(pid, img) {
		t.Error("nyc has something of it")
	}
}

// What may not rest at a site neither rests there nor passes through it, by
// whatever way it is asked for.
func TestResidency_NothingPasses(t *testing.T) {
	// Hints are lost while two are parted: the next poll finds what they said.
	b := newBed(t, []string{"fra", "nyc", "sgp"}, func(b *bed) { b.poll = 200 * time.Millisecond })
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid, open := b.project("eu", "fra", "nyc"), b.project("open")
	b.rule(&command.Rule{Name: "all", Projects: []string{"**"}, AllSites: true})
	b.part(fra, nyc) // the only way between them would be by sgp
	img := fra.push(pid, "app", "1.0")
	mark := fra.push(open, "app", "1.0")
	eventually(t, "the open project's image at sgp and, through it, at nyc", func() bool { return sgp.holds(mark) && nyc.holds(mark) })
	if nyc.tag(pid, "app", "1.0") != "" {
		t.Error("entries passed through sgp")
	}
	ctx := t.Context()
	for _, d := range append(slices.Clone(img.blobs), img.digest) {
		for name, as := range map[string]identity.ProjectID{"on behalf of it": pid, "on behalf of another": open} {
			if r, err := sgp.swarm.OpenBlob(ctx, swarm.Want{Digest: d, PID: as, Class: catalog.Cached}); err == nil {
				_ = r.Close()
				t.Errorf("sgp reads %s through, %s", d, name)
			}
			if err := sgp.swarm.Fetch(ctx, swarm.Want{Digest: d, PID: as, Class: catalog.Placed}); err == nil {
				t.Errorf("sgp fetches %s, %s", d, name)
			}
			c, err := sgp.rec.Claim(ctx, as, "app", []transfer.Descriptor{{Digest: d, Size: 1}})
			if err == nil && len(c.Claimed) > 0 {
				t.Errorf("sgp claims %s, %s", d, name)
			}
		}
		if k, err := fra.sync.Keep(ctx, sgp.id.ID, pid, "app", []syncer.Piece{{Digest: d, Size: 1}}); err == nil && slices.Contains(k.Kept, true) {
			t.Errorf("sgp keeps %s for durability", d)
		}
		if fra.sync.Access(ctx, sgp.id.ID, d, pid) || fra.sync.Access(ctx, sgp.id.ID, d, open) {
			t.Errorf("fra gives sgp %s", d)
		}
	}
	if sgp.has(pid, img) {
		t.Error("sgp has something of it")
	}
	b.join(fra, nyc)
	eventually(t, "the image at nyc, over the link of its own", func() bool { return nyc.holds(img) })
	if sgp.has(pid, img) {
		t.Error("sgp has something of it")
	}
}

// A deleted project's content stays for its time; then it goes everywhere.
func TestResidency_ADeletedProjectGoes(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	b.rule(&command.Rule{Name: "all", Projects: []string{"**"}, AllSites: true})
	img := fra.push(pid, "app", "1.0")
	eventually(t, "the image at nyc", func() bool { return nyc.holds(img) })
	p, _ := fra.state.View().Project("prod")
	b.propose(&command.ProjectDelete{Id: p.ID})
	b.propose(&command.ProjectRestore{Id: p.ID})
	if !fra.holds(img) || !nyc.holds(img) || nyc.tag(pid, "app", "1.0") != img.digest {
		t.Fatal("a restored project lost something")
	}
	b.propose(&command.ProjectDelete{Id: p.ID})
	// A clock that is ahead lets nothing go: the mesh's own time counts.
	nyc.ahead.Store(int64(state.DeletedKeptFor + time.Hour))
	b.rule(&command.Rule{Name: "wake", Projects: []string{"x"}, AllSites: true})
	eventually(t, "nyc asks", func() bool {
		b.raft.Lock()
		defer b.raft.Unlock()
		return slices.ContainsFunc(b.log, func(e *command.Envelope) bool { return e.GetType() == command.Type_TYPE_PROJECT_PURGE })
	})
	if p, ok := nyc.state.View().ProjectByPID(pid); !ok || p.Purged() || !nyc.holds(img) {
		t.Fatal("a clock that is ahead let a project go")
	}
	// The mesh's time goes on.
	b.later(state.DeletedKeptFor, &command.ProjectPurge{Id: p.ID})
	for _, n := range b.nodes {
		eventually(t, n.name+" has let go", func() bool { return !n.has(pid, img) })
	}
	again := b.project("prod")
	if again == pid {
		t.Fatal("an identity was given twice")
	}
}
