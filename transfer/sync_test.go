package transfer_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/manifest"
	syncer "github.com/portolan/portolan/transfer/sync"
)

// TestSync_APushIsSeenElsewhereByItsHint: no poll comes within the time that is
// waited, so the announcement is what brought it. How soon is for `make bench-wan`.
func TestSync_APushIsSeenElsewhereByItsHint(t *testing.T) {
	t.Run("libp2p", func(t *testing.T) { testPushIsSeen(t) })
	t.Run("in memory", func(t *testing.T) { testPushIsSeen(t, inMemory) })
}

func testPushIsSeen(t *testing.T, opts ...option) {
	b := newBed(t, []string{"fra", "nyc", "sgp"}, opts...)
	if soonest := b.poll * 4 / 5; soonest <= within { // see jitter
		t.Fatalf("a poll may come after %s", soonest)
	}
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	for _, n := range b.nodes {
		eventually(t, "first exchange at "+n.name, func() bool { return closed(n.sync.FirstDone()) })
	}
	img := fra.push(pid, "app", "1.0")
	took := eventually(t, "tag at nyc and sgp", func() bool {
		return nyc.tag(pid, "app", "1.0") == img.digest && sgp.tag(pid, "app", "1.0") == img.digest
	})
	t.Logf("seen after %s", took)
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
	for _, d := range img.blobs {
		if nyc.class(d) != 0 {
			t.Errorf("no rule wants blob %s at nyc, and it is there", d)
		}
	}
	eventually(t, "hints about the holder at nyc", func() bool {
		h := nyc.sync.Holders(context.Background(), img.blobs[2], pid, 0)
		return len(h) == 1 && h[0] == fra.id.ID
	})
}

func TestSync_ALostHintIsCaughtByThePoll(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"}, noHints)
	pid := b.project("prod")
	img := b.site("fra").push(pid, "app", "1.0")
	eventually(t, "tag at nyc", func() bool { return b.site("nyc").tag(pid, "app", "1.0") == img.digest })
}

// TestSync_WhoComesBackIsAskedAtOnce: the links break and mend between two polls, so
// that no exchange fails, and what was announced meanwhile was not heard.
func TestSync_WhoComesBackIsAskedAtOnce(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	before := fra.push(pid, "app", "before")
	eventually(t, "exchanges at both", func() bool { return nyc.tag(pid, "app", "before") == before.digest && closed(fra.sync.FirstDone()) })
	b.part(fra, nyc)
	img := fra.push(pid, "app", "meanwhile")
	b.join(fra, nyc)
	eventually(t, "tag at nyc", func() bool { return nyc.tag(pid, "app", "meanwhile") == img.digest })
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc) })
}

func TestSync_ConvergesAfterAPartition(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	fra.push(pid, "app", "0")
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
	b.part(fra, sgp)
	b.part(nyc, sgp)
	eventually(t, "sgp notices that it is alone", func() bool {
		un, err := sgp.sync.PullProject(context.Background(), pid)
		return err == nil && len(un) == 2
	})
	for i := range 10 {
		fra.push(pid, "app", fmt.Sprint("f", i))
		sgp.push(pid, "app", fmt.Sprint("s", i), "latest")
	}
	must(t, nyc.store.Catalog().DeleteTag(context.Background(), pid, "app", "0", "user:admin", 0))
	nyc.push(pid, "app", "latest")
	if equal(pid, fra, sgp) {
		t.Fatal("the partition lets something through")
	}
	b.join(fra, sgp)
	b.join(nyc, sgp)
	took := eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
	t.Logf("equal after %s", took)
	for _, n := range b.nodes {
		if n.tag(pid, "app", "0") != "" {
			t.Errorf("%s: a deleted tag came back", n.name)
		}
		if got, want := n.tag(pid, "app", "latest"), fra.tag(pid, "app", "latest"); got != want {
			t.Errorf("%s: latest is %s, at fra %s", n.name, got, want)
		}
	}
}

