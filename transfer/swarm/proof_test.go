package swarm

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

// What a flight for one project brings is not given to another project's readers
// or peers, while it comes or after, until it is proven (invariant T15).
func TestProof_FlightIsForOneProject(t *testing.T) {
	l := newLab(t)
	a, b, c := l.start(), l.start(), l.start()
	// Both may have both projects, which both name the blob.
	b.swarm.server.access = func(context.Context, identity.NodeID, digest.Digest, identity.ProjectID) bool { return true }
	data := content(5 * mib)
	w := a.put(data)
	l.held(a)
	gate, begun := make(chan struct{}), make(chan struct{}, 64)
	f := &faulty{source: supply{a.swarm}, read: func(ctx context.Context, off int64, _ []byte) error {
		if off < 2*mib {
			return nil
		}
		begun <- struct{}{}
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	a.host.Handle(Protocol, newServer(a.config(a.swarm.log), f, a.swarm.metrics).serve)
	mine := make(chan error, 1)
	go func() { mine <- b.swarm.Fetch(t.Context(), w) }()
	<-begun // some of it is at b
	other := w
	other.PID = identity.NewProjectID()
	var proofs atomic.Int32
	b.swarm.cfg.Prove = func(_ context.Context, d digest.Digest, pid identity.ProjectID) error {
		proofs.Add(1)
		if d != w.Digest || pid != other.PID {
			t.Errorf("a proof of %s for %s", d, pid)
		}
		return store.ErrNotFound
	}
	l.held(b)
	if err := c.swarm.Fetch(t.Context(), other); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("b gave what arrives for another project: %v", err)
	}
	theirs := make(chan error, 1)
	go func() {
		r, err := b.swarm.OpenBlob(t.Context(), other)
		if err == nil {
			_ = r.Close()
		}
		theirs <- err
	}()
	close(gate)
	if err := <-mine; err != nil {
		t.Fatal(err)
	}
	l.held() // b has it, and nobody else
	if err := <-theirs; !errors.Is(err, store.ErrNotFound) {
		t.Errorf("another project's reader: %v", err)
	}
	l.held(b)
	if err := c.swarm.Fetch(t.Context(), other); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("b gave what it has for another project: %v", err)
	}
	if proofs.Load() == 0 {
		t.Error("nobody was asked to show it")
	}
	// Once it is shown it is read where it is.
	sent := a.sent()
	b.swarm.cfg.Prove = func(ctx context.Context, d digest.Digest, pid identity.ProjectID) error {
		return b.store.Catalog().Prove(ctx, d, pid)
	}
	r, err := b.swarm.OpenBlob(t.Context(), other)
	l.check(err)
	got, err := io.ReadAll(r)
	l.check(errors.Join(err, r.Close()))
	if digest.FromBytes(got) != w.Digest || a.sent() != sent {
		t.Errorf("%d bytes, %d units more from a", len(got), a.sent()-sent)
	}
	l.check(c.swarm.Fetch(t.Context(), other))
}

// Units that an earlier flight left are those of its project: a resume for
// another one ends with a proof, one for the same needs none.
func TestProof_ResumeOfAnotherProject(t *testing.T) {
	for name, same := range map[string]bool{"the same project": true, "another project": false} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			a, b := l.start(), l.start()
			w := a.put(content(5 * mib))
			rec, list, err := a.store.Record(t.Context(), w.Digest)
			l.check(err)
			p, err := b.store.BeginFetch(t.Context(), rec, list)
			l.check(err)
			for i := range 3 {
				unit, n, err := a.store.ReadUnits(t.Context(), w.Digest, i, 1)
				l.check(err)
				data := make([]byte, n)
				_, err = io.ReadFull(unit, data)
				l.check(errors.Join(err, unit.Close()))
				if i == 0 {
					from := w.PID
					if !same {
						from = identity.NewProjectID()
					}
					if !p.Serve(from) {
						t.Error("an empty partial is somebody's")
					}
				}
				l.check(p.Put(i, data))
			}
			l.check(p.Close())
			l.held(a)
			proofs := 0
			b.swarm.cfg.Prove = func(ctx context.Context, d digest.Digest, pid identity.ProjectID) error {
				proofs++
				return b.store.Catalog().Prove(ctx, d, pid)
			}
			w.Class = catalog.Placed
			l.check(b.swarm.Fetch(t.Context(), w))
			if (proofs == 0) != same || a.sent() > 4 {
				t.Errorf("%d proofs, %d units sent", proofs, a.sent())
			}
			if ok, err := b.store.Catalog().Proven(w.PID, w.Digest); !ok || err != nil {
				t.Errorf("it is its project's: %t, %v", ok, err)
			}
		})
	}
}
