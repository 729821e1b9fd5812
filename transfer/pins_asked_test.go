package transfer

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/node/identity"
	syncer "github.com/portolan/portolan/transfer/sync"
)

// narrow is an exchange with sites that take pinQuestions questions at a time, and have
// all that they are asked for. No question ends before some site is asked so many.
type narrow struct {
	Exchange
	mu   sync.Mutex
	at   map[identity.NodeID]int
	full chan struct{}
}

func (n *narrow) Has(_ context.Context, node identity.NodeID, q syncer.Question) (syncer.Answer, error) {
	n.mu.Lock()
	n.at[node]++
	now := n.at[node]
	if now == pinQuestions {
		select {
		case <-n.full:
		default:
			close(n.full)
		}
	}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.at[node]--
		n.mu.Unlock()
	}()
	if now > pinQuestions {
		return syncer.Answer{}, errors.New("no stream is left")
	}
	<-n.full
	a := syncer.Answer{Blobs: make([]syncer.Holding, len(q.Blobs))}
	for i := range a.Blobs {
		a.Blobs[i] = syncer.Placed
	}
	return a, nil
}

// TestNotFetchedAt_ManyProjects: a site is asked about more projects than it takes
// streams from another one, and says of all what it has.
func TestNotFetchedAt_ManyProjects(t *testing.T) {
	exchange := &narrow{at: map[identity.NodeID]int{}, full: make(chan struct{})}
	r := &Reconciler{cfg: Config{State: state.New(), Sync: exchange}, log: slog.New(slog.DiscardHandler)}
	unsure := map[asker][]digest.Digest{}
	for node := range byte(2) {
		for range 40 {
			unsure[asker{identity.NodeID{node + 1}, identity.NewProjectID()}] = []digest.Digest{digest.FromString("one"), digest.FromString("two")}
		}
	}
	if n := r.notFetchedAt(t.Context(), unsure); n != 0 {
		t.Errorf("%d blobs count as not fetched, and both sites have all", n)
	}
}