func TestSync_CatchesUpAfterARestart(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	fra.push(pid, "app", "1")
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc) })
	// What is looked at below is noted only after the last page was taken in.
	eventually(t, "first exchange", func() bool { return closed(nyc.sync.FirstDone()) })
	nyc.stop()
	img := fra.push(pid, "app", "2")
	nyc.open()
	if !closed(nyc.sync.FirstDone()) {
		t.Error("a restarted node waits for peers before it is ready")
	}
	nyc.start()
	eventually(t, "tag at nyc", func() bool { return nyc.tag(pid, "app", "2") == img.digest })
	fra.restart() // kept streams to it have ended
	img = fra.push(pid, "app", "3")
	eventually(t, "tag at nyc", func() bool { return nyc.tag(pid, "app", "3") == img.digest })
}

func TestSync_AnUnknownProjectIsNotPulled(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	eventually(t, "first exchange", func() bool { return closed(nyc.sync.FirstDone()) })
	nyc.lag = true
	pid := b.project("prod")
	img := fra.push(pid, "app", "1.0")
	if _, err := nyc.sync.PullProject(context.Background(), pid); !errors.Is(err, syncer.ErrUnknownProject) {
		t.Errorf("PullProject of an unknown project: %v", err)
	}
	if _, err := fra.sync.Has(context.Background(), nyc.id.ID, syncer.Question{PID: pid}); err != nil {
		t.Errorf("a question without digests: %v", err)
	}
	_, _, err := fra.sync.TagAt(context.Background(), nyc.id.ID, pid, "app", "1.0")
	if !errors.Is(err, syncer.ErrUnknownProject) {
		t.Errorf("a question about a project that the other does not know: %v", err)
	}
	if ps, err := nyc.store.Catalog().Projects(); err != nil || len(ps) != 0 {
		t.Fatalf("nyc has entries of %v (%v)", ps, err)
	}
	nyc.catchUp()
	eventually(t, "tag at nyc once it knows the project", func() bool { return nyc.tag(pid, "app", "1.0") == img.digest })
}

func TestSync_AProjectStaysWhereItMayRest(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("eu", "fra", "nyc")
	b.rule(&command.Rule{Name: "all", Projects: []string{"**"}, AllSites: true})
	img := fra.push(pid, "app", "1.0")
	eventually(t, "image at nyc", func() bool { return nyc.holds(img) })
	// An exchange of another project after it shows that sgp had its chance.
	other := b.project("any")
	mark := fra.push(other, "app", "1.0")
	eventually(t, "image at sgp", func() bool { return sgp.holds(mark) })
	if ps, err := sgp.store.Catalog().Projects(); err != nil || len(ps) != 1 {
		t.Errorf("sgp has entries of %v (%v)", ps, err)
	}
	for _, d := range img.blobs {
		if sgp.class(d) != 0 {
			t.Errorf("sgp holds %s", d)
		}
	}
	if fra.sync.Access(context.Background(), sgp.id.ID, img.blobs[0], pid) {
		t.Error("fra would give sgp a blob of the project")
	}
	if _, _, err := sgp.sync.TagAt(context.Background(), fra.id.ID, pid, "app", "1.0"); err == nil {
		t.Error("fra answers sgp about the project")
	}
}

// A disk that is put back to an older state gives the same numbers to other
// things: neither entries nor hints may be confused by it.
func TestSync_ADiskPutBackToAnOlderState(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"}, noHints)
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	first := fra.push(pid, "app", "1")
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc) })
	backup := fra.copyDisk()
	second := fra.push(pid, "app", "2")
	hinted := func(img image) bool {
		h, err := nyc.store.Catalog().Holders(img.blobs[2])
		return err == nil && len(h) == 1
	}
	eventually(t, "tag and hints at nyc", func() bool { return nyc.tag(pid, "app", "2") == second.digest && hinted(second) })

	fra.putBack(backup)
	fra.open()
	fra.start()
	eventually(t, "fra has its lost push's entries again", func() bool { return fra.tag(pid, "app", "2") == second.digest })
	eventually(t, "nyc forgets what fra no longer has", func() bool { return hinted(first) && !hinted(second) })
	third := fra.push(pid, "app", "3")
	eventually(t, "equal catalogues", func() bool { return nyc.tag(pid, "app", "3") == third.digest && equal(pid, fra, nyc) })
	eventually(t, "hints about the new push", func() bool { return hinted(third) })
}

