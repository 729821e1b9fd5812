package transfer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer"
	"github.com/portolan/portolan/transfer/swarm"
)

func everywhere(projects ...string) *command.Rule {
	return &command.Rule{Name: "everywhere", Projects: projects, AllSites: true}
}

func (n *site) status(pid identity.ProjectID, repo, tag string, d digest.Digest, sites ...string) []transfer.SiteStatus {
	n.t.Helper()
	st, err := n.rec.Status(context.Background(), transfer.Question{PID: pid, Repository: repo, Tag: tag, Digest: d, Sites: sites})
	must(n.t, err)
	return st
}

func complete(st []transfer.SiteStatus) bool {
	return !slices.ContainsFunc(st, func(s transfer.SiteStatus) bool { return !s.Complete })
}

func TestRule_BringsEveryPushEverywhere(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid, other := b.project("prod"), b.project("stage")
	b.rule(everywhere("prod"))
	a, c := fra.push(pid, "app", "1.0"), sgp.push(pid, "web", "1.0")
	quiet := fra.push(other, "app", "1.0")
	took := eventually(t, "images at all sites", func() bool {
		return nyc.holds(a) && sgp.holds(a) && fra.holds(c) && nyc.holds(c)
	})
	t.Logf("everywhere after %s", took)
	eventually(t, "complete by the sites' own word", func() bool {
		return complete(nyc.status(pid, "app", "1.0", a.digest, "fra", "nyc", "sgp"))
	})
	if got := nyc.class(a.blobs[2]); got != catalog.Placed {
		t.Errorf("the copy at nyc has class %d: want placed", got)
	}
	if got := fra.class(a.blobs[2]); got != catalog.Home {
		t.Errorf("the copy at fra has class %d: want home", got)
	}
	if nyc.class(quiet.blobs[0]) != 0 {
		t.Error("an image that no rule covers was brought to nyc")
	}
}

func TestRule_AddedLaterBackFills(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	var imgs []image
	for _, tag := range []string{"v1", "v2", "latest"} {
		imgs = append(imgs, fra.push(pid, "app", tag))
	}
	eventually(t, "tags at nyc", func() bool { return nyc.tag(pid, "app", "latest") == imgs[2].digest })
	b.rule(&command.Rule{Name: "versions", Projects: []string{"prod"}, Tags: []string{"v*"}, Sites: []string{"nyc"}})
	eventually(t, "versions at nyc", func() bool { return nyc.holds(imgs[0]) && nyc.holds(imgs[1]) })
	if nyc.class(imgs[2].blobs[0]) != 0 {
		t.Error("the rule names tags v*, and latest was brought")
	}
	// A tag that is set later, on what was there: that costs no look at the rest.
	before := nyc.scanned()
	_, err := fra.store.Catalog().PutManifest(context.Background(), retag(fra, pid, imgs[2], "v3"))
	must(t, err)
	eventually(t, "latest at nyc, now that it is v3 too", func() bool { return nyc.holds(imgs[2]) })
	for i := range 30 {
		tag := fmt.Sprint("v4.", i)
		_, err := fra.store.Catalog().PutManifest(context.Background(), retag(fra, pid, imgs[2], tag))
		must(t, err)
		eventually(t, "the tag at nyc", func() bool { return nyc.tag(pid, "app", tag) == imgs[2].digest })
	}
	if n := nyc.scanned() - before; n > 1 { // one may have been for the rule
		t.Errorf("tags cost %d scans of the project", n)
	}
}

// retag is a PUT of a manifest that is there already.
func retag(n *site, pid identity.ProjectID, img image, tag string) catalog.Put {
	info, err := n.store.Catalog().Manifest(pid, "app", img.digest)
	must(n.t, err)
	refs, err := n.store.Catalog().Refs(pid, "app", img.digest)
	must(n.t, err)
	return catalog.Put{PID: pid, Repo: "app", Digest: img.digest, MediaType: info.MediaType, Size: info.Size, Bytes: img.body,
		Refs: refs, Tags: []string{tag}, Home: n.name, Actor: "user:admin"}
}

