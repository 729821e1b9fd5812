package transfer_test

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
)

// beyond gives a site a page of an exchange that breaks off, from a store that nobody
// hears of again: it has a tag then, which no vector says.
func (n *site) beyond(pid identity.ProjectID, tag string) digest.Digest {
	n.t.Helper()
	gone, err := catalog.Open("", catalog.Options{InMemory: true})
	must(n.t, err)
	defer func() { must(n.t, gone.Close()) }()
	d := n.bare(gone, pid, tag)
	broken := errors.New("the link broke")
	_, err = gone.Delta(n.t.Context(), pid, nil, 1<<20, func(p catalog.Page) error {
		_, err := n.store.Catalog().ApplyPage(n.t.Context(), pid, p)
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) || n.tag(pid, "app", tag) != d {
		n.t.Fatalf("the page is not here: %v", err)
	}
	return d
}

// bare tags a manifest that needs no blobs, at a store.
func (n *site) bare(c *catalog.Catalog, pid identity.ProjectID, tag string) digest.Digest {
	n.t.Helper()
	body := []byte(`{"schemaVersion":2}`)
	d := digest.FromBytes(body)
	_, err := c.PutManifest(n.t.Context(), catalog.Put{
		PID: pid, Repo: "app", Digest: d, MediaType: "application/vnd.oci.image.manifest.v1+json", Size: int64(len(body)), Bytes: body,
		Tags: []string{tag}, Home: n.name, Actor: "user:admin",
	})
	must(n.t, err)
	return d
}

// TestSync_WhatNoVectorSays: sites that have seen the same come for it, and none has to
// forget what it has seen.
func TestSync_WhatNoVectorSays(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"}, func(b *bed) { b.poll = 3 * time.Second }) // five of them, until a vector is dropped
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	fra.push(pid, "app", "before")
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
	d := fra.beyond(pid, "late")
	eventually(t, "all have it", func() bool { return nyc.tag(pid, "app", "late") == d && sgp.tag(pid, "app", "late") == d })
	eventually(t, "equal catalogues again", func() bool { return equal(pid, fra, nyc, sgp) })
	v, err := nyc.store.Catalog().Vector(pid)
	must(t, err)
	own, err := fra.store.Catalog().OwnVector(pid)
	must(t, err)
	if !v.Equal(own) {
		t.Errorf("nyc has seen %v, and fra gave %v: another site dropped its vector", v, own)
	}
}

// TestResidency_LeavesNothingThatNoVectorSays: a site whose vector another one covers
// has something else, and does not leave with it.
func TestResidency_LeavesNothingThatNoVectorSays(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	fra, nyc, sgp := b.site("fra"), b.site("nyc"), b.site("sgp")
	pid := b.project("prod")
	fra.bare(fra.store.Catalog(), pid, "before") // the tag alone is at fra alone
	eventually(t, "equal catalogues", func() bool { return equal(pid, fra, nyc, sgp) })
	d := fra.beyond(pid, "late")
	b.sites(pid, false, "nyc", "sgp")
	fra.steady(t, pid, state.Out)
	if nyc.tag(pid, "app", "late") != d && sgp.tag(pid, "app", "late") != d {
		t.Error("fra left with a tag that it had alone")
	}
	eventually(t, "both have it", func() bool { return nyc.tag(pid, "app", "late") == d && sgp.tag(pid, "app", "late") == d })
}
