package swarm

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
)

func TestSwarm_AHurriedFetchTakesNoTurn(t *testing.T) {
	s := newLab(t).start().swarm
	s.mu.Lock()
	s.running = maxActive
	s.mu.Unlock()
	w := Want{Digest: digest.FromString("x"), Class: catalog.Placed}
	f := newFlight(s, w)
	defer f.cancel()
	begun := make(chan error, 1)
	f.joined(w, false)
	go func() { begun <- s.turn(f) }()
	eventually(t, "it waits", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.queue) == 1 })
	w.Hurry = true
	s.mu.Lock()
	f.joined(w, false)
	s.mu.Unlock()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	for range maxActive + 1 {
		s.over()
	}
}