func TestRule_FollowsChildrenAndReferrersFromOtherSites(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	amd := fra.push(pid, "app")
	arm := nyc.push(pid, "app")
	eventually(t, "both children known at sgp", func() bool {
		_, e1 := sgp.store.Catalog().Manifest(pid, "app", amd.digest)
		_, e2 := sgp.store.Catalog().Manifest(pid, "app", arm.digest)
		return e1 == nil && e2 == nil
	})
	// The index has a tag that the rule names, its children have none.
	b.rule(&command.Rule{Name: "releases", Projects: []string{"prod"}, Tags: []string{"v*"}, Sites: []string{"sgp", "fra"}})
	idx := sgp.pushIndex(pid, "app", "v1", amd, arm)
	eventually(t, "children at sgp", func() bool { return sgp.holds(amd) && sgp.holds(arm) })
	eventually(t, "children at fra", func() bool { return fra.holds(amd) && fra.holds(arm) })
	if nyc.class(amd.blobs[0]) != 0 {
		t.Error("the rule does not name nyc, and a child was brought there")
	}
	// A signature of a child, pushed at the third site.
	sig := nyc.pushLayers(pid, "app", arm.digest, nil, []byte("signature"))
	eventually(t, "referrer of a child at sgp and fra", func() bool { return sgp.holds(sig) && fra.holds(sig) })
	eventually(t, "complete at sgp and fra", func() bool {
		return complete(fra.status(pid, "app", "v1", idx.digest, "sgp", "fra"))
	})
	st := fra.status(pid, "app", "v1", idx.digest, "nyc")[0]
	if st.Covered || st.Complete || !st.Reachable || !slices.Contains(st.Missing, amd.blobs[0]) || slices.Contains(st.Missing, arm.blobs[0]) {
		t.Errorf("nyc holds one child and is not covered: %+v", st)
	}
}

func TestReconciler_GoesOnAfterARestartAndAnOutage(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	b.rule(everywhere("prod"))
	// nyc learns of the image from sgp, but nobody who has its blobs is in reach.
	b.part(fra, nyc)
	b.part(nyc, sgp)
	img := fra.push(pid, "app", "1.0")
	eventually(t, "image at sgp", func() bool { return sgp.holds(img) })
	fra.stop()
	for _, d := range img.blobs {
		must(t, sgp.store.Catalog().LostBlob(context.Background(), d))
	}
	b.join(nyc, sgp)
	eventually(t, "tag at nyc", func() bool { return nyc.tag(pid, "app", "1.0") == img.digest })
	eventually(t, "a reason for what is missing", func() bool {
		st := sgp.status(pid, "app", "1.0", img.digest, "nyc", "fra")
		return st[0].Reachable && st[0].Covered && len(st[0].Missing) == 3 && strings.Contains(st[0].Reason, "blob sha256:") &&
			!st[1].Reachable && st[1].Error != ""
	})
	nyc.restart()
	fra.open()
	fra.start()
	b.join(fra, nyc)
	eventually(t, "image at nyc and again at sgp", func() bool {
		return nyc.holds(img) && sgp.holds(img)
	})
}

func TestReconciler_LargeManifestsGoEverywhere(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	body := map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []any{},
		"annotations": map[string]string{"long": strings.Repeat("x", catalog.MaxInlineManifest+1)},
	}
	img := fra.put(pid, "app", body, []string{"1.0"})
	eventually(t, "bytes of the manifest at nyc", func() bool {
		f, err := nyc.store.Open(context.Background(), img.digest)
		if err != nil {
			return false
		}
		defer f.Close()
		return json.NewDecoder(f).Decode(&body) == nil
	})
}

