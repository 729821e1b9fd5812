package transfer_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/swarm"
)

// label gives a site labels: pairs KEY=VALUE.
func (b *bed) label(site string, pairs ...string) {
	b.t.Helper()
	s, ok := b.nodes[0].state.View().Site(site)
	if !ok {
		b.t.Fatalf("no site %s", site)
	}
	m := &command.SiteLabel{Id: s.ID}
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		m.Set = append(m.Set, &command.Label{Key: k, Value: v})
	}
	b.propose(m)
}

// away says whether rules count on a site.
func (b *bed) away(site string, is bool) {
	b.t.Helper()
	s, ok := b.nodes[0].state.View().Site(site)
	if !ok {
		b.t.Fatalf("no site %s", site)
	}
	b.propose(&command.SiteAway{Id: s.ID, Away: is})
}

// holders are the sites that hold an image for good.
func (b *bed) holders(img image) []string {
	var out []string
	for _, n := range b.nodes {
		if n.up && n.holds(img) {
			out = append(out, n.name)
		}
	}
	return out
}

// covered are the sites that a node expects to hold an image.
func (n *site) covered(pid identity.ProjectID, repo string, d digest.Digest, sites ...string) (covered, spare []string) {
	n.t.Helper()
	for _, s := range n.status(pid, repo, "", d, sites...) {
		if s.Covered {
			covered = append(covered, s.Site)
		}
		if s.Spare {
			spare = append(spare, s.Site)
		}
	}
	return covered, spare
}

// settled waits until each of the sites has looked at all that it knows.
func settled(t *testing.T, pid identity.ProjectID, sites ...*site) {
	t.Helper()
	eventually(t, "equal catalogues", func() bool { return equal(pid, sites...) })
	eventually(t, "empty queues", func() bool {
		return !slices.ContainsFunc(sites, func(n *site) bool { return n.waiting() > 0 })
	})
}

// waiting is how many artifacts a site's queue has.
func (n *site) waiting() (count float64) {
	n.t.Helper()
	families, err := n.counts.Gather()
	must(n.t, err)
	for _, f := range families {
		if f.GetName() == "portolan_transfer_queue_artifacts" {
			for _, m := range f.GetMetric() {
				count += m.GetGauge().GetValue()
			}
		}
	}
	return count
}

func TestRule_CopiesAreReplacedWhenASiteIsLost(t *testing.T) {
	names := []string{"fra", "nyc", "sgp", "syd"}
	b := newBed(t, names)
	fra := b.site("fra")
	pid := b.project("prod")
	b.rule(&command.Rule{Name: "two", Projects: []string{"prod"}, AllSites: true, Copies: 2})
	img := fra.push(pid, "app", "v1")
	settled(t, pid, b.nodes...)
	eventually(t, "two copies", func() bool { return len(b.holders(img)) == 2 })
	first := b.holders(img)
	if !slices.Contains(first, "fra") {
		t.Fatalf("copies at %v: where it was pushed is none of them", first)
	}
	// Everybody says the same: two are expected, two are spare.
	for _, n := range b.nodes {
		covered, spare := n.covered(pid, "app", img.digest, names...)
		if !slices.Equal(covered, first) || len(spare) != 2 {
			t.Errorf("%s expects it at %v and spares %v, it is at %v", n.name, covered, spare, first)
		}
	}
	second := b.site(first[1-slices.Index(first, "fra")])
	t.Logf("the second copy is at %s", second.name)

	// The second site is lost for long: another takes its place.
	second.stop()
	b.away(second.name, true)
	eventually(t, "a third site has a copy", func() bool { return len(b.holders(img)) == 2 })
	after := b.holders(img)
	if slices.Contains(after, second.name) || !slices.Contains(after, "fra") {
		t.Errorf("copies at %v", after)
	}
	covered, _ := fra.covered(pid, "app", img.digest, names...)
	if !slices.Equal(covered, after) {
		t.Errorf("fra expects it at %v, it is at %v", covered, after)
	}
	// It comes back: it counts again. What took its place stays, and nothing moves.
	second.open()
	second.start()
	b.away(second.name, false)
	eventually(t, "the first choice again", func() bool {
		covered, _ := fra.covered(pid, "app", img.digest, names...)
		return slices.Equal(covered, first)
	})
	next := fra.push(pid, "app", "v2")
	eventually(t, "two copies of the next push", func() bool { return len(b.holders(next)) == 2 })
	settled(t, pid, b.nodes...)
	if got := b.holders(next); !slices.Equal(got, first) {
		t.Errorf("the next push is at %v, want %v", got, first)
	}
}

