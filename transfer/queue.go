package transfer

import (
	"cmp"
	"container/heap"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/transfer/places"
	"github.com/portolan/portolan/transfer/rules"
)

const (
	// maxTasks bounds the tasks of rules and of what this site accepted: some
	// 30 MiB. What does not fit is found again by a scan when the queue has run low.
	maxTasks = 100_000
	// maxBlobTasks bounds each of the other lanes: more than pushes can have under
	// way for as long as their clients wait. Who is refused asks again, or is found
	// by a scan.
	maxBlobTasks = 20_000
	// retryFirst and retryMost bound the wait after a failed attempt. Events
	// (a peer is back, a feed brought holders) end it early.
	retryFirst = 500 * time.Millisecond
	retryMost  = time.Minute
)

// kind says what a task brings here.
type kind uint8

const (
	// artifact: a manifest that a rule covers, with its blobs, the manifests
	// below it and all referrers.
	artifact kind = iota + 1
	// own: a manifest that this site accepted, with its blobs alone.
	own
	// claimed: a blob that a push here relies on and that another site keeps for
	// it until it is here.
	claimed
	// large: the bytes of a manifest that is too large to travel in its entry;
	// every site that may have the entry needs them.
	large
	// kept: a blob of a push under way at another site, which wants it here before
	// it answers.
	kept
)

// lane is a part of the queue with workers and places of its own: what clients
// wait for stands never behind what rules bring, whatever its priority, size or
// bandwidth.
type lane uint8

const (
	laneKept      lane = iota // pushes wait for these
	laneBlobs                 // claimed, large
	laneArtifacts             // what rules want, and what this site accepted
	laneBulk                  // of those, artifacts that lack more than small blobs
	laneSlow                  // of those, what comes for rules with a bandwidth
	lanes
)

// lane is where tasks of a kind begin.
func (k kind) lane() lane {
	switch k {
	case kept:
		return laneKept
	case claimed, large:
		return laneBlobs
	}
	return laneArtifacts
}

// laneOf is where a task goes for which rules give these terms.
func laneOf(k kind, terms rules.Terms) lane {
	if k == artifact && terms.Bandwidth > 0 {
		return laneSlow
	}
	return k.lane()
}

// wantedFor is for how long a blob that a push asked for is tried for: as long as
// it is kept for the push. After that somebody has to ask anew, or the manifest
// wants it. 0: as long as it is wanted.
func (k kind) wantedFor() time.Duration {
	switch k {
	case kept:
		return store.LeaseFor
	case claimed:
		return claimFor
	}
	return 0
}

// key names a task.
type key struct {
	kind   kind
	pid    identity.ProjectID
	repo   string
	digest digest.Digest
}

// task is one artifact, or one blob, that is wanted and not wholly here.
type task struct {
	key
	size int64     // of a claimed blob or a large manifest
	at   time.Time // when it was pushed: older ones go first
	nth  uint64    // among those that were added, where nobody knows when
	// terms of the rule for which it comes; its priority goes before age.
	terms rules.Terms

	attempts int
	reason   string    // why the last attempt ended early
	next     time.Time // when to try again
	running  bool
	again    bool      // was asked for while it ran
	until    time.Time // it is given up then; zero: never
	fixed    bool      // next is when a window opens: news do not make it earlier
	paused   bool      // people hold it back
	in       *taskHeap // nil: it runs
	place    int       // there
	lane     lane      // as its kind and terms say, until it turns out to be bulk
	whose    whose     // turn it takes, where its lane has turns

	goes places.Order  // where it stands, as of when it was taken; from then on its attempt's
	bulk *places.Place // while it runs in laneBulk

	home     string // site that accepted it
	measured bool   // total and missing are known
	total    int64  // bytes of its blobs that were missing at first
	missing  int64  // of them, now
	begun    time.Time
	begunAt  int64 // missing when the attempt began
}

// queue holds the tasks in lanes.
type queue struct {
	now func() time.Time

	mu    sync.Mutex
	tasks map[key]*task
	added uint64 // tasks so far
	lanes [lanes]queueLane
	bulk  *places.Places // of what runs in laneBulk
	owing owing

	// gone is told of each task that leaves; it is called with mu held.
	gone func(key)
}

// queueLane has the tasks of one lane: ready ones by age, failed ones by the time
// of their next attempt.
type queueLane struct {
	most         int // tasks that begin here
	count        int // of them, wherever they are now
	fixed        int // of them, those that are
	ready, later taskHeap
	turns        *turns        // of laneSlow and laneKept, in the place of ready; else nil
	overflow     bool          // something was refused since the last call of refill
	aside        aside         // what went to make room
	wake         chan struct{} // capacity 1: there may be something to take
}

