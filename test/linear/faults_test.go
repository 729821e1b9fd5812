package linear

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/portolan/portolan/test/lab"
)

// faults breaks the mesh and repairs it, one trouble at a time.
type faults struct {
	*world
	rng  *rand.Rand
	dead []*lab.Site
}

// troubles in the order in which a run goes through them, from a place that the
// seed gives: a short run has each kind once or twice.
var troubles = []struct {
	name string
	do   func(*faults, []*lab.Site)
}{
	{"the leader is killed", (*faults).killLeader},
	{"a site is cut off", (*faults).cutOff},
	{"the leader is heard and hears nothing", (*faults).deafLeader},
	{"the leader hears and is not heard", (*faults).muteLeader},
	{"two halves meet at one site", (*faults).bridge},
	{"links are slow", (*faults).slow},
}

// run lets a trouble last longer than an election, and the peace after it less.
func (f *faults) run(ctx context.Context) {
	first := f.rng.IntN(len(troubles))
	for i := 0; ; i++ {
		trouble := troubles[(first+i)%len(troubles)]
		lasts := time.Duration(800+f.rng.IntN(1600)) * time.Millisecond
		peace := time.Duration(200+f.rng.IntN(500)) * time.Millisecond
		if !wait(ctx, peace) {
			return
		}
		f.t.Logf("%6s: %s for %s", time.Since(f.start).Round(time.Millisecond), trouble.name, lasts)
		sites := f.mesh.Sites()
		f.rng.Shuffle(len(sites), func(i, j int) { sites[i], sites[j] = sites[j], sites[i] })
		trouble.do(f, sites)
		if !wait(ctx, lasts) {
			return
		}
		f.repair()
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (f *faults) repair() {
	f.mesh.Net.Heal()
	f.mesh.Net.Delay(0)
	for _, s := range f.dead {
		if err := s.Start(); err != nil {
			f.t.Errorf("start %s: %v", s.Name, err)
		}
	}
	f.dead = nil
}

// leader puts the site that leads first; if none is known, any is.
func leader(sites []*lab.Site) []*lab.Site {
	for i, s := range sites {
		if n := s.Node(); n != nil && n.Status().IsLeader {
			sites[0], sites[i] = sites[i], sites[0]
		}
	}
	return sites
}

func (f *faults) killLeader(sites []*lab.Site) {
	s := leader(sites)[0]
	if err := s.Kill(); err != nil {
		f.t.Errorf("kill %s: %v", s.Name, err)
	}
	f.dead = append(f.dead, s)
}

func (f *faults) cutOff(sites []*lab.Site) {
	if f.rng.IntN(2) == 0 {
		sites = leader(sites)
	}
	for _, o := range sites[1:] {
		f.mesh.Net.CutBoth(sites[0].Name, o.Name)
	}
}

func (f *faults) deafLeader(sites []*lab.Site) {
	sites = leader(sites)
	for _, o := range sites[1:] {
		f.mesh.Net.Cut(o.Name, sites[0].Name)
	}
}

func (f *faults) muteLeader(sites []*lab.Site) {
	sites = leader(sites)
	for _, o := range sites[1:] {
		f.mesh.Net.Cut(sites[0].Name, o.Name)
	}
}

// bridge leaves one site that reaches both halves, which do not reach each other.
func (f *faults) bridge(sites []*lab.Site) {
	rest := sites[1:]
	half := len(rest) / 2
	for _, a := range rest[:half] {
		for _, b := range rest[half:] {
			f.mesh.Net.CutBoth(a.Name, b.Name)
		}
	}
}

func (f *faults) slow([]*lab.Site) {
	most := 10 + f.rng.IntN(90)
	f.mesh.Net.DelayBy(func(from, to string) time.Duration {
		return time.Duration(rand.IntN(most)) * time.Millisecond // its own chance: asked from many goroutines
	})
}