func TestRule_CopiesOfAWholeArtifactLieTogether(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp", "syd"})
	fra := b.site("fra")
	pid := b.project("prod")
	b.rule(&command.Rule{Name: "two", Projects: []string{"prod"}, AllSites: true, Copies: 2})
	amd, arm := fra.push(pid, "app"), fra.push(pid, "app")
	idx := fra.pushIndex(pid, "app", "v1", amd, arm)
	sig := fra.pushLayers(pid, "app", idx.digest, nil, []byte("signature"))
	eventually(t, "two copies of each part", func() bool {
		return len(b.holders(amd)) == 2 && len(b.holders(arm)) == 2 && len(b.holders(sig)) == 2
	})
	settled(t, pid, b.nodes...)
	where := b.holders(amd)
	if len(where) != 2 || !slices.Equal(where, b.holders(arm)) || !slices.Equal(where, b.holders(sig)) {
		t.Errorf("children at %v and %v, signature at %v", where, b.holders(arm), b.holders(sig))
	}
}

func TestRule_SitesByLabel(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra := b.site("fra")
	pid := b.project("prod")
	b.label("fra", "region=eu")
	b.label("nyc", "region=us")
	b.rule(&command.Rule{Name: "west", Projects: []string{"prod"}, SiteLabels: "region in (us,asia)"})
	img := fra.push(pid, "app", "v1")
	eventually(t, "the image at nyc", func() bool { return b.site("nyc").holds(img) })
	settled(t, pid, b.nodes...)
	if got := b.holders(img); !slices.Equal(got, []string{"fra", "nyc"}) {
		t.Errorf("held at %v, want fra (home) and nyc", got)
	}
	// A label more is a site more, with all that is there already.
	b.label("sgp", "region=asia")
	eventually(t, "the image at sgp", func() bool { return b.site("sgp").holds(img) })
}

func TestRule_TypesAndLabels(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	b.rule(&command.Rule{Name: "web", Projects: []string{"prod"}, Types: []string{"image"}, Labels: []string{"team=web*"}, Sites: []string{"nyc"}})
	push := func(tag, config string, annotations map[string]string) image {
		m := fra.manifestOf(pid, "app", config, []byte("layer of "+tag))
		m.Annotations = annotations
		return fra.put(pid, "app", m, []string{tag})
	}
	good := push("good", v1.MediaTypeImageConfig, map[string]string{"team": "website"})
	chart := push("chart", "application/vnd.cncf.helm.config.v1+json", map[string]string{"team": "website"})
	other := push("other", v1.MediaTypeImageConfig, map[string]string{"team": "db"})
	none := push("none", v1.MediaTypeImageConfig, nil)
	// One whose manifest is too large to travel with its entry: its annotations are
	// known when it is here.
	large := push("large", v1.MediaTypeImageConfig, map[string]string{"team": "web", "long": strings.Repeat("x", catalog.MaxInlineManifest)})
	eventually(t, "images of the team at nyc", func() bool { return nyc.holds(good) && nyc.holds(large) })
	settled(t, pid, fra, nyc)
	for what, img := range map[string]image{"a chart": chart, "another team's": other, "one without labels": none} {
		if nyc.class(img.blobs[1]) != 0 {
			t.Errorf("%s was brought to nyc", what)
		}
	}
}

