package consensus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/consensus/command"
)

// TestCatchUp_SeesWhatWasAnswered: an edit that was answered anywhere is there
// after CatchUp, at every node.
func TestCatchUp_SeesWhatWasAnswered(t *testing.T) {
	t.Parallel()
	m, all := three(t)
	learner := m.site("tyo")
	learner.join(all[0])
	all = append(all, learner)
	for i := range 20 {
		by, at := all[i%len(all)], all[(i/2+1)%len(all)]
		name := fmt.Sprintf("p%d", i)
		by.mustCreateProject(name)
		index, err := at.node.CatchUp(t.Context())
		if err != nil {
			t.Fatalf("at %s: %v", at.name, err)
		}
		if !at.has(name) || index > at.node.State().View().Index() {
			t.Fatalf("%s was made at %s, and a strict read at %s (index %d) does not have it", name, by.name, at.name, index)
		}
	}
}

// TestCatchUp_IsShared: who waits at the same time needs no barrier of his own.
func TestCatchUp_IsShared(t *testing.T) {
	_, all := three(t)
	leader, others := leaderOf(t, all)
	before := testutil.ToFloat64(leader.node.stats.barriers)
	var wg sync.WaitGroup
	const readers, rounds = 50, 10
	for _, s := range others {
		for range readers {
			wg.Go(func() {
				for range rounds {
					if _, err := s.node.CatchUp(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	// Each node asks for one at a time: a round of all its readers needs two at most.
	made := testutil.ToFloat64(leader.node.stats.barriers) - before
	if most := float64(2 * (rounds + 1) * len(others)); made > most || made < 1 {
		t.Errorf("%d strict reads made %g barriers, want %g at most", 2*readers*rounds, made, most)
	}
}

func strictRefused(t *testing.T, s *site, want ...string) {
	t.Helper()
	start := time.Now()
	_, err := s.node.CatchUp(t.Context())
	if d := time.Since(start); d > LAN.Election+2*LAN.Lease {
		t.Errorf("%s: held for %s", s.name, d)
	}
	var u *command.Unavailable
	if !errors.As(err, &u) || !u.Read || u.Indeterminate || !strings.Contains(u.Error(), "a strict read is not possible now") {
		t.Fatalf("%s: %v, want an Unavailable for a read", s.name, err)
	}
	await(t, "the loss is noticed", func() bool { return !s.node.Status().Majority })
	if _, err = s.node.CatchUp(t.Context()); !errors.As(err, &u) || fmt.Sprint(u.Sites) != fmt.Sprint(want) {
		t.Errorf("%s: %v, want the sites %v", s.name, err, want)
	}
}

// TestCatchUp_CutOff: neither a follower nor a leader that is cut off takes what
// it has for the newest, though the leader does not know that it leads no more.
func TestCatchUp_CutOff(t *testing.T) {
	m, all := three(t)
	leader, others := leaderOf(t, all)
	names := func(of []*site) []string {
		var out []string
		for _, s := range all {
			for _, o := range of {
				if s == o {
					out = append(out, s.name)
				}
			}
		}
		return out
	}
	for _, o := range others {
		m.net.set(leader.name, o.name, true)
	}
	strictRefused(t, leader, names(others)...)
	others[0].insist("elsewhere")
	if _, err := leader.node.CatchUp(t.Context()); err == nil {
		t.Fatal("a leader that was cut off reads strictly")
	}
	if _, err := others[1].node.CatchUp(t.Context()); err != nil || !others[1].has("elsewhere") {
		t.Fatalf("the majority: %v", err)
	}
	for _, o := range others {
		m.net.set(leader.name, o.name, false)
	}
	await(t, "the old leader reads strictly again", func() bool {
		_, err := leader.node.CatchUp(t.Context())
		return err == nil && leader.has("elsewhere")
	})
}

// TestShared_WhoComesLaterWaitsForTheNext: a reader may not share what began
// before it came.
func TestShared_WhoComesLaterWaitsForTheNext(t *testing.T) {
	began, end := make(chan int), make(chan struct{})
	count := 0
	var work sync.WaitGroup
	s := &shared[int]{work: &work, do: func() (int, error) {
		count++
		began <- count
		<-end
		return count, nil
	}}
	got := make(chan int, 3)
	wait := func() {
		n, err := s.wait(t.Context())
		if err != nil {
			t.Error(err)
		}
		got <- n
	}
	go wait()
	<-began
	// Two who come while the first is under way share the second.
	joined := func() *turn[int] {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.next
	}
	go wait()
	await(t, "the second waits", func() bool { return joined() != nil })
	go wait()
	given, cancel := context.WithCancel(t.Context())
	cancel()
	var u *command.Unavailable
	if _, err := s.wait(given); !errors.As(err, &u) {
		t.Errorf("who gave up: %v", err)
	}
	end <- struct{}{}
	if n := <-got; n != 1 {
		t.Errorf("the first got %d", n)
	}
	if n := <-began; n != 2 {
		t.Errorf("then came %d", n)
	}
	close(end)
	second := <-got
	if second < 2 {
		t.Errorf("who came later got %d", second)
	}
	select {
	case <-began: // the third came after the second had begun
	case n := <-got:
		got <- n
	}
	<-got
	work.Wait()
}