func TestSync_ManyEntriesInPages(t *testing.T) {
	b := newBed(t, []string{"fra"})
	fra := b.site("fra")
	pid := b.project("prod")
	for i := range 600 { // more than one page
		fra.pushLayers(pid, fmt.Sprint("app", i%7), "", []string{fmt.Sprint("t", i)}, []byte(fmt.Sprint("layer ", i)))
	}
	nyc := b.addSite("nyc")
	took := eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc) })
	eventually(t, "first exchange done", func() bool { return closed(nyc.sync.FirstDone()) })
	t.Logf("600 images' entries after %s", took)
}

// The largest manifests that are taken, and an index whose children's bytes
// exceed any message, get to a site that has nothing of them.
func TestSync_LargestRequests(t *testing.T) {
	b := newBed(t, []string{"fra"})
	fra := b.site("fra")
	pid := b.project("prod")
	big := image{digest: digest.FromString("big")}
	p := catalog.Put{PID: pid, Repo: "app", Digest: big.digest, Size: 4 << 20, MediaType: v1.MediaTypeImageManifest, Home: "fra", Tags: []string{"big"}}
	for i := range manifest.MaxDescriptors {
		p.Refs = append(p.Refs, catalog.Ref{Digest: digest.FromString(fmt.Sprint("layer", i)), Size: 1, Kind: catalog.RefBlob})
	}
	_, err := fra.store.Catalog().PutManifest(context.Background(), p)
	must(t, err)
	var children []image
	config, err := fra.store.PutBytes(context.Background(), []byte("{}"), store.Link{PID: pid, Repo: "app"})
	must(t, err)
	for i := range 500 {
		m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: v1.Descriptor{MediaType: v1.MediaTypeEmptyJSON, Digest: config.Digest, Size: config.Size}, Annotations: map[string]string{"n": fmt.Sprint(i, strings.Repeat(" ", 60<<10))}}
		m.SchemaVersion = 2
		children = append(children, fra.put(pid, "app", m, nil))
	}
	index := fra.pushIndex(pid, "app", "index", children...)
	if len(children)*len(children[0].body) < catalog.MaxPageBytes*3/2 {
		t.Fatal("the children fit into a page")
	}

	nyc := b.addSite("nyc")
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc) })
	if nyc.tag(pid, "app", "index") != index.digest || nyc.tag(pid, "app", "big") != big.digest {
		t.Error("tags are not there")
	}
	eventually(t, "all manifests' bytes at nyc", func() bool {
		for _, c := range children {
			if _, err := nyc.store.Stat(context.Background(), c.digest); err != nil {
				return false
			}
		}
		return true
	})
}

func TestSync_ClockOffsets(t *testing.T) {
	// fra may not notice that nyc was away, and asks it again by its poll alone then.
	b := newBed(t, []string{"fra", "nyc"}, func(b *bed) { b.poll = 200 * time.Millisecond })
	fra, nyc := b.site("fra"), b.site("nyc")
	nyc.stop()
	nyc.clock = 5 * time.Minute
	nyc.open()
	nyc.start()
	near := func(got, want time.Duration) bool { return (got - want).Abs() < 2*time.Second }
	eventually(t, "each knows the other's offset", func() bool {
		return near(fra.sync.Offsets()[nyc.id.ID], 5*time.Minute) && near(nyc.sync.Offsets()[fra.id.ID], -5*time.Minute)
	})
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
