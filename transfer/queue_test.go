package transfer

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/transfer/rules"
)

func named(s string) key { return key{kind: artifact, repo: s, digest: digest.FromString(s)} }

func TestQueue_OldestFirstAndRetries(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	q.add(named("new"), 0, now, rules.Terms{})
	q.add(named("old"), 0, now.Add(-time.Hour), rules.Terms{})
	q.add(named("old"), 0, now.Add(-time.Hour), rules.Terms{})
	take := func() *task {
		t.Helper()
		task, _ := q.take(laneArtifacts)
		if task == nil {
			t.Fatal("nothing to take")
		}
		return task
	}
	old := take()
	if old.repo != "old" {
		t.Fatalf("took %s first", old.repo)
	}
	q.finish(old, "nobody has it", time.Time{})
	if got := q.explain(named("old")); got != "nobody has it" {
		t.Errorf("explain: %q", got)
	}
	if got := take(); got.repo != "new" {
		t.Errorf("a failed task is taken again at once: %s", got.repo)
	} else {
		q.finish(got, "", time.Time{})
	}
	none, wait := q.take(laneArtifacts)
	if none != nil || wait <= 0 || wait > retryFirst*2 {
		t.Errorf("take: %v, %s", none, wait)
	}
	var waited time.Duration
	for range 12 {
		now = now.Add(wait)
		waited = wait
		q.finish(take(), "still not", time.Time{})
		_, wait = q.take(laneArtifacts)
	}
	if waited < retryMost*3/4 || wait > retryMost*5/4 {
		t.Errorf("after many failures it waits %s: want about %s", wait, retryMost)
	}
	if n := q.hurry(); n != 1 {
		t.Errorf("hurried %d", n)
	}
	again := take()
	q.add(named("old"), 0, now, rules.Terms{}) // something came while it was in work
	q.finish(again, "", time.Time{})
	q.finish(take(), "", time.Time{})
	if r, w, f := q.lengths(); r+w+f != 0 || q.explain(named("old")) != "" {
		t.Errorf("left: %d ready, %d running, %d failed", r, w, f)
	}
}

func TestQueue_IsBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	for i := range maxTasks {
		q.add(key{kind: artifact, repo: fmt.Sprint(i)}, 0, now, rules.Terms{})
	}
	if q.add(named("one more"), 0, now, rules.Terms{}) {
		t.Error("the queue has no bound")
	}
	if q.refill() {
		t.Error("there is no room yet")
	}
	for range maxTasks/2 + 1 {
		task, _ := q.take(laneArtifacts)
		q.finish(task, "", time.Time{})
	}
	if !q.refill() || q.refill() {
		t.Error("what was refused must be looked for again, once")
	}
}

func TestQueue_PriorityBeforeAge(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	q.add(named("old"), 0, now.Add(-time.Hour), rules.Terms{})
	q.add(named("dear"), 0, now, rules.Terms{Priority: 5})
	q.add(named("late"), 0, now, rules.Terms{Priority: -1})
	q.add(named("raised"), 0, now, rules.Terms{Priority: -1})
	q.add(named("raised"), 0, now, rules.Terms{Priority: 9}) // by another rule
	var got []string
	for {
		task, _ := q.take(laneArtifacts)
		if task == nil {
			break
		}
		got = append(got, task.repo)
	}
	if want := "[raised dear old late]"; fmt.Sprint(got) != want {
		t.Errorf("took %v, want %s", got, want)
	}
}

func TestQueue_AWindowIsWaitedFor(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	opens := now.Add(3 * time.Hour)
	q.add(named("app"), 0, now, rules.Terms{})
	task, _ := q.take(laneArtifacts)
	q.finish(task, "it waits for a window", opens)
	if n := q.hurry(); n != 0 {
		t.Error("news hurried a task that waits for a window")
	}
	if task, wait := q.take(laneArtifacts); task != nil || wait != 3*time.Hour {
		t.Errorf("before the window: %v, wait %s", task, wait)
	}
	now = opens
	if task, _ = q.take(laneArtifacts); task == nil {
		t.Fatal("the window is open, and there is nothing to take")
	}
	// A change of the rules makes it look again at once.
	q.finish(task, "it waits for a window", opens.Add(24*time.Hour))
	q.add(named("app"), 0, now, rules.Terms{})
	if task, _ = q.take(laneArtifacts); task == nil {
		t.Fatal("it was asked for anew, and there is nothing to take")
	}
}

// TestQueue_LanesAndEnds: what pushes ask for stands in no line with rules, has
// room of its own, and is given up when nobody can be waiting for it.
func TestQueue_LanesAndEnds(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	q.add(key{kind: artifact, repo: "a"}, 0, now, rules.Terms{Priority: 100})
	for i := range maxBlobTasks {
		if !q.add(key{kind: kept, repo: strconv.Itoa(i)}, 1, time.Time{}, rules.Terms{}) {
			t.Fatalf("task %d does not fit", i)
		}
	}
	if q.add(key{kind: kept, repo: "more"}, 1, time.Time{}, rules.Terms{}) {
		t.Error("the lane has no end")
	}
	if q.refill() {
		t.Error("a scan is asked for what no scan finds")
	}
	if !q.add(key{kind: claimed, repo: "c"}, 1, now, rules.Terms{}) || !q.add(key{kind: artifact, repo: "b"}, 0, now, rules.Terms{}) {
		t.Error("one lane fills another")
	}
	for _, k := range []kind{kept, claimed} {
		q.add(key{kind: k, repo: map[kind]string{kept: "0", claimed: "c"}[k]}, 1, now, rules.Terms{}) // asked for anew
		task, _ := q.take(k.lane())
		if task == nil || task.kind != k {
			t.Fatalf("took %+v from the lane of %d", task, k)
		}
		q.finish(task, "no site has it", time.Time{})
		if q.explain(task.key) == "" {
			t.Errorf("%d: given up at the first failure", k)
		}
		now = now.Add(k.wantedFor())
		q.again(task.key)
		for again, _ := q.take(k.lane()); again != task; again, _ = q.take(k.lane()) {
			q.finish(again, "", time.Time{})
		}
		q.finish(task, "no site has it", time.Time{})
		if q.explain(task.key) != "" {
			t.Errorf("%d: tried for longer than it is kept", k)
		}
	}
}

// What turns out to be bulk waits for the others of its kind by priority, and
// holds no place of small artifacts.
func TestQueue_Bulk(t *testing.T) {
	q := newQueue(time.Now)
	at := time.Now()
	name := func(i int) key { return key{kind: artifact, repo: strconv.Itoa(i)} }
	for i := range 3 {
		q.add(name(i), 0, at, rules.Terms{Priority: i})
	}
	for range 3 {
		task, _ := q.take(laneArtifacts)
		q.toBulk(task)
	}
	if task, _ := q.take(laneArtifacts); task != nil {
		t.Fatalf("%s is still among the small ones", task.repo)
	}
	for i := range 3 {
		task, _ := q.take(laneBulk)
		if want := name(2 - i); task.key != want {
			t.Fatalf("taken %s, want %s", task.repo, want.repo)
		}
		q.finish(task, "", time.Time{})
	}
	if ready, running, failed := q.lengths(); ready+running+failed != 0 || q.lanes[laneArtifacts].count != 0 {
		t.Fatalf("%d, %d, %d are left, counted %d", ready, running, failed, q.lanes[laneArtifacts].count)
	}
}
