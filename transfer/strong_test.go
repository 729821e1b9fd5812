package transfer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	syncer "github.com/portolan/portolan/transfer/sync"
	"github.com/portolan/portolan/transfer/tags"
)

// control is the control plane as a site sees it: the bed's list of commands. A
// site that lags has no majority.
type control struct{ n *site }

// Propose implements tags.Control.
func (c control) Propose(_ context.Context, actor string, body proto.Message) (command.Result, error) {
	b := c.n.bed
	b.raft.Lock()
	defer b.raft.Unlock()
	if c.n.lag {
		return command.Result{}, &command.Unavailable{Reason: "the majority of the voting sites cannot be reached from here", Sites: []string{"fra", "nyc"}, RetryAfter: time.Second}
	}
	env, err := command.New(actor, time.Now(), body)
	if err != nil {
		return command.Result{}, err
	}
	b.log = append(b.log, env)
	var res command.Result
	for _, n := range b.nodes {
		if n.lag {
			continue
		}
		n.index++
		r, e := n.state.Apply(n.index, env)
		if n == c.n {
			res, err = r, e
		}
	}
	return res, err
}

// CatchUp implements tags.Control.
func (c control) CatchUp(context.Context) (uint64, error) {
	c.n.raft.Lock()
	defer c.n.raft.Unlock()
	if c.n.lag {
		return 0, &command.Unavailable{Reason: "the majority of the voting sites cannot be reached from here", Sites: []string{"fra", "nyc"}, RetryAfter: time.Second, Read: true}
	}
	return c.n.state.View().Index(), nil
}

// behind makes a site's control state stand still, or go on.
func (n *site) behind(lag bool) {
	n.raft.Lock()
	defer n.raft.Unlock()
	if lag {
		n.lag = true
		return
	}
	n.lag = false
	for _, env := range n.log[n.index:] {
		n.index++
		_, _ = n.state.Apply(n.index, env) // refused where it was refused before
	}
}

// tagged pushes a small image by tag through the door.
func (n *site) tagged(ctx context.Context, pid identity.ProjectID, repo, text string, names ...string) (digest.Digest, error) {
	put, err := n.manifest(ctx, pid, repo, text)
	if err != nil {
		return "", err
	}
	put.Tags = names
	return put.Digest, n.door.Put(ctx, put, tags.Condition{})
}

// manifest puts an image's blobs and gives the manifest to be put.
func (n *site) manifest(ctx context.Context, pid identity.ProjectID, repo, text string) (catalog.Put, error) {
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest}
	m.SchemaVersion = 2
	var refs []catalog.Ref
	for i, b := range []string{"{}", "layer " + text + strings.Repeat("x", 40<<10)} {
		d, err := n.store.PutBytes(ctx, []byte(b), store.Link{PID: pid, Repo: repo})
		if err != nil {
			return catalog.Put{}, err
		}
		refs = append(refs, catalog.Ref{Digest: d.Digest, Size: d.Size, Kind: catalog.RefBlob})
		desc := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d.Digest, Size: d.Size}
		if i == 0 {
			m.Config = desc
		} else {
			m.Layers = append(m.Layers, desc)
		}
	}
	raw, err := json.Marshal(m)
	return catalog.Put{PID: pid, Repo: repo, Digest: digest.FromBytes(raw), MediaType: m.MediaType, Size: int64(len(raw)), Bytes: raw, Refs: refs,
		Home: n.name, Actor: "user:" + n.name, ACLIndex: n.state.View().Index()}, err
}

func (b *bed) strong(name string, sites ...string) (identity.ProjectID, int64) {
	b.t.Helper()
	pid := identity.NewProjectID()
	return pid, b.propose(&command.ProjectCreate{ProjectId: pid[:], Name: name, Sites: sites, Tags: command.TagMode_TAG_MODE_STRONG})
}

func (b *bed) switchTo(id int64, to command.TagMode, force bool) {
	b.t.Helper()
	b.propose(&command.TagsMode{Id: id, Step: command.TagsMode_STEP_BEGIN, To: to, Force: force})
}

func (n *site) mode(pid identity.ProjectID) state.TagState {
	p, _ := n.state.View().ProjectByPID(pid)
	return p.Tags
}