func TestRule_WindowOpens(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	now := time.Now().UTC()
	opens := now.Add(3 * time.Hour).Truncate(time.Hour)
	window := "daily " + opens.Format("15:04") + "-" + opens.Add(time.Hour).Format("15:04") + " UTC"
	b.rule(&command.Rule{Name: "nightly", Projects: []string{"prod"}, Sites: []string{"nyc"}, Windows: []string{window}})
	cached := fra.push(pid, "app", "cached")
	img := fra.push(pid, "app", "v1")
	eventually(t, "a reason why it is not at nyc", func() bool {
		s := fra.status(pid, "app", "v1", img.digest, "nyc")[0]
		return s.Covered && !s.Complete && strings.Contains(s.Reason, "waits for the window of rule nightly, which opens at "+opens.Format(time.RFC3339))
	})
	// What somebody pulls is here: to promise it moves no byte, and needs no window.
	for _, d := range cached.blobs {
		must(t, nyc.swarm.Fetch(context.Background(), swarm.Want{Digest: d, PID: pid, Class: catalog.Cached}))
	}
	nyc.rec.Pushed(pid, "app", cached.digest)
	eventually(t, "the pulled image is kept", func() bool { return nyc.holds(cached) })
	if nyc.class(img.blobs[0]) != 0 {
		t.Fatal("bytes moved outside of the window")
	}
	nyc.ahead.Store(int64(opens.Add(time.Minute).Sub(now)))
	nyc.rec.Pushed(pid, "app", cached.digest) // the clock jumped: this wakes the queue
	eventually(t, "the image at nyc, in the window", func() bool { return nyc.holds(img) })
	nyc.ahead.Store(int64(opens.Add(2 * time.Hour).Sub(now)))
	late := fra.push(pid, "app", "late")
	eventually(t, "another reason to wait", func() bool {
		s := fra.status(pid, "app", "late", late.digest, "nyc")[0]
		return strings.Contains(s.Reason, "which opens at "+opens.Add(24*time.Hour).Format(time.RFC3339))
	})
}

func TestRule_DeletionsFollowOrNot(t *testing.T) {
	for _, follow := range []bool{true, false} {
		t.Run(map[bool]string{true: "follow", false: "keep"}[follow], func(t *testing.T) {
			b := newBed(t, []string{"fra", "nyc"})
			fra, nyc := b.site("fra"), b.site("nyc")
			pid := b.project("prod")
			b.rule(&command.Rule{Name: "versions", Projects: []string{"prod"}, Tags: []string{"v*"}, Sites: []string{"nyc"}, FollowDeletions: follow})
			shared := []byte("a base layer that both have")
			gone := fra.pushLayers(pid, "app", "", []string{"v1"}, shared, []byte("of the first"))
			untagged := fra.pushLayers(pid, "app", "", []string{"v2"}, shared, []byte("of the second"))
			stays := fra.pushLayers(pid, "app", "", []string{"v3"}, shared, []byte("of the third"))
			eventually(t, "all at nyc", func() bool { return nyc.holds(gone) && nyc.holds(untagged) && nyc.holds(stays) })

			ctx := context.Background()
			must(t, fra.store.Catalog().DeleteManifest(ctx, pid, "app", gone.digest, "user:admin", 1))
			must(t, fra.store.Catalog().DeleteTag(ctx, pid, "app", "v2", "user:admin", 1))
			want := catalog.Placed
			if follow {
				want = catalog.Cached
			}
			// blobs are config, shared layer, own layer.
			eventually(t, "what was deleted, at nyc", func() bool {
				return nyc.tag(pid, "app", "v2") == "" && nyc.class(gone.blobs[2]) == want && nyc.class(untagged.blobs[2]) == want && nyc.class(gone.blobs[0]) == want
			})
			settled(t, pid, fra, nyc)
			if !nyc.holds(stays) || nyc.class(stays.blobs[1]) != catalog.Placed {
				t.Error("what another image needs was let go of")
			}
			if fra.class(untagged.blobs[2]) != catalog.Home {
				t.Error("a home copy was let go of by a rule")
			}
			if !follow {
				for _, d := range append(slices.Clone(gone.blobs), untagged.blobs...) {
					if got := nyc.class(d); got != catalog.Placed {
						t.Errorf("%s has class %d: it was to be kept", d, got)
					}
				}
			}
		})
	}
}