func TestStatus_CachedCopiesAndUncoveredSites(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid := b.project("prod")
	img := fra.push(pid, "app", "1.0")
	eventually(t, "tag at nyc", func() bool { return nyc.tag(pid, "app", "1.0") == img.digest })
	st := nyc.status(pid, "app", "1.0", img.digest, "fra", "nyc", "lon")
	if !st[0].Complete || !st[0].Covered || st[0].Total != 4 {
		t.Errorf("fra accepted the push: %+v", st[0])
	}
	if st[1].Complete || st[1].Covered || len(st[1].Missing) != 3 || st[1].TagDigest != img.digest {
		t.Errorf("no rule covers nyc: %+v", st[1])
	}
	if st[2].Reachable || st[2].Complete || st[2].Error == "" {
		t.Errorf("there is no site lon: %+v", st[2])
	}
	// Somebody pulls it at nyc.
	for _, d := range img.blobs {
		must(t, nyc.swarm.Fetch(context.Background(), swarm.Want{Digest: d, PID: pid, Class: catalog.Cached}))
	}
	if s := fra.status(pid, "app", "1.0", img.digest, "nyc")[0]; !s.Complete || !s.Evictable || s.Covered {
		t.Errorf("nyc holds a cached copy: %+v", s)
	}
	// A rule makes the same copies ones that are kept, without a transfer.
	b.rule(everywhere("prod"))
	eventually(t, "copies at nyc are placed", func() bool { return nyc.holds(img) })
	if s := fra.status(pid, "app", "1.0", img.digest, "nyc")[0]; !s.Complete || s.Evictable || !s.Covered {
		t.Errorf("nyc holds a placed copy: %+v", s)
	}
	if _, err := fra.rec.Status(context.Background(), transfer.Question{PID: pid, Repository: "app", Digest: digest.FromString("none"), Sites: []string{"fra"}}); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("an artifact that nobody knows: %v", err)
	}
	if s := fra.status(pid, "app", "other", img.digest, "nyc")[0]; s.Complete || s.TagDigest != "" {
		t.Errorf("a tag that nyc has not: %+v", s)
	}
}

func TestClaim_PinsAtTheHolderAndFetches(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, other := b.project("prod"), b.project("secret")
	ctx := context.Background()
	big := make([]byte, 3<<20)
	d, err := fra.store.PutBytes(ctx, big, store.Link{PID: pid, Repo: "app"})
	must(t, err)
	secret, err := fra.store.PutBytes(ctx, []byte("of another project, long enough to be guessed by nobody"), store.Link{PID: other, Repo: "app"})
	must(t, err)
	none := digest.FromString("nobody has this")

	// A claim waits two seconds for a site, which the first call of a busy machine may
	// take: then it names the site, and a client tries again.
	var c transfer.Claim
	eventually(t, "a claim that reaches fra", func() bool {
		c, err = nyc.rec.Claim(ctx, pid, "app", []transfer.Descriptor{{Digest: d.Digest, Size: d.Size}, {Digest: none, Size: 15}, {Digest: secret.Digest, Size: secret.Size}})
		must(t, err)
		return len(c.Unreachable) == 0
	})
	if !slices.Equal(c.Claimed, []digest.Digest{d.Digest}) || len(c.Missing) != 2 {
		t.Fatalf("claim: %+v", c)
	}
	pins, err := fra.store.Catalog().Pins(d.Digest)
	must(t, err)
	if len(pins) != 1 || pins[0].For != nyc.store.ID() || pins[0].Until.Before(time.Now().Add(time.Hour)) {
		t.Errorf("pins at fra: %+v", pins)
	}
	eventually(t, "the blob at nyc, its new home", func() bool { return nyc.class(d.Digest) == catalog.Home })
	// Now it is here: a claim is a lease.
	c, err = nyc.rec.Claim(ctx, pid, "app2", []transfer.Descriptor{{Digest: d.Digest, Size: d.Size}})
	must(t, err)
	if len(c.Claimed) == 0 && len(c.Missing) == 0 {
		t.Errorf("claim: %+v", c)
	}
	b.part(fra, nyc)
	c, err = nyc.rec.Claim(ctx, pid, "app", []transfer.Descriptor{{Digest: none, Size: 15}})
	must(t, err)
	if len(c.Missing) != 1 || !slices.Equal(c.Unreachable, []string{"fra"}) {
		t.Errorf("claim while cut off: %+v", c)
	}
}