func switched(pid identity.ProjectID, mode state.TagMode, sites ...*site) func() bool {
	return func() bool {
		return !slices.ContainsFunc(sites, func(n *site) bool { return n.mode(pid).Switching() || n.mode(pid).Mode != mode })
	}
}

func refusedWith(err error, code command.Code) bool {
	return errors.Is(err, &command.Error{Code: code})
}

func TestStrong_PushIsReadHereAtOnce_AndEverywhere(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid, _ := b.strong("prod")
	for i, n := range b.nodes {
		d, err := n.tagged(t.Context(), pid, "app", fmt.Sprint(i), "latest", fmt.Sprint(i))
		must(t, err)
		if got := n.tag(pid, "app", "latest"); got != d {
			t.Errorf("%s reads %s after its own write of %s", n.name, got, d)
		}
		for _, o := range b.nodes {
			must(t, o.door.CatchUp(t.Context(), pid))
			if got := o.tag(pid, "app", "latest"); got != d {
				t.Errorf("a strict read at %s gives %s, not %s", o.name, got, d)
			}
		}
	}
	eventually(t, "the catalogues agree", func() bool { return equal(pid, fra, nyc, sgp) })
	must(t, nyc.door.DeleteTag(t.Context(), pid, "app", "0", "user:admin", 1))
	if err := nyc.door.DeleteTag(t.Context(), pid, "app", "0", "user:admin", 1); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	eventually(t, "the deletion is everywhere", func() bool {
		return fra.tag(pid, "app", "0") == "" && sgp.tag(pid, "app", "0") == "" && equal(pid, fra, nyc, sgp)
	})
	if err := sgp.door.CatchUp(t.Context(), b.project("plain")); !errors.Is(err, tags.ErrNoStrictRead) {
		t.Errorf("a strict read of eventual tags: %v", err)
	}
}