func newQueue(now func() time.Time) *queue {
	q := &queue{now: now, tasks: map[key]*task{}, bulk: places.New(artifactsAtOnce, aboveAtOnce, artifactsMost), owing: newOwing(), gone: func(key) {}}
	for i := range q.lanes {
		q.lanes[i] = queueLane{
			most: maxBlobTasks, wake: make(chan struct{}, 1),
			ready: taskHeap{less: before},
			later: taskHeap{less: func(a, b *task) bool { return a.next.Before(b.next) }},
		}
	}
	q.lanes[laneArtifacts].most = maxTasks
	q.lanes[laneSlow].turns, q.lanes[laneKept].turns = newTurns(slowShare), newTurns(keptShare)
	return q
}

func (q *queue) of(t *task) *queueLane { return &q.lanes[t.lane] }

// add puts a task in, or makes one that is there try at once. It reports whether
// there was room.
func (q *queue) add(k key, size int64, at time.Time, terms rules.Terms) bool {
	return q.addFor(k, size, at, terms, whose{})
}

// addFor is add for a lane that has turns.
func (q *queue) addFor(k key, size int64, at time.Time, terms rules.Terms, by whose) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	t, known := q.tasks[k]
	first := &q.lanes[k.kind.lane()] // which counts it
	if !known && first.count >= first.most {
		q.makeRoom(first)
	}
	var until time.Time
	if d := k.kind.wantedFor(); d > 0 {
		until = q.now().Add(d)
	}
	switch {
	case known && t.running:
		t.again, t.terms, t.until = true, terms, until
		return true
	case known:
		q.takeOut(t)
		t.terms, t.until = terms, until
		q.makeReady(t)
	case first.count >= first.most:
		first.overflow = true
		return false
	default:
		q.added++
		t = &task{key: k, size: size, at: at, nth: q.added, terms: terms, until: until, lane: k.kind.lane(), whose: by}
		q.tasks[k] = t
		first.count++
		q.makeReady(t)
	}
	return true
}

// takeOut takes a task that does not run out of its heap. mu is held.
func (q *queue) takeOut(t *task) {
	heap.Remove(t.in, t.place)
	if ts := q.of(t).turns; ts != nil {
		ts.prune(t.whose)
	}
}

// fix has a task wait until a time that no news make earlier. mu is held.
func (q *queue) fix(t *task, until time.Time) {
	t.next, t.fixed = until, true
	q.lanes[t.kind.lane()].fixed++
	heap.Push(&q.of(t).later, t)
}

// makeReady puts a task that is in no heap where its terms say, to be taken. mu is
// held.
func (q *queue) makeReady(t *task) {
	if t.fixed {
		q.lanes[t.kind.lane()].fixed--
	}
	t.next, t.fixed, t.paused = time.Time{}, false, false
	if l := laneOf(t.kind, t.terms); l == laneSlow || t.lane == laneSlow {
		t.lane, t.whose.rule = l, t.terms.RuleID
	}
	l := q.of(t)
	if l.turns != nil {
		l.turns.push(t)
	} else {
		heap.Push(&l.ready, t)
	}
	l.signal()
}

// before orders tasks that are ready.
func before(a, b *task) bool {
	if a.terms.Priority != b.terms.Priority {
		return a.terms.Priority > b.terms.Priority
	}
	if !a.at.Equal(b.at) {
		return a.at.Before(b.at)
	}
	return a.nth < b.nth
}

// again makes a task try at once, or once more after it ran.
func (q *queue) again(k key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch t := q.tasks[k]; {
	case t == nil:
		return
	case t.running:
		t.again = true
	default:
		q.moveToReady(t)
	}
}

// take gives the first task of a lane that is ready: of the highest priority, the
// oldest. If there is none, it says how long to wait for the next one to become
// ready; 0: nobody knows.
func (q *queue) take(from lane) (*task, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	l := &q.lanes[from]
	for len(l.later.tasks) > 0 && !l.later.tasks[0].next.After(now) {
		q.moveToReady(l.later.tasks[0])
	}
	ready, more := &l.ready, len(l.ready.tasks) > 1
	if l.turns != nil {
		ready, more = l.turns.next()
	}
	var bulk *places.Place
	if from == laneBulk && len(ready.tasks) > 0 {
		if bulk = q.bulk.Try(ready.tasks[0].order()); bulk == nil {
			ready = &taskHeap{} // whoever ends wakes the next
		}
	}
	if len(ready.tasks) > 0 {
		t := heap.Pop(ready).(*task)
		t.running, t.goes, t.bulk = true, t.order(), bulk
		if l.turns != nil {
			l.turns.begin(t)
		}
		if more {
			l.signal() // for the next worker
		}
		return t, 0
	}
	next := l.aside.opens // then a scan is due: see missed
	if len(l.later.tasks) > 0 && (next.IsZero() || l.later.tasks[0].next.Before(next)) {
		next = l.later.tasks[0].next
	}
	if next.IsZero() {
		return nil, 0
	}
	return nil, max(time.Millisecond, next.Sub(now))
}

