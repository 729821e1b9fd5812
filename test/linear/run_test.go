package linear

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/test/lab"
)

const (
	clients = 8
	objects = 4
	// callTimeout bounds a call; a node's own bound is an election timeout or two.
	callTimeout = 5 * time.Second
)

// world is a mesh under calls and faults.
type world struct {
	t     *testing.T
	mesh  *lab.Mesh
	start time.Time
	ids   []int64

	mu      sync.Mutex
	history []porcupine.Operation
}

// newWorld makes a mesh whose sites all vote, and the objects.
func newWorld(t *testing.T, sites ...string) *world {
	t.Helper()
	w := &world{t: t, mesh: lab.New(t.TempDir()), start: time.Now()}
	t.Cleanup(func() {
		if err := w.mesh.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.mesh.Grow(ctx, consensus.LAN, sites...); err != nil {
		t.Fatal(err)
	}
	for i := range objects {
		res, err := w.mesh.Sites()[0].Node().Propose(ctx, "user:admin", &command.UserCreate{Name: fmt.Sprintf("u%d", i), PasswordHash: "x"})
		if err != nil {
			t.Fatal(err)
		}
		w.ids = append(w.ids, res.ID)
	}
	for _, s := range w.mesh.Sites() { // a version of 0 would be no condition
		if _, err := s.Node().CatchUp(ctx); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) note(client int, c call, a answer, from time.Time) {
	w.record(client, c, a, a.unknown, from)
}

// record adds a call to the history; unknown: it may have been made at any time since.
func (w *world) record(client int, c, a any, unknown bool, from time.Time) {
	end := time.Since(w.start).Nanoseconds()
	if unknown {
		end = never
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history = append(w.history, porcupine.Operation{ClientId: client, Input: c, Call: from.Sub(w.start).Nanoseconds(), Output: a, Return: end})
}

func look(n *consensus.Node, id int64) object {
	u, _ := n.State().View().UserByID(id)
	return object{value: u.Comment, version: u.Version}
}

// do makes a call at a node and notes how it ended. What certainly was not made
// is no part of the history.
func (w *world) do(ctx context.Context, client int, n *consensus.Node, c call) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	from := time.Now()
	if c.kind == read {
		if _, err := n.CatchUp(ctx); err == nil {
			w.note(client, c, answer{object: look(n, c.object)}, from)
		}
		return
	}
	_, err := n.Propose(ctx, "user:admin", &command.UserUpdate{Id: c.object, Comment: &c.value, IfVersion: c.seen})
	var away *command.Unavailable
	switch {
	case err == nil:
		w.note(client, c, answer{}, from)
	case errors.Is(err, &command.Error{Code: command.CodeConflict}):
		w.note(client, c, answer{lost: true}, from)
	case errors.As(err, &away) && !away.Indeterminate:
	case errors.As(err, &away):
		w.note(client, c, answer{unknown: true}, from)
	default:
		w.t.Errorf("%+v: %v", c, err)
	}
}

// client calls until ctx ends, in an order that its seed gives.
func (w *world) client(ctx context.Context, id int, rng *rand.Rand) {
	sites := w.mesh.Sites()
	for i := 0; ctx.Err() == nil; i++ {
		at, c := sites[rng.IntN(len(sites))], call{object: w.ids[rng.IntN(len(w.ids))], kind: kind(rng.IntN(3))}
		pause := time.Duration(rng.IntN(20)) * time.Millisecond
		n := at.Node()
		if n == nil {
			pause = 20 * time.Millisecond // it was killed
		} else {
			c.value = fmt.Sprintf("%d.%d", id, i)
			if c.kind == swap {
				// Mostly the last version; now and then one that is gone.
				c.seen = max(1, look(n, c.object).version-uint64(rng.IntN(2)*rng.IntN(2)))
			}
			w.do(context.WithoutCancel(ctx), id, n, c)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// run lets clients call for a while, under faults.
func (w *world) run(length time.Duration, seed uint64) {
	ctx, cancel := context.WithTimeout(w.t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	for id := range clients {
		wg.Go(func() { w.client(ctx, id, rand.New(rand.NewPCG(seed, uint64(id)))) })
	}
	f := &faults{world: w, rng: rand.New(rand.NewPCG(seed, clients))}
	f.run(ctx)
	wg.Wait()
	f.repair()
}

// check looks for an order that explains the history.
func check(history []porcupine.Operation, within time.Duration) (porcupine.CheckResult, porcupine.LinearizationInfo) {
	return porcupine.CheckOperationsVerbose(model, history, within)
}

// chosenSeed is the seed of a run, which it tells: that of -seed, or any.
func chosenSeed(t *testing.T) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	return seed
}

// show fails the test, and draws the history that is not linearizable.
func show(t *testing.T, m porcupine.Model, result porcupine.CheckResult, info porcupine.LinearizationInfo, name string, seed uint64) {
	t.Helper()
	path := filepath.Join(os.TempDir(), fmt.Sprintf("portolan-%s-%d.html", name, seed))
	if err := porcupine.VisualizePath(m, info, path); err != nil {
		t.Error(err)
	}
	t.Errorf("the history is %s: seed %d, shown in %s", result, seed, path)
}
