package transfer

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func named(s string) key { return key{kind: artifact, repo: s, digest: digest.FromString(s)} }

func TestQueue_OldestFirstAndRetries(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	q.add(named("new"), 0, now)
	q.add(named("old"), 0, now.Add(-time.Hour))
	q.add(named("old"), 0, now.Add(-time.Hour))
	take := func() *task {
		t.Helper()
		task, _ := q.take()
		if task == nil {
			t.Fatal("nothing to take")
		}
		return task
	}
	old := take()
	if old.repo != "old" {
		t.Fatalf("took %s first", old.repo)
	}
	q.finish(old, "nobody has it")
	if got := q.explain(named("old")); got != "nobody has it" {
		t.Errorf("explain: %q", got)
	}
	if got := take(); got.repo != "new" {
		t.Errorf("a failed task is taken again at once: %s", got.repo)
	} else {
		q.finish(got, "")
	}
	none, wait := q.take()
	if none != nil || wait <= 0 || wait > retryFirst*2 {
		t.Errorf("take: %v, %s", none, wait)
	}
	var waited time.Duration
	for range 12 {
		now = now.Add(wait)
		waited = wait
		q.finish(take(), "still not")
		_, wait = q.take()
	}
	if waited < retryMost*3/4 || wait > retryMost*5/4 {
		t.Errorf("after many failures it waits %s: want about %s", wait, retryMost)
	}
	if n := q.hurry(); n != 1 {
		t.Errorf("hurried %d", n)
	}
	again := take()
	q.add(named("old"), 0, now) // something came while it was in work
	q.finish(again, "")
	q.finish(take(), "")
	if r, w, f := q.lengths(); r+w+f != 0 || q.explain(named("old")) != "" {
		t.Errorf("left: %d ready, %d running, %d failed", r, w, f)
	}
}

func TestQueue_IsBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	for i := range maxTasks {
		q.add(key{kind: artifact, repo: fmt.Sprint(i)}, 0, now)
	}
	if q.add(named("one more"), 0, now) {
		t.Error("the queue has no bound")
	}
	if q.refill() {
		t.Error("there is no room yet")
	}
	for range maxTasks/2 + 1 {
		task, _ := q.take()
		q.finish(task, "")
	}
	if !q.refill() || q.refill() {
		t.Error("what was refused must be looked for again, once")
	}
}
