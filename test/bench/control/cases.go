package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portolan/portolan/consensus"
	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/test/bench/figures"
	"github.com/portolan/portolan/test/lab"
)

// cases in the order in which they run.
var cases = []struct {
	name string
	run  func(*run, context.Context) error
}{
	{"edit at a follower", (*run).followerEdit},
	{"edits through one leader", (*run).throughput},
	{"failover lan", func(r *run, ctx context.Context) error { return r.failover(ctx, consensus.LAN, 0, 4000) }},
	{"failover wan", func(r *run, ctx context.Context) error {
		return r.failover(ctx, consensus.WAN, 150*time.Millisecond, 8000)
	}},
	{"failover far", func(r *run, ctx context.Context) error {
		return r.failover(ctx, consensus.Far, 300*time.Millisecond, 13000)
	}},
	{"soak far", (*run).soakFar},
	{"state", func(r *run, ctx context.Context) error { return r.processes(ctx, "state") }},
	{"join of a fifth site", func(r *run, ctx context.Context) error { return r.processes(ctx, "fifth site") }},
	{"soak saturated", func(r *run, ctx context.Context) error { return r.processes(ctx, "soak saturated") }},
}

// roundTrip of the latency cases.
const roundTrip = 80 * time.Millisecond

// mesh makes three sites whose links then have a round trip.
func (r *run) mesh(ctx context.Context, name string, p consensus.Profile, rtt time.Duration) (*lab.Mesh, error) {
	if r.commit > 0 {
		p.Commit = r.commit
	}
	m := lab.New(r.dir + "/" + name)
	grow, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := m.Grow(grow, p, "ams", "fra", "sgp"); err != nil {
		_ = m.Close()
		return nil, err
	}
	m.Net.Delay(rtt / 2)
	return m, nil
}

// edit makes a user's comment something new.
func edit(ctx context.Context, at *lab.Site, text string) (command.Result, error) {
	return at.Node().Propose(ctx, "user:admin", &command.UserUpdate{Id: 2, Comment: &text})
}

// followerEdit: one client at a follower, one edit after the other, with pauses
// that have nothing to do with raft's timers.
func (r *run) followerEdit(ctx context.Context) error {
	m, err := r.mesh(ctx, "follower", consensus.WAN, roundTrip)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	_, others, err := m.Leader(ctx)
	if err != nil {
		return err
	}
	at := others[0]
	for range 3 { // connections
		if _, err := edit(ctx, at, "warm"); err != nil {
			return err
		}
	}
	var took, seen []time.Duration
	for i := range r.edits {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(37*i%101) * time.Millisecond):
		}
		start := time.Now()
		res, err := edit(ctx, at, fmt.Sprint(i))
		if err != nil {
			return err
		}
		took = append(took, time.Since(start))
		start = time.Now()
		for _, s := range m.Sites() {
			if err := applied(ctx, s, res.Index); err != nil {
				return err
			}
		}
		seen = append(seen, time.Since(start))
	}
	rtt := ms(roundTrip)
	r.report("edit at a follower, 80 ms, p50", quantile(took, 0.5), "ms", figures.AtMost(2.7*rtt+20), fmt.Sprintf("aim: %g", 2*rtt+15))
	r.report("edit at a follower, 80 ms, p99", quantile(took, 0.99), "ms", figures.AtMost(3.5*rtt+30), "")
	r.report("then visible at every site, p50", quantile(seen, 0.5), "ms", figures.AtMost(1.5*rtt), "")
	r.report("then visible at every site, p99", quantile(seen, 0.99), "ms", figures.AtMost(1.5*rtt), "")
	return nil
}

// applied waits until a site reads an index.
func applied(ctx context.Context, s *lab.Site, index uint64) error {
	for {
		changed := s.Node().State().Changed()
		if s.Node().State().View().Index() >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// throughput: 64 clients at the leader.
func (r *run) throughput(ctx context.Context) error {
	m, err := r.mesh(ctx, "load", consensus.LAN, 0)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	leader, _, err := m.Leader(ctx)
	if err != nil {
		return err
	}
	var made atomic.Int64
	var failed atomic.Pointer[error]
	end := time.Now().Add(r.load)
	var wg sync.WaitGroup
	for c := range 64 {
		wg.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				if _, err := edit(ctx, leader, fmt.Sprint(c, i)); err != nil {
					failed.Store(&err)
					return
				}
				made.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	r.report("edits per second, one leader, 64 clients", float64(made.Load())/r.load.Seconds(), "1/s", figures.AtLeast(2000), "")
	return nil
}

// failover: the leader is gone; how long until another node makes an edit.
func (r *run) failover(ctx context.Context, p consensus.Profile, rtt time.Duration, most float64) error {
	m, err := r.mesh(ctx, "failover-"+p.Name, p, rtt)
	if err != nil {
		return err
	}
	defer func() { _ = m.Close() }()
	var gaps []time.Duration
	for i := range r.kills {
		leader, others, err := m.Leader(ctx)
		if err != nil {
			return err
		}
		if _, err := project(ctx, others[0], fmt.Sprintf("before-%d", i)); err != nil {
			return err
		}
		start := time.Now()
		killed := make(chan error, 1)
		go func() { killed <- leader.Kill() }()
		for {
			if _, err := edit(ctx, others[0], fmt.Sprint(i)); err == nil {
				break
			}
			if ctx.Err() != nil {
				return errors.Join(ctx.Err(), <-killed)
			}
		}
		gaps = append(gaps, time.Since(start))
		if err := <-killed; err != nil {
			return err
		}
		if err := leader.Start(); err != nil {
			return err
		}
	}
	r.report("leader killed, no edit for, "+p.Name+", worst", quantile(gaps, 1), "ms", figures.AtMost(most), fmt.Sprintf("%d kills, %s", len(gaps), rtt))
	return nil
}

func project(ctx context.Context, at *lab.Site, name string) (command.Result, error) {
	pid := identity.NewProjectID()
	return at.Node().Propose(ctx, "user:admin", &command.ProjectCreate{ProjectId: pid[:], Name: name, OwnerId: 2})
}
