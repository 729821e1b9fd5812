package transfer

import "container/heap"

const (
	// slowAtOnce bounds the artifacts in work for rules with a bandwidth, and
	// slowEach those of one such rule: enough to use it up. They have workers of
	// their own, so that a slow rule with much to bring slows down no other. While
	// there are more slow rules than slowAtOnce, some wait for an artifact of others.
	slowAtOnce, slowEach = 16, 4
	// slowSmall bounds the small blobs on their way of an artifact of a slow rule;
	// larger ones come one after another.
	slowSmall = 16
)

// turns are the tasks of laneSlow that are ready, by rule. The queue locks them.
type turns map[int64]*turn

// turn has one rule's.
type turn struct {
	ready   taskHeap
	running int
}

func (ts turns) push(t *task) {
	r := ts[t.slow]
	if r == nil {
		r = &turn{ready: taskHeap{less: before}}
		ts[t.slow] = r
	}
	heap.Push(&r.ready, t)
}

// next gives the heap whose first task is to be taken, of the rules that may begin
// one; it is empty if there is none. more: another worker finds something as well.
func (ts turns) next() (ready *taskHeap, more bool) {
	each := max(1, min(slowEach, slowAtOnce/max(1, len(ts))))
	none := &taskHeap{}
	ready = none
	for _, r := range ts {
		if len(r.ready.tasks) == 0 || r.running >= each {
			continue
		}
		more = more || ready != none || len(r.ready.tasks) > 1 && r.running+1 < each
		if ready == none || before(r.ready.tasks[0], ready.tasks[0]) {
			ready = &r.ready
		}
	}
	return ready, more
}

// begin notes that a task was taken, end that its attempt is over.
func (ts turns) begin(t *task) { ts[t.slow].running++ }

func (ts turns) end(t *task) {
	ts[t.slow].running--
	ts.prune(t.slow)
}

// prune forgets a rule that has nothing to bring: the others may then begin more.
func (ts turns) prune(rule int64) {
	if r := ts[rule]; r != nil && r.running == 0 && len(r.ready.tasks) == 0 {
		delete(ts, rule)
	}
}

func (ts turns) waiting() (n int) {
	for _, r := range ts {
		n += len(r.ready.tasks)
	}
	return n
}