// finish ends an attempt: an empty reason means that all is here. A time, if it
// is not zero, says when to try again: what is wanted must not move before.
func (q *queue) finish(t *task, reason string, notBefore time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	again := q.stop(t)
	l := q.of(t)
	switch {
	case again:
		t.reason = reason
		q.makeReady(t)
	case reason == "", !t.until.IsZero() && !q.now().Before(t.until):
		q.drop(t)
	case !notBefore.IsZero():
		t.reason = reason
		q.fix(t, notBefore)
	default:
		t.reason = reason
		wait := min(retryFirst<<min(t.attempts, 10), retryMost)
		t.attempts++
		t.next = q.now().Add(wait - wait/4 + rand.N(wait/2+1))
		heap.Push(&l.later, t)
	}
	l.signal()
}

// drop ends a task. mu is held; it is in no heap.
func (q *queue) drop(t *task) {
	delete(q.tasks, t.key)
	q.lanes[t.kind.lane()].count--
	q.owing.drop(t)
	q.gone(t.key)
}

// stop ends an attempt, and says whether the task was asked for while it ran. mu
// is held.
func (q *queue) stop(t *task) (again bool) {
	again, t.running, t.again = t.again, false, false
	if t.bulk != nil {
		q.bulk.Leave(t.bulk)
		t.bulk = nil
	}
	if ts := q.of(t).turns; ts != nil {
		ts.end(t)
	}
	return again
}

// toBulk ends an attempt at an artifact that lacks more than small blobs: it goes
// on in the lane for those, in its turn.
func (q *queue) toBulk(t *task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stop(t)
	t.lane = laneBulk
	q.makeReady(t)
}

// hold ends an attempt at what people hold back.
func (q *queue) hold(t *task, reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	again := q.stop(t)
	t.reason = reason
	l := q.of(t)
	if again { // they may have let it go on meanwhile
		q.makeReady(t)
	} else {
		t.paused = true
		q.fix(t, q.now().Add(heldFor))
	}
	l.signal()
}

// resume makes all that people held back try: it may go on, or is held again.
func (q *queue) resume() {
	q.mu.Lock()
	for _, t := range q.tasks { // first: an attempt that ends meanwhile sees it
		t.again = t.again || t.running
	}
	q.mu.Unlock()
	q.readyNow(func(t *task) bool { return t.paused })
}

// hurry makes all failed tasks try at once, because something changed that may
// help, and says how many there were.
func (q *queue) hurry() int {
	return q.readyNow(func(t *task) bool { return !t.fixed })
}

// reconsider makes all tasks of some projects try at once, those that wait for a
// window too: other rules hold for them.
func (q *queue) reconsider(pids map[identity.ProjectID]bool) {
	q.readyNow(func(t *task) bool { return pids[t.pid] })
}

// readyNow makes failed tasks ready, and counts them.
func (q *queue) readyNow(which func(*task) bool) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.lanes {
		l := &q.lanes[i]
		var due []*task
		for _, t := range l.later.tasks {
			if which(t) {
				due = append(due, t)
			}
		}
		for _, t := range due {
			q.moveToReady(t)
		}
		n += len(due)
		l.signal() // also for what waits for a time that has come, by a clock that was set
	}
	return n
}

// refill reports, once, that tasks were refused which a scan finds, and that there
// is room again.
func (q *queue) refill() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for i := range q.lanes {
		l := &q.lanes[i]
		if lane(i) != laneKept && l.overflow && l.count <= l.most/2 {
			l.overflow = false
			clear(q.owing.refused) // the scan finds them, or is refused again
			return true
		}
	}
	return false
}

// onItsWay is said of a task that has not failed.
const onItsWay = "on its way"

// explain gives the reason of a failed task.
func (q *queue) explain(k key) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t := q.tasks[k]; t != nil {
		return cmp.Or(t.reason, onItsWay)
	}
	return ""
}

// lengths gives the numbers of tasks that wait, run and failed.
func (q *queue) lengths() (ready, running, failed int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count()
}

// count is called with mu held.
func (q *queue) count() (ready, running, failed int) {
	for i := range q.lanes {
		ready += len(q.lanes[i].ready.tasks) + q.lanes[i].turns.waiting()
		failed += len(q.lanes[i].later.tasks)
	}
	return ready, len(q.tasks) - ready - failed, failed
}

// moveToReady makes a task that waits for its next attempt ready. It is called
// with mu held, for a task that does not run.
func (q *queue) moveToReady(t *task) {
	if t.next.IsZero() {
		return
	}
	q.takeOut(t)
	q.makeReady(t)
}

func (l *queueLane) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}
