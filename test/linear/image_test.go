package linear

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/test/lab"
)

// imageRounds is how many disks are put back in a run.
const imageRounds = 4

// TestLinearizable_OldImages puts the disks of voters back to what they were,
// the leader's as well, while clients go on. Nothing that was answered is lost.
func TestLinearizable_OldImages(t *testing.T) {
	seed := chosenSeed(t)
	rounds := imageRounds
	if testing.Short() {
		rounds = 2
	}
	w := newWorld(t, "ams", "fra", "sgp")
	ctx, end := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for id := range clients {
		wg.Go(func() { w.client(ctx, id, rand.New(rand.NewPCG(seed, uint64(id)))) })
	}
	rng := rand.New(rand.NewPCG(seed, clients))
	for i := range rounds {
		if err := w.putBack(ctx, i, rng); err != nil {
			t.Errorf("round %d: %v", i, err)
			break
		}
	}
	end()
	wg.Wait()
	t.Logf("%d calls", len(w.history))
	if result, _ := check(w.history, checkFor); result != porcupine.Ok {
		t.Errorf("the history is %s: seed %d", result, seed)
	}
}

// putBack takes an image of a site, lets the mesh go on, and puts it back.
func (w *world) putBack(ctx context.Context, round int, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	leads, others, err := w.mesh.Leader(ctx)
	if err != nil {
		return err
	}
	s := others[rng.IntN(len(others))]
	if round%2 == 1 {
		s = leads
	}
	image := filepath.Join(w.t.TempDir(), "image")
	if err := s.Kill(); err != nil {
		return err
	}
	if err := s.Image(image); err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return err
	}
	if err := w.answers(ctx, s, nil); err != nil {
		return err
	}
	wait(ctx, time.Duration(300+rng.IntN(700))*time.Millisecond)
	if err := s.Kill(); err != nil {
		return err
	}
	if err := s.PutBack(image); err != nil {
		return err
	}
	if err := s.Start(); err != nil {
		return err
	}
	w.t.Logf("%6s: %s is at an old image", time.Since(w.start).Round(time.Millisecond), s.Name)
	return w.answers(ctx, s, s.Node())
}

// answers waits until the site reads strictly, with another node than the one
// that is given (it has begun anew then), and the leader has three voters: while
// it has two, on the way, an image of one of them is a lost majority.
func (w *world) answers(ctx context.Context, s *lab.Site, not *consensus.Node) error {
	for {
		if n := s.Node(); n != nil && n != not {
			_, err := n.CatchUp(ctx)
			leads, _, lost := w.mesh.Leader(ctx)
			if err == nil && lost == nil {
				if l := leads.Node(); l != nil && len(l.Status().Voters) == 3 {
					return nil
				}
			}
		}
		if !wait(ctx, 20*time.Millisecond) {
			return fmt.Errorf("site %s is not back: %w", s.Name, ctx.Err())
		}
	}
}
