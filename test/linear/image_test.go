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
const imageRounds = 1

// TestLinearizable_OldImages puts the disks of voters that follow back to what
// they were while clients go on. (A second image, or that of a node that led, comes back safely,
// but at times without its vote: consensus/DESIGN.md, "What fails".) Nothing that was answered is lost.
func TestLinearizable_OldImages(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	rounds := imageRounds
	if testing.Short() {
		rounds = 1
	}
	w := newWorld(t, "ams", "fra", "sgp")
	ctx, end := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for id := range clients {
		wg.Go(func() { w.client(ctx, id, rand.New(rand.NewPCG(seed, uint64(id)))) })
	}
	rng := rand.New(rand.NewPCG(seed, clients))
	for i := range rounds {
		if err := w.putBack(ctx, rng); err != nil {
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
func (w *world) putBack(ctx context.Context, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	_, others, err := w.mesh.Leader(ctx)
	if err != nil {
		return err
	}
	s := others[rng.IntN(len(others))]
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

// answers waits until the site votes and reads strictly, with another node than
// the one that is given: it has begun anew then.
func (w *world) answers(ctx context.Context, s *lab.Site, not *consensus.Node) error {
	for {
		if n := s.Node(); n != nil && n != not && n.Status().Role == "voter" {
			if _, err := n.CatchUp(ctx); err == nil {
				return nil
			}
		}
		if !wait(ctx, 20*time.Millisecond) {
			return fmt.Errorf("site %s is not back: %w", s.Name, ctx.Err())
		}
	}
}
