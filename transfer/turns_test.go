package transfer

import (
	"fmt"
	"testing"
	"time"

	"github.com/portolan/portolan/transfer/rules"
)

func slow(rule int64) rules.Terms { return rules.Terms{RuleID: rule, Bandwidth: 1e6} }

// takeAll takes what a lane gives now.
func takeAll(q *queue, from lane) (out []*task) {
	for {
		t, _ := q.take(from)
		if t == nil {
			return out
		}
		out = append(out, t)
	}
}

func repos(tasks []*task) string {
	var out []string
	for _, t := range tasks {
		out = append(out, t.repo)
	}
	return fmt.Sprint(out)
}

func TestQueue_ASlowRuleHasPlacesOfItsOwn(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	for i := range 10 {
		q.add(named(fmt.Sprint("a", i)), 0, now.Add(time.Duration(i)), slow(1))
		q.add(named(fmt.Sprint("b", i)), 0, now.Add(time.Hour+time.Duration(i)), slow(2))
	}
	q.add(named("free"), 0, now.Add(2*time.Hour), rules.Terms{RuleID: 3})
	if got := repos(takeAll(q, laneArtifacts)); got != "[free]" {
		t.Errorf("behind slow rules: %s", got)
	}
	under := takeAll(q, laneSlow)
	if got := repos(under); got != "[a0 a1 a2 a3 b0 b1 b2 b3]" {
		t.Fatalf("took %s: want %d of each slow rule, oldest first", got, slowEach)
	}
	if ready, running, failed := q.lengths(); ready != 12 || running != 9 || failed != 0 {
		t.Errorf("%d ready, %d running, %d failed", ready, running, failed)
	}
	if n := len(q.list(100)); n != 21 {
		t.Errorf("%d are listed", n)
	}
	q.finish(under[0], "", time.Time{})
	q.finish(under[4], "nobody has it", time.Time{})
	if got := repos(takeAll(q, laneSlow)); got != "[a4 b4]" {
		t.Errorf("after one of each rule's ended: %s", got)
	}
	// Its rule lost its bandwidth.
	q.add(named("a9"), 0, now, rules.Terms{RuleID: 1})
	if got := repos(takeAll(q, laneArtifacts)); got != "[a9]" {
		t.Errorf("of a rule that is slow no more: %s", got)
	}
	// And one that runs got one.
	bulk := named("bulk")
	q.add(bulk, 0, now, rules.Terms{RuleID: 3})
	run, _ := q.take(laneArtifacts)
	q.add(bulk, 0, now, slow(4))
	q.toBulk(run)
	if got := repos(takeAll(q, laneSlow)); got != "[bulk]" {
		t.Errorf("of a rule that became slow: %s", got)
	}
}

func TestQueue_ManySlowRulesShareTheWorkers(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	for rule := range int64(slowAtOnce) {
		for i := range 3 {
			q.add(named(fmt.Sprint(rule, " ", i)), 0, now.Add(time.Duration(i)), slow(rule+1))
		}
	}
	seen := map[int64]int{}
	for _, task := range takeAll(q, laneSlow) {
		seen[task.whose.rule]++
	}
	for rule := range int64(slowAtOnce) {
		if seen[rule+1] != 1 {
			t.Errorf("rule %d has %d artifacts in work", rule+1, seen[rule+1])
		}
	}
}

// A rule that has nothing to bring any more leaves its share of the workers to the
// others.
func TestQueue_RulesThatAreSlowNoMoreAreForgotten(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	for rule := range int64(slowAtOnce) {
		k := named(fmt.Sprint("of ", rule))
		q.add(k, 0, now, slow(rule+10))
		q.add(k, 0, now, slow(1)) // another rule's now
	}
	for i := range slowEach {
		q.add(named(fmt.Sprint(i)), 0, now, slow(2))
	}
	if n := len(q.lanes[laneSlow].turns.of); n != 2 {
		t.Errorf("%d rules have turns, want 2", n)
	}
	if n := len(takeAll(q, laneSlow)); n != 2*slowEach {
		t.Errorf("%d artifacts are in work, want %d of each rule", n, slowEach)
	}
}

// TestQueue_WhatMayNotMoveMakesRoom: 100,000 artifacts that are paused, or wait for
// a window, keep nothing else out, and are looked for when they may move.
func TestQueue_WhatMayNotMoveMakesRoom(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	opens := now.Add(3 * time.Hour)
	q := newQueue(func() time.Time { return now })
	for i := range maxTasks {
		q.add(key{kind: artifact, repo: fmt.Sprint(i)}, 0, now.Add(time.Duration(i)), rules.Terms{})
	}
	for i := range maxTasks {
		task, _ := q.take(laneArtifacts)
		switch {
		case i == 0: // it may move, later
			q.finish(task, "nobody has it", time.Time{})
		case i%2 == 0:
			q.hold(task, "paused")
		default:
			q.finish(task, "it waits for a window", opens)
		}
	}
	first := &q.lanes[laneArtifacts]
	if first.fixed != maxTasks-1 {
		t.Fatalf("%d tasks count as fixed", first.fixed)
	}
	if q.missed(true) {
		t.Error("nothing was put aside yet")
	}
	for i := range maxTasks {
		if !q.add(named(fmt.Sprint("new", i)), 0, now, rules.Terms{}) {
			if i < maxTasks-1 {
				t.Fatalf("only %d found room", i)
			}
		}
	}
	if q.tasks[key{kind: artifact, repo: "0"}] == nil {
		t.Error("what may move made room for others")
	}
	if first.fixed != 0 {
		t.Errorf("%d tasks count as fixed, of none", first.fixed)
	}
	if q.add(named("one more"), 0, now, rules.Terms{}) {
		t.Error("the queue has no bound")
	}
	if q.missed(false) {
		t.Error("no window is open, and nobody resumed anything")
	}
	if !q.missed(true) || q.missed(true) {
		t.Error("what was paused must be looked for when people resume, once")
	}
	for _, task := range takeAll(q, laneArtifacts) {
		q.finish(task, "", time.Time{})
	}
	if _, wait := q.take(laneArtifacts); wait <= 0 || wait > retryFirst*2 {
		t.Errorf("waits %s for the one that is left", wait)
	}
	now = now.Add(time.Hour)
	for _, task := range takeAll(q, laneArtifacts) {
		q.finish(task, "", time.Time{})
	}
	if none, wait := q.take(laneArtifacts); none != nil || wait != 2*time.Hour {
		t.Errorf("an empty queue waits %s for the window", wait)
	}
	now = opens
	if !q.missed(false) || q.missed(false) {
		t.Error("what waited for a window must be looked for when it opens, once")
	}
}