func TestStrong_OneOfTwoWritersLoses(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	pid, _ := b.strong("prod")
	first, err := b.site("fra").tagged(t.Context(), pid, "app", "first", "latest")
	must(t, err)
	eventually(t, "all know the first", func() bool {
		return !slices.ContainsFunc(b.nodes, func(n *site) bool { return n.tag(pid, "app", "latest") != first })
	})
	// Each reads what the tag says before any of them writes: the manifest is put
	// first, and the hook holds all until all have.
	for round := range 5 {
		var ready, wg sync.WaitGroup
		ready.Add(len(b.nodes))
		var won atomic.Pointer[digest.Digest]
		var wins, losses atomic.Int32
		for _, n := range b.nodes {
			wg.Go(func() {
				put, err := n.manifest(t.Context(), pid, "app", fmt.Sprint(round, n.name))
				if err != nil {
					t.Error(err)
				}
				put.Tags = []string{"latest"}
				d := n.doorWith(hold{control{n}, &ready}, nil)
				switch err := d.Put(t.Context(), put, tags.Condition{}); {
				case err == nil:
					wins.Add(1)
					won.Store(&put.Digest)
				case refusedWith(err, command.CodeConflict):
					losses.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if wins.Load() != 1 || losses.Load() != 2 {
			t.Fatalf("%d won, %d lost", wins.Load(), losses.Load())
		}
		for _, n := range b.nodes {
			must(t, n.door.CatchUp(t.Context(), pid))
			if got := n.tag(pid, "app", "latest"); got != *won.Load() {
				t.Errorf("%s has %s, not the winner's %s", n.name, got, *won.Load())
			}
		}
	}
}

// hold lets nobody propose before all want to.
type hold struct {
	control
	ready *sync.WaitGroup
}

func (h hold) Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error) {
	h.ready.Done()
	h.ready.Wait()
	return h.control.Propose(ctx, actor, body)
}

// doorWith gives a door beside the site's own, which sees the same but has its
// own control plane or copies. It runs until the test ends.
func (n *site) doorWith(c tags.Control, copies tags.Copies) *tags.Door {
	n.t.Helper()
	if copies == nil {
		copies = n.rec
	}
	d, err := tags.New(tags.Config{Self: n.id.ID, Site: n.name, State: n.state, Catalog: n.store.Catalog(), Control: c, Sync: deafSync{n}, Copies: copies, Pushed: n.rec.Pushed, Deleting: n.rec.BeginPush, Now: n.now})
	if err != nil {
		n.t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = d.Run(ctx) }()
	n.t.Cleanup(func() { cancel(); <-done })
	return d
}

func TestStrong_ManifestDeletedWhileItIsTagged(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	put, err := fra.manifest(t.Context(), pid, "app", "one")
	must(t, err)
	untagged := put
	must(t, fra.door.Put(t.Context(), untagged, tags.Condition{})) // by digest
	eventually(t, "nyc has it", func() bool { _, err := nyc.store.Catalog().Manifest(pid, "app", put.Digest); return err == nil })

	// nyc deletes it after fra has put it and before fra tags it.
	once := sync.Once{}
	c := before{control{fra}, func(body proto.Message) {
		if _, ok := body.(*command.TagsSet); ok {
			once.Do(func() { must(t, nyc.door.DeleteManifest(t.Context(), pid, "app", put.Digest, "user:admin", 1)) })
		}
	}}
	put.Tags = []string{"1"}
	must(t, fra.doorWith(c, nil).Put(t.Context(), put, tags.Condition{}))
	eventually(t, "tag and manifest are at both", func() bool {
		for _, n := range b.nodes {
			if _, err := n.store.Catalog().Manifest(pid, "app", put.Digest); err != nil || n.tag(pid, "app", "1") != put.Digest {
				return false
			}
		}
		return equal(pid, fra, nyc)
	})
	for _, n := range b.nodes {
		if err := n.door.DeleteManifest(t.Context(), pid, "app", put.Digest, "user:admin", 1); !refusedWith(err, command.CodeConflict) || !strings.Contains(err.Error(), "(1)") {
			t.Errorf("%s deletes a manifest that a tag names: %v", n.name, err)
		}
	}
	must(t, nyc.door.DeleteRepository(t.Context(), pid, "app", "user:admin", 1))
	eventually(t, "the repository is gone", func() bool {
		for _, n := range b.nodes {
			if _, err := n.store.Catalog().Repository(pid, "app"); !errors.Is(err, catalog.ErrNotFound) {
				return false
			}
		}
		return equal(pid, fra, nyc)
	})
}

// before runs something before each command.
type before struct {
	control
	do func(proto.Message)
}

func (c before) Propose(ctx context.Context, actor string, body proto.Message) (command.Result, error) {
	c.do(body)
	return c.control.Propose(ctx, actor, body)
}

func TestStrong_WithoutAMajority(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	one, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	eventually(t, "nyc has it", func() bool { return nyc.tag(pid, "app", "1") == one })
	nyc.behind(true)
	var away *command.Unavailable
	two, err := nyc.tagged(t.Context(), pid, "app", "two", "1")
	if !errors.As(err, &away) || len(away.Sites) == 0 {
		t.Fatalf("a push without a majority: %v", err)
	}
	if err := nyc.door.DeleteTag(t.Context(), pid, "app", "1", "user:admin", 1); !errors.As(err, &away) {
		t.Errorf("a deletion without a majority: %v", err)
	}
	if err := nyc.door.CatchUp(t.Context(), pid); !errors.As(err, &away) {
		t.Errorf("a strict read without a majority: %v", err)
	}
	if got := nyc.tag(pid, "app", "1"); got != one {
		t.Errorf("the tag says %s", got)
	}
	if _, err := nyc.store.Catalog().Manifest(pid, "app", two); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("something of it is visible: %v", err)
	}
	// Meanwhile the majority goes on, and what it decides comes by a page, too.
	three, err := fra.tagged(t.Context(), pid, "app", "three", "3")
	must(t, err)
	eventually(t, "nyc hears of it from fra", func() bool { return nyc.tag(pid, "app", "3") == three })
	nyc.behind(false)
	_, err = nyc.tagged(t.Context(), pid, "app", "two", "1")
	must(t, err)
	eventually(t, "all agree", func() bool { return fra.tag(pid, "app", "1") == two && equal(pid, fra, nyc) })
}

func TestStrong_RestartBetweenCommitAndProjection(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	_, err := fra.tagged(t.Context(), pid, "app", "one", "1", "2")
	must(t, err)
	nyc.stop() // what is decided from here on is in its state, not in its catalogue
	two, err := fra.manifest(t.Context(), pid, "app", "two")
	must(t, err)
	_, err = fra.store.Catalog().PutManifest(t.Context(), two)
	must(t, err)
	b.propose(&command.TagsSet{ProjectId: pid[:], Repository: "app", Digest: two.Digest.String(), Since: fra.state.View().Index(),
		Tags: []*command.TagSaid{{Name: "3"}, {Name: "1", Digest: fra.tag(pid, "app", "1").String()}}})
	b.propose(&command.TagsDelete{ProjectId: pid[:], Repository: "app", Tag: "2"})
	eventually(t, "fra writes it down", func() bool { return fra.tag(pid, "app", "3") == two.Digest && fra.tag(pid, "app", "2") == "" })
	b.part(fra, nyc) // nobody helps it
	nyc.open()
	nyc.start()
	eventually(t, "nyc writes it down", func() bool {
		return nyc.tag(pid, "app", "3") == two.Digest && nyc.tag(pid, "app", "1") == two.Digest && nyc.tag(pid, "app", "2") == ""
	})
	b.join(fra, nyc)
	eventually(t, "all agree", func() bool { return equal(pid, fra, nyc) })
}

func TestStrong_RecoveryDeclaresAllAnew(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.strong("prod")
	one, err := fra.tagged(t.Context(), pid, "app", "one", "1")
	must(t, err)
	// nyc has seen what the recovered state knows nothing of, under numbers that
	// are given to others now.
	lost := catalog.StrongTag{Repo: "app", Name: "1", Digest: digest.FromString("lost"), Seq: nyc.index + 5, Stamp: 1 << 60}
	other := lost
	other.Name = "2"
	_, err = nyc.store.Catalog().PutStrong(t.Context(), pid, []catalog.StrongTag{lost, other}, catalog.Ordered{}, 0, nyc.index+5)
	must(t, err)
	eventually(t, "fra heard of it", func() bool { return fra.tag(pid, "app", "2") != "" })
	b.propose(&command.MeshRecovered{Generation: []byte("another one here"), NodeId: fra.id.ID[:]})
	eventually(t, "the recovered state holds", func() bool {
		for _, n := range b.nodes {
			if n.tag(pid, "app", "1") != one || n.tag(pid, "app", "2") != "" {
				return false
			}
		}
		return equal(pid, fra, nyc)
	})
	two, err := nyc.tagged(t.Context(), pid, "app", "two", "1")
	must(t, err)
	eventually(t, "and goes on", func() bool { return fra.tag(pid, "app", "1") == two && equal(pid, fra, nyc) })
}

func TestStrong_Conditions(t *testing.T) {
	b := newBed(t, []string{"fra"})
	fra := b.site("fra")
	pid, _ := b.strong("prod")
	put := func(pid identity.ProjectID, text string, c tags.Condition) (digest.Digest, error) {
		p, err := fra.manifest(t.Context(), pid, "app", text)
		must(t, err)
		p.Tags = []string{"1"}
		return p.Digest, fra.door.Put(t.Context(), p, c)
	}
	one, err := put(pid, "one", tags.Condition{New: true})
	must(t, err)
	if _, err := put(pid, "two", tags.Condition{New: true}); !errors.Is(err, tags.ErrCondition) {
		t.Errorf("a tag that is there: %v", err)
	}
	if _, err := put(pid, "two", tags.Condition{Match: []digest.Digest{digest.FromString("x")}}); !errors.Is(err, tags.ErrCondition) {
		t.Errorf("a tag that says something else: %v", err)
	}
	if _, err := put(pid, "two", tags.Condition{Match: []digest.Digest{digest.FromString("x"), one}}); err != nil {
		t.Errorf("a tag that says so: %v", err)
	}
	if _, err := put(b.project("plain"), "one", tags.Condition{New: true}); !errors.Is(err, tags.ErrNoCondition) {
		t.Errorf("eventual tags: %v", err)
	}
}

// deafSync answers nobody: the site's own door does.
type deafSync struct{ n *site }

func (d deafSync) Ready(ctx context.Context, node identity.NodeID, pid identity.ProjectID, index uint64) (syncer.Ready, error) {
	return d.n.sync.Ready(ctx, node, pid, index)
}

func (d deafSync) PullProject(ctx context.Context, pid identity.ProjectID) ([]string, error) {
	return d.n.sync.PullProject(ctx, pid)
}

func (deafSync) OnReady(func(context.Context, identity.ProjectID, uint64) (bool, string)) {}
