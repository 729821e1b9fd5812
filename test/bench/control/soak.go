package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/lab"
)

const (
	// The soak's round trips: 400 +- 100 ms, each message on its own.
	soakTrip, soakJitter = 400 * time.Millisecond, 100 * time.Millisecond
	// editPause is between two edits of the soak, on average.
	editPause = time.Second
	// watchEvery is how often who leads is looked at: far below a heartbeat.
	watchEvery = 20 * time.Millisecond
)

// soakFar: the far profile at the longest round trips that it is for, with an
// edit a second at a follower. Nobody stands for election.
func (r *run) soakFar(ctx context.Context) error {
	m, err := r.mesh(ctx, "soak", consensus.Far, 0)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	m.Net.DelayBy(func(string, string) time.Duration {
		return soakTrip/2 + rand.N(soakJitter) - soakJitter/2
	})
	_, others, err := m.Leader(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.soak+time.Minute)
	defer cancel()
	watched := make(chan struct{})
	w := watch(m)
	watching, stop := context.WithCancel(ctx)
	go func() { defer close(watched); w.run(watching) }()
	defer func() { stop(); <-watched }()
	for range 3 { // connections
		if _, err := edit(ctx, others[0], "warm"); err != nil {
			return err
		}
	}
	var took []time.Duration
	failed := 0
	end := time.NewTimer(r.soak)
	defer end.Stop()
	for i, over := 0, false; !over; i++ {
		start := time.Now()
		if _, err := edit(ctx, others[0], fmt.Sprint(i)); err != nil {
			failed++
		} else {
			took = append(took, time.Since(start))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end.C:
			over = true
		case <-time.After(editPause/2 + rand.N(editPause)): // no rhythm that raft's timers could fall in with
		}
	}
	stop()
	<-watched
	note := fmt.Sprintf("%s at %s +- %s", r.soak, soakTrip, soakJitter)
	r.report("soak far: leader changes", float64(w.changes), "", figures.Never(), note)
	r.report("soak far: times that a node lost sight of the leader", float64(w.lost), "", figures.Never(), "")
	r.report("soak far: edits that failed", float64(failed), "", figures.Never(), fmt.Sprintf("of %d", failed+len(took)))
	if len(took) > 0 {
		r.report("soak far: edit at a follower, p50", quantile(took, 0.5), "ms", nil, "2.7 round trips + 20 ms are 1100")
		r.report("soak far: edit at a follower, p99", quantile(took, 0.99), "ms", nil, "3.5 round trips + 30 ms are 1430")
	}
	return nil
}

// watcher counts what must not happen in a soak. Terms tell of every election
// since it began, however short.
type watcher struct {
	mesh    *lab.Mesh
	term    uint64
	seen    map[string]bool // sites that see a leader
	changes uint64
	lost    int
}

func watch(m *lab.Mesh) *watcher {
	w := &watcher{mesh: m, seen: make(map[string]bool)}
	for _, s := range m.Sites() {
		st := s.Node().Status()
		w.term = max(w.term, st.Term)
		w.seen[s.Name] = !st.Leader.IsZero()
	}
	return w
}

func (w *watcher) run(ctx context.Context) {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	for {
		w.look()
		select {
		case <-ctx.Done():
			w.look()
			return
		case <-t.C:
		}
	}
}

func (w *watcher) look() {
	for _, s := range w.mesh.Sites() {
		st := s.Node().Status()
		if st.Term > w.term {
			w.changes += st.Term - w.term
			w.term = st.Term
		}
		sees := !st.Leader.IsZero()
		if w.seen[s.Name] && !sees {
			w.lost++
		}
		w.seen[s.Name] = sees
	}
}
