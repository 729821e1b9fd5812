package swarm

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/units"
	"github.com/portolan/portolan/test/faultfs"
	"github.com/portolan/portolan/transfer/peer"
	"github.com/portolan/portolan/transfer/plane"
)

// receiverRequest has a child of the test fetch a blob until some of it is here.
type receiverRequest struct {
	Dir    string
	Want   Want
	Holder []byte // node id
	Host   string
	Port   int
	Bytes  int64
}

// serveReceiver runs in the child, which goes on with the fetch when it has answered,
// until it is killed.
func serveReceiver(raw json.RawMessage) error {
	var r receiverRequest
	if err := json.Unmarshal(raw, &r); err != nil {
		return err
	}
	holder, err := identity.NodeIDFromBytes(r.Holder)
	if err != nil {
		return err
	}
	id, _, err := identity.LoadOrCreate(r.Dir)
	if err != nil {
		return err
	}
	st, err := store.Open(context.Background(), store.Config{Dir: filepath.Join(r.Dir, "store"), Identity: id})
	if err != nil {
		return err
	}
	host, err := peer.New(peer.Config{Identity: id, Listen: "127.0.0.1:0", Members: func(n identity.NodeID) (string, int, bool) {
		return r.Host, r.Port, n == holder
	}})
	if err != nil {
		return err
	}
	s, err := New(Config{
		Store: st, Host: plane.Of(host), Holders: heldBy(holder), Signer: id,
		Access:      func(context.Context, identity.NodeID, digest.Digest, identity.ProjectID) bool { return false },
		KnownSigner: func(n identity.NodeID) bool { return n == holder },
	})
	if err != nil {
		return err
	}
	go func() { _ = s.Run(context.Background()) }()
	failed := make(chan error, 1)
	go func() { failed <- s.Fetch(context.Background(), r.Want) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-failed:
			return fmt.Errorf("the fetch ended: %w", err)
		case <-tick.C:
		}
		if p := s.Progress(); len(p) == 1 && p[0].Done >= r.Bytes {
			return nil
		}
	}
}

// heldBy is a node that holds everything.
type heldBy identity.NodeID

func (h heldBy) Holders(context.Context, digest.Digest, identity.ProjectID, int64) []identity.NodeID {
	return []identity.NodeID{identity.NodeID(h)}
}

// A process that is killed midway has written down what is here: of what came, 64 MiB
// at most is fetched again.
func TestFetch_ResumesAfterAKill(t *testing.T) {
	const size, killedAt, again = 208 * mib, 150, 64
	l := newLab(t)
	a := l.start()
	data := content(size)
	w := a.put(data)
	l.held(a)
	g := newGate(killedAt * mib)
	a.bend(&faulty{read: g.read})
	dir := t.TempDir()
	id, _, err := identity.LoadOrCreate(dir)
	l.check(err)
	l.mu.Lock()
	l.members[id.ID] = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	at := l.members[a.id.ID]
	l.mu.Unlock()
	child := faultfs.StartWorker(t)
	l.check(child.Do(receiverRequest{
		Dir: dir, Want: w, Holder: a.id.ID[:], Host: at.IP.String(), Port: at.Port, Bytes: killedAt * units.Unit,
	}))
	l.check(child.Kill())
	child.Wait()
	g.open(size)
	b := l.startIn(dir)
	if err := b.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	b.has(data)
	if left := size/mib - killedAt; b.got() > left+again || b.got() < left {
		t.Fatalf("%d units fetched after the kill: %d were missing, and %d may come again", b.got(), left, again)
	}
}
