package transfer

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/portolan/portolan/node/identity"
)

func keptKey(i int, node byte) key { return key{kind: kept, repo: fmt.Sprint(node, " ", i)} }

// TestQueue_ANodeThatHangsLeavesWorkers: each takes half of what those before it left, and
// gets more as they end.
func TestQueue_ANodeThatHangsLeavesWorkers(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	keep := func(node byte, n int) []*task {
		for i := range n {
			if !q.keep(keptKey(i, node), 1, identity.NodeID{node}) {
				t.Fatalf("node %d has no room", node)
			}
		}
		return takeAll(q, laneKept)
	}
	first := keep(1, 2*keptAtOnce)
	if len(first) != keptAtOnce/2 {
		t.Fatalf("one node has %d of %d workers", len(first), keptAtOnce)
	}
	second := keep(2, 2*keptAtOnce)
	if len(second) != keptAtOnce/4 {
		t.Fatalf("the next one has %d", len(second))
	}
	third := keep(3, 1)
	if len(third) != 1 {
		t.Fatal("a third one finds no worker")
	}
	if ready, running, _ := q.lengths(); ready != 4*keptAtOnce-len(first)-len(second) || running != len(first)+len(second)+1 {
		t.Errorf("%d ready, %d running", ready, running)
	}
	for run := slices.Concat(first, second, third); len(run) > 0; run = takeAll(q, laneKept) {
		for _, task := range run {
			q.finish(task, "", now)
		}
	}
	if ts := q.lanes[laneKept].turns; len(ts.of) != 0 || ts.running != 0 || len(q.tasks) != 0 {
		t.Errorf("%d nodes have turns, %d run, %d tasks are left", len(ts.of), ts.running, len(q.tasks))
	}
}

// TestQueue_WhatTwoPushesWantTakesTheCalmerTurn: a base layer that a node which hangs asked
// for first does not wait behind the rest of what it asked for.
func TestQueue_WhatTwoPushesWantTakesTheCalmerTurn(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	hangs, other := identity.NodeID{1}, identity.NodeID{2}
	for i := range keptAtOnce {
		q.keep(keptKey(i, 1), 1, hangs)
	}
	under := takeAll(q, laneKept)
	at := slices.IndexFunc(q.list(2*keptAtOnce), func(t task) bool { return !t.running })
	base := q.list(2 * keptAtOnce)[at].key
	if !q.renew(under[0].key, other) || !q.renew(base, hangs) {
		t.Fatal("it is not there")
	}
	if again := takeAll(q, laneKept); len(again) != 0 {
		t.Fatalf("%d more run for the node that has its share", len(again))
	}
	q.renew(base, other)
	q.renew(base, hangs)
	got := takeAll(q, laneKept)
	if len(got) != 1 || got[0].key != base {
		t.Fatalf("took %s, want what another node asks for, too", repos(got))
	}
	q.finish(got[0], "nobody has it", time.Time{})
	if !q.renew(base, hangs) || len(takeAll(q, laneKept)) != 0 {
		t.Error("who asks again makes it try earlier")
	}
	if q.renew(keptKey(keptAtOnce, 1), other) {
		t.Error("what nobody asked for is there")
	}
}

// TestQueue_KeptTasksGoInTheirOrder: nobody knows when what they are for was pushed, and
// what a push has waited for since long goes before what came just now.
func TestQueue_KeptTasksGoInTheirOrder(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	next := 0
	for i := range 4 * keptAtOnce {
		q.keep(keptKey(i, 1), 1, identity.NodeID{1})
	}
	for run := takeAll(q, laneKept); len(run) > 0; run = takeAll(q, laneKept) {
		for _, task := range run {
			if want := keptKey(next, 1); task.key != want {
				t.Fatalf("%s is taken before %s", task.repo, want.repo)
			}
			next++
			q.finish(task, "", now)
		}
	}
	if next != 4*keptAtOnce {
		t.Errorf("%d were taken", next)
	}
}
