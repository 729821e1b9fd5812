package transfer_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/tags"
)

// indexOf gives an index of manifests to be put.
func (n *site) indexOf(pid identity.ProjectID, repo string, children ...catalog.Put) catalog.Put {
	n.t.Helper()
	m := v1.Index{MediaType: v1.MediaTypeImageIndex}
	m.SchemaVersion = 2
	put := catalog.Put{PID: pid, Repo: repo, MediaType: m.MediaType, Home: n.name, Actor: "user:" + n.name, ACLIndex: n.state.View().Index()}
	for _, c := range children {
		m.Manifests = append(m.Manifests, v1.Descriptor{MediaType: c.MediaType, Digest: c.Digest, Size: c.Size})
		put.Refs = append(put.Refs, catalog.Ref{Digest: c.Digest, Size: c.Size, Kind: catalog.RefManifest})
	}
	raw, err := json.Marshal(m)
	must(n.t, err)
	put.Digest, put.Size, put.Bytes = digest.FromBytes(raw), int64(len(raw)), raw
	return put
}

// TestDurable_AnIndexBringsWhatIsBelowIt: clients push the images of an index by
// digest first, which fewer sites have than the tag is promised at.
func TestDurable_AnIndexBringsWhatIsBelowIt(t *testing.T) {
	for _, strong := range []bool{true, false} {
		t.Run(fmt.Sprintf("strong=%v", strong), func(t *testing.T) {
			b := newBed(t, []string{"fra", "nyc", "sgp"}, noHints)
			fra := b.site("fra")
			pid, id := b.durable("prod", 1)
			if strong {
				pid, _ = b.strong("strong")
			}
			for _, s := range b.nodes { // no rule brings anything
				b.propose(&command.SitePause{Site: s.name, Paused: true})
			}
			var images []catalog.Put
			for _, text := range []string{"amd64", "arm64"} {
				put, err := fra.manifest(t.Context(), pid, "app", text)
				must(t, err)
				must(t, fra.door.Put(t.Context(), put, tags.Condition{}))
				images = append(images, put)
			}
			inner := fra.indexOf(pid, "app", images...)
			must(t, fra.door.Put(t.Context(), inner, tags.Condition{}))
			if !strong {
				b.propose(&command.ProjectUpdate{Id: id, Durability: proto32(2)})
			}
			put := fra.indexOf(pid, "app", inner)
			put.Tags = []string{"1"}
			must(t, fra.door.Put(t.Context(), put, tags.Condition{}))
			for _, img := range images {
				if n := b.have(pid, img); n < 2 {
					t.Errorf("%d sites have an image of an index that was answered as stored at two", n)
				}
			}
		})
	}
}

// TestDurable_NothingToHoldIsAskedAnyway: a site that does not answer has not
// taken a manifest that names no blobs.
func TestDurable_NothingToHoldIsAskedAnyway(t *testing.T) {
	b := newBed(t, []string{"fra", "nyc"})
	fra, nyc := b.site("fra"), b.site("nyc")
	pid, _ := b.durable("prod", 2)
	b.part(fra, nyc)
	put := fra.indexOf(pid, "app")
	put.Tags = []string{"1"}
	var few *tags.NotDurable
	if err := fra.door.Put(t.Context(), put, tags.Condition{}); !errors.As(err, &few) || few.Visible || few.Have != 1 {
		t.Fatalf("an index without images while a site of two is away: %v", err)
	}
	if _, err := fra.store.Catalog().Manifest(pid, "app", put.Digest); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("it is visible: %v", err)
	}
}
