package transfer_test

import (
	"context"
	"errors"
	"io"
	"slices"
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

// relied is a bed in which a push at fra to open relies on a blob that nyc was pushed,
// while fra has the same bytes for shut.
type relied struct {
	*bed
	fra, nyc, sgp *site
	open, shut    identity.ProjectID
	blob          digest.Digest
	size          int64
	goOn          func() // lets fra fetch it for open
}

func newRelied(t *testing.T) *relied {
	b := newBed(t, []string{"fra", "nyc", "sgp"})
	s := &relied{bed: b, fra: b.site("fra"), nyc: b.site("nyc"), sgp: b.site("sgp"), open: b.project("open"), shut: b.project("shut")}
	s.fra.push(s.open, "app", "1") // a project without entries is not asked for
	eventually(t, "entries", func() bool { return equal(s.open, s.fra, s.nyc, s.sgp) })
	layer := []byte("a layer of both projects")
	for n, pid := range map[*site]identity.ProjectID{s.nyc: s.open, s.fra: s.shut} {
		d, err := n.store.PutBytes(t.Context(), layer, store.Link{PID: pid, Repo: "app"})
		must(t, err)
		s.blob, s.size = d.Digest, d.Size
	}
	eventually(t, "nyc knows that fra has the blob", func() bool {
		stores, err := s.nyc.store.Catalog().Holders(s.blob)
		return err == nil && slices.Contains(stores, s.fra.store.ID())
	})
	s.goOn = s.fra.sticks(func(w swarm.Want) bool { return w.Digest == s.blob && w.PID == s.open })
	t.Cleanup(s.goOn)
	c, err := s.fra.rec.Claim(t.Context(), s.open, "app", []transfer.Descriptor{{Digest: s.blob, Size: s.size}})
	if err != nil || !slices.Equal(c.Claimed, []digest.Digest{s.blob}) {
		t.Fatalf("claim: %+v, %v", c, err)
	}
	return s
}

// underWay is how many pushes nyc says are not done; 0: it may be removed.
func (s *relied) underWay() int {
	s.t.Helper()
	_, err := s.sgp.lastCopies(transfer.LeaveQuestion{Site: "nyc", For: time.Minute})
	var busy *transfer.PushingError
	if errors.As(err, &busy) {
		return busy.UnderWay
	}
	must(s.t, err)
	return 0
}

// TestHold_ACopyForAnotherProjectIsNone: nyc has the last copy that readers of open can
// get, whatever its feeds say of fra's store.
func TestHold_ACopyForAnotherProjectIsNone(t *testing.T) {
	s := newRelied(t)
	if n := s.underWay(); n != 1 {
		t.Fatalf("%d blobs that fra relies on and has not got for open, want 1", n)
	}
	s.goOn()
	eventually(t, "nyc hears that fra has it for open", func() bool { return s.underWay() == 0 })
	// Nothing of open names it yet, and it is open's for good.
	if _, _, linked, err := s.fra.store.Catalog().LinkedIn(s.open, s.blob); err != nil || !linked {
		t.Errorf("what the push relies on is open's at fra: %t, %v", linked, err)
	}
	if err := s.fra.store.Collect(t.Context(), s.blob); !errors.Is(err, catalog.ErrInUse) {
		t.Errorf("collected before its manifest came: %v", err)
	}
	s.nyc.stop()
	s.propose(&command.NodeRemove{NodeId: s.nyc.id.ID[:], Lost: true})
	must(t, s.sgp.readsAs(s.open, s.blob, s.size))
}

// TestHold_WhoDoesNotAnswer has not got what it relies on, and who is gone relies on
// nothing.
func TestHold_WhoDoesNotAnswer(t *testing.T) {
	s := newRelied(t)
	s.goOn()
	eventually(t, "nyc hears that fra has it for open", func() bool { return s.underWay() == 0 })
	s.part(s.fra, s.nyc)
	if n := s.underWay(); n != 1 {
		t.Errorf("%d blobs whose site does not answer, want 1", n)
	}
	p, _ := s.sgp.state.View().ProjectByPID(s.open)
	s.propose(&command.ProjectSites{Id: p.ID, Sites: []string{"nyc", "sgp"}, Force: true})
	if n := s.underWay(); n != 0 {
		t.Errorf("%d blobs for a site that may not have the project any more", n)
	}
}

// readsAs reads a blob here on behalf of a project.
func (n *site) readsAs(pid identity.ProjectID, d digest.Digest, size int64) error {
	f, err := n.swarm.OpenBlob(context.Background(), swarm.Want{Digest: d, PID: pid, Class: catalog.Cached, Size: size})
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, f)
	return errors.Join(err, f.Close())
}
