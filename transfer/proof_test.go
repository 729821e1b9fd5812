package transfer_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/swarm"
	syncer "github.com/portolan/portolan/transfer/sync"
)

// secret is a bed with a project that a member of another one knows digests of.
type secret struct {
	*bed
	fra, sgp, mal, kid *site
	open, shut         identity.ProjectID // mal and kid are members of open alone
	img                image              // of shut, at fra and sgp
	layer              []byte
}

func newSecret(t *testing.T) *secret {
	b := newBed(t, []string{"fra", "sgp", "mal", "kid"})
	s := &secret{bed: b, fra: b.site("fra"), sgp: b.site("sgp"), mal: b.site("mal"), kid: b.site("kid")}
	s.open, s.shut = b.project("open"), b.project("shut", "fra", "sgp")
	b.rule(&command.Rule{Name: "all", Projects: []string{"*"}, AllSites: true})
	s.layer = make([]byte, 2<<20+12345)
	_, _ = rand.Read(s.layer)
	s.img = s.fra.pushLayers(s.shut, "app", "", []string{"v1"}, s.layer)
	eventually(t, "shut's image is at sgp", func() bool { return s.sgp.holds(s.img) })
	return s
}

// lie writes an entry of open at mal that names what shut has, the manifest's own
// digest included, and waits until all have it.
func (s *secret) lie(repo string) {
	s.t.Helper()
	p := catalog.Put{PID: s.open, Repo: repo, Digest: s.img.digest, MediaType: "application/vnd.oci.image.manifest.v1+json",
		Size: int64(len(s.img.body)), Tags: []string{"v1"}, Home: "mal", Actor: "user:mallory"}
	for _, d := range s.img.blobs {
		row, err := s.fra.store.Catalog().Blob(d)
		must(s.t, err)
		p.Refs = append(p.Refs, catalog.Ref{Digest: d, Size: row.Size, Kind: catalog.RefBlob})
	}
	_, err := s.mal.store.Catalog().PutManifest(context.Background(), p)
	must(s.t, err)
	for _, n := range []*site{s.fra, s.sgp, s.kid} {
		eventually(s.t, "the lie is at "+n.name, func() bool { return n.tag(s.open, repo, "v1") == s.img.digest })
	}
}

// secrets are all digests of shut's image.
func (s *secret) secrets() []digest.Digest {
	return append([]digest.Digest{s.img.digest}, s.img.blobs...)
}

// refused: nobody who was asked has it, or some did not answer in time.
func refused(err error) bool {
	var away *store.Unreachable
	return errors.Is(err, store.ErrNotFound) || errors.As(err, &away)
}

// kept fails if anybody who is no member of shut can have something of it.
func (s *secret) kept(when string) {
	s.t.Helper()
	ctx := context.Background()
	for _, at := range []*site{s.fra, s.sgp} {
		for _, d := range s.secrets() {
			// A client of the honest site that may read open.
			if f, err := at.swarm.OpenBlob(ctx, swarm.Want{Digest: d, PID: s.open, Class: catalog.Cached}); err == nil {
				_ = f.Close()
				s.t.Errorf("%s: %s gives %s to open's readers", when, at.name, d)
			} else if !refused(err) {
				s.t.Errorf("%s: %s: %v", when, at.name, err)
			}
			a, err := s.mal.sync.Has(ctx, at.id.ID, syncer.Question{PID: s.open, Repository: "app", Manifests: []digest.Digest{d}, Blobs: []digest.Digest{d}})
			must(s.t, err)
			if a.Blobs[0] != syncer.Absent || a.Manifests[0] != syncer.Absent {
				s.t.Errorf("%s: %s tells mal that it has %s", when, at.name, d)
			}
		}
		pinned, err := s.mal.sync.Pin(ctx, at.id.ID, s.open, s.secrets(), time.Now().Add(time.Hour))
		must(s.t, err)
		if slices.Contains(pinned, true) {
			s.t.Errorf("%s: %s keeps shut's content for mal: %v", when, at.name, pinned)
		}
	}
	for _, who := range []*site{s.mal, s.kid} {
		for _, d := range s.secrets() {
			if err := who.swarm.Fetch(ctx, swarm.Want{Digest: d, PID: s.open, Class: catalog.Placed}); !refused(err) {
				s.t.Errorf("%s: %s fetched %s: %v", when, who.name, d, err)
			}
			if _, ok, err := who.store.Catalog().Content(d); ok || err != nil {
				s.t.Errorf("%s: %s has the bytes of %s (%v)", when, who.name, d, err)
			}
		}
	}
}