func TestRule_Disabled(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	off := &command.Rule{Name: "off", Projects: []string{"prod"}, AllSites: true, Disabled: true}
	id := b.rule(off)
	img := fra.push(pid, "app", "v1")
	settled(t, pid, fra, nyc)
	if s := fra.status(pid, "app", "v1", img.digest, "nyc")[0]; s.Covered || nyc.class(img.blobs[0]) != 0 {
		t.Errorf("a disabled rule wants something: %+v", s)
	}
	// In force, and disabled again while nyc can't reach anybody: it stops wanting.
	b.part(fra, nyc)
	on := &command.Rule{Name: "on", Projects: []string{"prod"}, AllSites: true}
	b.propose(&command.RuleUpdate{Id: id, Rule: on})
	eventually(t, "nyc wants it", func() bool { return nyc.waiting() > 0 })
	b.propose(&command.RuleUpdate{Id: id, Rule: off})
	eventually(t, "nyc wants nothing", func() bool { return nyc.waiting() == 0 })
	b.join(fra, nyc)
	settled(t, pid, fra, nyc)
	if nyc.class(img.blobs[0]) != 0 {
		t.Error("it was brought though the rule is disabled")
	}
}

func TestResidency_NothingRestsOrPassesOutside(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("secret", "fra", "nyc")
	b.rule(everywhere("secret"))
	b.rule(&command.Rule{Name: "by-name", Projects: []string{"*"}, Sites: []string{"sgp"}, Copies: 1})
	img := fra.push(pid, "app", "v1")
	eventually(t, "the image where it may rest", func() bool { return nyc.holds(img) })
	settled(t, pid, fra, nyc)
	ctx := context.Background()
	for _, d := range img.blobs {
		// Asked by name it gets nothing, of nobody, and nobody asks it.
		if err := sgp.swarm.Fetch(ctx, swarm.Want{Digest: d, PID: pid, Class: catalog.Cached}); err == nil {
			t.Errorf("sgp got %s", d)
		}
		fra.sync.Expect(d, "sgp")
		if h := fra.sync.Holders(ctx, d, pid, 0); slices.Contains(h, sgp.id.ID) {
			t.Errorf("fra would ask sgp for %s", d)
		}
		if fra.sync.Access(ctx, sgp.id.ID, d, pid) {
			t.Errorf("fra would send %s to sgp", d)
		}
	}
	all, err := sgp.store.Catalog().Vector(pid)
	must(t, err)
	blobs := 0
	must(t, sgp.store.Catalog().EachBlob(func(catalog.BlobRow) error { blobs++; return nil }))
	if len(all) != 0 || blobs != 0 {
		t.Errorf("sgp has %d blobs, and saw %v of the project", blobs, all)
	}
	// It is not sgp's only link to nyc either: with fra and nyc cut apart, nothing
	// goes round by sgp.
	b.part(fra, nyc)
	next := fra.push(pid, "app", "v2")
	open := b.project("open")
	b.rule(&command.Rule{Name: "open", Projects: []string{"open"}, AllSites: true})
	probe := fra.push(open, "app", "v1")
	eventually(t, "an open project's image goes round by sgp", func() bool { return sgp.holds(probe) && nyc.holds(probe) })
	if nyc.tag(pid, "app", "v2") != "" || nyc.class(next.blobs[0]) != 0 || sgp.class(next.blobs[0]) != 0 {
		t.Error("a restricted project's content went round by a site where it may not rest")
	}
	b.join(fra, nyc)
	eventually(t, "the next image at nyc", func() bool { return nyc.holds(next) })
	if st := fra.status(pid, "app", "v1", img.digest, "sgp")[0]; st.Covered || !strings.Contains(st.Error, "may not rest at site sgp") {
		t.Errorf("sgp: %+v", st)
	}
}
