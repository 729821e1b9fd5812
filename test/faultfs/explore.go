package faultfs

import (
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

var (
	seedFlag    = flag.Uint64("faultfs.seed", 0, "seed of the crashes that are looked at; 0: the time")
	crashesFlag = flag.Int("faultfs.crashes", 0, "how many crashes of each script are looked at; 0: what fits into an ordinary run")
)

// Seed is what all chance of a test begins with. It is logged, and -faultfs.seed
// sets it.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("to see the same again: -faultfs.seed %d", seed)
	return seed
}

// Rounds is how often a test that takes the power from a whole node does so: n
// times, or -faultfs.crashes.
func Rounds(n int) int {
	if *crashesFlag > 0 {
		return *crashesFlag
	}
	return n
}

// Crashed is one crash and what had been marked before it.
type Crashed struct {
	N     int    // operations before it
	Seed  uint64 // see FS.Crash
	Image *Image
	Marks []Mark
}

// Explore calls check with crashes of f, from as many goroutines as there are
// workers: after each rename and each sync the one that leaves only what was
// synced, and then others by chance, up to atMost or -faultfs.crashes: after any
// operation, with only what was synced, with everything, or with what the seed
// says. Short tests look at a sample of all. It gives how many it looked at.
func Explore(t testing.TB, f *FS, seed uint64, atMost int, workers []*Worker, check func(w *Worker, c Crashed) error) int {
	t.Helper()
	if *crashesFlag > 0 {
		atMost = *crashesFlag
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	kinds, marks := f.Kinds(), f.Marks()
	type at struct {
		n    int
		seed uint64
	}
	var todo, more []at
	for n := range len(kinds) + 1 {
		if n > 0 && (kinds[n-1] == Rename || kinds[n-1] == Sync || kinds[n-1] == SyncDir) {
			todo = append(todo, at{n, 0})
		} else {
			more = append(more, at{n, 0})
		}
		more = append(more, at{n, 1}, at{n, rng.Uint64()}, at{n, rng.Uint64()})
	}
	shuffle := func(s []at) { rng.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] }) }
	shuffle(more)
	must := len(todo)
	todo = append(todo, more[:min(len(more), max(0, atMost-must))]...)
	shuffle(todo)
	if testing.Short() {
		todo = todo[:min(len(todo), atMost)]
	}
	next := make(chan at)
	var running sync.WaitGroup
	for _, w := range workers {
		running.Go(func() {
			for a := range next {
				c := Crashed{N: a.n, Seed: a.seed, Image: f.Crash(a.n, a.seed)}
				for _, m := range marks {
					if m.At <= a.n {
						c.Marks = append(c.Marks, m)
					}
				}
				if err := check(w, c); err != nil {
					t.Errorf("crash after operation %d (%s), seed %d: %v", a.n, append([]Kind{0}, kinds...)[a.n], a.seed, err)
				}
			}
		})
	}
	for _, a := range todo {
		if t.Failed() {
			break
		}
		next <- a
	}
	close(next)
	running.Wait()
	t.Logf("%d operations, %d of them syncs and renames; %d crashes looked at", len(kinds), must, len(todo))
	return len(todo)
}