// A member that knows a digest of another project gets nothing by an entry that
// names it, nor do its project's readers anywhere.
func TestProof_EntryOfALiarOpensNothing(t *testing.T) {
	s := newSecret(t)
	s.lie("app")
	s.kept("after the entry")
	for _, n := range []*site{s.fra, s.sgp} {
		n.restart()
	}
	for _, n := range []*site{s.fra, s.sgp} {
		eventually(t, "mal reaches "+n.name, func() bool {
			_, err := s.mal.sync.Has(context.Background(), n.id.ID, syncer.Question{PID: s.open, Blobs: s.img.blobs[:1]})
			return err == nil
		})
	}
	s.kept("after a restart")
	// Whose content it is can still read it.
	for _, d := range s.img.blobs {
		f, err := s.sgp.swarm.OpenBlob(context.Background(), swarm.Want{Digest: d, PID: s.shut, Class: catalog.Cached})
		must(t, err)
		must(t, f.Close())
	}
}

// Nor by asking for it to be kept, for a push that there is not.
func TestProof_KeepOfALiarOpensNothing(t *testing.T) {
	s := newSecret(t)
	var want []syncer.Piece
	for _, d := range s.img.blobs {
		row, err := s.fra.store.Catalog().Blob(d)
		must(t, err)
		want = append(want, syncer.Piece{Digest: d, Size: row.Size})
	}
	for range 3 {
		k, err := s.mal.sync.Keep(t.Context(), s.sgp.id.ID, s.open, "app", want)
		must(t, err)
		if slices.Contains(k.Kept, true) {
			t.Fatalf("sgp keeps shut's content for mal: %v", k.Kept)
		}
	}
	s.lie("app")
	s.kept("after the entry")
}

// One that says that it has the content, and shows something else, is named and
// gets nothing.
func TestProof_FalseProofIsRefused(t *testing.T) {
	s := newSecret(t)
	asked := make(chan struct{}, 100)
	s.mal.host.Handle("/portolan/ask/1", func(_ context.Context, _ identity.NodeID, st *peer.Stream) {
		for {
			q := new(syncer.AskRequest)
			if peer.ReadMsg(st, q, 1<<20) != nil {
				return
			}
			a := &syncer.AskResponse{}
			switch q := q.Question.(type) {
			case *syncer.AskRequest_Has:
				h := new(syncer.HasResponse)
				for range q.Has.Blobs {
					h.Blobs = append(h.Blobs, syncer.Placed)
				}
				for range q.Has.Manifests {
					h.Manifests = append(h.Manifests, syncer.Placed)
				}
				a.Answer = &syncer.AskResponse_Has{Has: h}
			case *syncer.AskRequest_Prove:
				a.Answer = &syncer.AskResponse_Prove{Prove: &syncer.ProveResponse{Mac: make([]byte, 32)}}
				asked <- struct{}{}
			default:
				_ = st.Reset()
				return
			}
			if peer.WriteMsg(st, a, 1<<20) != nil {
				return
			}
		}
	})
	s.lie("app")
	for _, d := range s.img.blobs {
		err := s.sgp.swarm.Fetch(t.Context(), swarm.Want{Digest: d, PID: s.open, Class: catalog.Placed})
		if !refused(err) {
			t.Errorf("%s: %v", d, err)
		}
		if ok, err := s.sgp.store.Catalog().Proven(s.open, d); ok || err != nil {
			t.Errorf("%s is open's: %v", d, err)
		}
	}
	if len(asked) == 0 {
		t.Error("mal was not asked to show anything")
	}
}

// What two projects really share is shown, and not sent again.
func TestProof_SharedLayerIsNotSentAgain(t *testing.T) {
	s := newSecret(t)
	before := s.sgp.received()
	img := s.fra.pushLayers(s.open, "app", "", []string{"v1"}, s.layer)
	shared := digest.FromBytes(s.layer)
	if !slices.Contains(img.blobs, shared) {
		t.Fatal("the images share no layer")
	}
	eventually(t, "sgp can give it to open", func() bool {
		ok, err := s.sgp.store.Catalog().Proven(s.open, shared)
		return err == nil && ok
	})
	if n := s.sgp.received() - before; n > 1<<20 {
		t.Errorf("%.0f bytes crossed", n)
	}
	// From sgp alone, to who is no member of shut.
	s.part(s.fra, s.mal)
	eventually(t, "mal has it", func() bool { return s.mal.holds(img) })
	// It is durable.
	s.sgp.restart()
	if ok, err := s.sgp.store.Catalog().Proven(s.open, shared); !ok || err != nil {
		t.Errorf("after the restart: %t, %v", ok, err)
	}
}

// received is how many bytes of blobs came here since the start.
func (n *site) received() (bytes float64) {
	n.t.Helper()
	families, err := n.wire.Gather()
	must(n.t, err)
	for _, f := range families {
		if strings.HasSuffix(f.GetName(), "_received_bytes_total") {
			for _, m := range f.GetMetric() {
				bytes += m.GetCounter().GetValue()
			}
		}
	}
	return bytes
}
