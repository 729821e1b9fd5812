package swarm

import (
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/peer"
)

// heap is what is in use after a collection.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// putLarge takes a blob in that is never in memory as a whole.
func (n *node) putLarge(size int64) Want {
	n.lab.t.Helper()
	ctx := n.lab.t.Context()
	id, err := n.store.CreateUpload(ctx)
	n.lab.check(err)
	u, err := n.store.Upload(ctx, id)
	n.lab.check(err)
	sum := digest.SHA256.Digester()
	_, err = u.Append(ctx, io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sum.Hash()))
	n.lab.check(err)
	d, err := u.Commit(ctx, sum.Digest(), store.Link{PID: project, Repo: "r"})
	n.lab.check(err)
	return Want{Digest: d.Digest, Size: d.Size, PID: project, Class: catalog.Cached}
}

// What clients and transfers cost is bounded by windows, not by blobs or clients:
// 16 MiB asked ahead, the units between network and disk, a copy buffer a client.
func TestOpenBlob_MemoryIsBoundedWhateverClientsDo(t *testing.T) {
	const (
		size    = 48 * mib
		clients = 25
		bound   = 2*inflightBytes + 16*mib // both ends are in this process
	)
	for _, c := range []struct {
		name    string
		full    bool // the disk: blobs pass through
		clients int
		bound   int64
	}{
		{"stored", false, clients, bound},
		{"passed through", true, maxPassing, maxPassing * (bound + passWindow)},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			a, b := l.start(), l.start()
			l.held(a)
			if c.full {
				b.swarm.keep = fullDisk
			}
			w := a.putLarge(size)
			before := heap()
			var (
				mu  sync.Mutex
				top int64
				wg  sync.WaitGroup
			)
			for i := range c.clients {
				wg.Go(func() {
					r, err := b.swarm.OpenBlob(t.Context(), w)
					if err != nil {
						t.Error(err)
						return
					}
					defer r.Close()
					sum := digest.SHA256.Digester()
					buf := make([]byte, 32<<10)
					for done := 0; ; {
						var n int
						n, err = r.Read(buf)
						_, _ = sum.Hash().Write(buf[:n])
						if i == 0 && done/(8*mib) != (done+n)/(8*mib) {
							mu.Lock()
							top = max(top, heap()-before)
							mu.Unlock()
						}
						done += n
						if err != nil {
							break
						}
					}
					if !errors.Is(err, io.EOF) || sum.Digest() != w.Digest {
						t.Errorf("ended with %v, digest right: %v", err, sum.Digest() == w.Digest)
					}
				})
			}
			wg.Wait()
			t.Logf("at most %.1f MiB more than before", float64(top)/mib)
			if top > c.bound {
				t.Errorf("%d MiB more in use, want at most %d", top/mib, c.bound/mib)
			}
		})
	}
}

// Peers that ask for much and read nothing cost a window and a buffer a stream, of
// which there are so many at most, whatever they open; and nobody else waits for them.
func TestServer_ReceiversThatReadNothing(t *testing.T) {
	const (
		evil, streams = 5, maxSessions
		// What the host admits of one protocol, with a first window (the receivers are in
		// this process too) and a buffer each, and what goes to who fetches.
		admits, window = 128, 256 << 10
		bound          = admits*(window+copyBuffer)*3/2 + 2*inflightBytes
	)
	l := newLab(t)
	a, b := l.start(), l.start()
	l.held(a)
	w := a.putLarge(32 * mib)
	hosts := make([]*peer.Host, evil)
	for i := range hosts {
		hosts[i] = l.bare()
	}
	before := heap()
	opened := 0
open:
	for range streams {
		for _, h := range hosts {
			st, err := h.Open(t.Context(), a.id.ID, Protocol)
			if err != nil {
				continue // it has as many as it may
			}
			defer st.Reset()
			opened++
			ss := &session{st: st}
			for first := 0; first < unitsOf(int(w.Size)); first += maxRun {
				if err := ss.ask(w.Digest, w.PID, order{first: first, n: maxRun}); err != nil {
					continue open // reset meanwhile, for the sake of others
				}
			}
		}
	}
	if opened < admits {
		t.Errorf("%d streams were opened, and %d are admitted: the test says nothing", opened, admits)
	}
	// Each is answered until its window is full.
	if err := b.swarm.Fetch(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if a.sent() < unitsOf(int(w.Size)) {
		t.Fatalf("%d units sent", a.sent())
	}
	used := heap() - before
	t.Logf("%d streams cost %.1f MiB", opened, float64(used)/mib)
	if used > bound {
		t.Errorf("%d MiB in use for %d streams, want at most %d", used/mib, opened, bound/mib)
	}
}
