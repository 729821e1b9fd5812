package swarm

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
)

// opened counts what is opened of a store.
type opened struct {
	supply
	n atomic.Int64
}

func (o *opened) Open(ctx context.Context, d digest.Digest, pid identity.ProjectID) (store.Blob, error) {
	o.n.Add(1)
	return o.supply.Open(ctx, d, pid)
}

// A small blob that Small gives is sent without Access and the store being asked, one
// that it does not give as any; and what it refuses, Access refuses.
func TestSmall_AnswersInTheirPlace(t *testing.T) {
	l := newLab(t)
	from, to := l.start(), l.start()
	l.held(from)
	ws, bodies := from.littles(40)
	given := map[digest.Digest][]byte{}
	for i, w := range ws {
		if i%2 == 0 {
			given[w.Digest] = bodies[i]
		}
	}
	cfg := from.config(slog.New(slog.DiscardHandler))
	var asked, gave atomic.Int64
	access := cfg.Access
	cfg.Access = func(ctx context.Context, node identity.NodeID, d digest.Digest, pid identity.ProjectID) bool {
		asked.Add(1)
		return access(ctx, node, d, pid)
	}
	cfg.Small = func(_ identity.NodeID, d digest.Digest, _ identity.ProjectID) ([]byte, bool) {
		b, ok := given[d]
		if ok {
			gave.Add(1)
		}
		return b, ok
	}
	src := &opened{supply: supply{from.swarm}}
	from.host.Handle(Protocol, newServer(cfg, src, from.swarm.metrics).serve)
	l.check(to.fetchAll(t.Context(), ws))
	for _, b := range bodies {
		to.has(b)
	}
	if gave.Load() != 20 || asked.Load() != 20 || src.n.Load() != 20 {
		t.Errorf("Small gave %d, Access was asked for %d and the store for %d, want 20 each", gave.Load(), asked.Load(), src.n.Load())
	}
	if from.sent() != 40 || to.got() != 40 {
		t.Errorf("%d units sent, %d came, want 40", from.sent(), to.got())
	}
}
