package transfer

import (
	"container/heap"

	"github.com/portolan/portolan/node/identity"
)

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

// whose turn a task takes.
type whose struct {
	rule int64           // in laneSlow: for which it comes
	node identity.NodeID // in laneKept: whose push waits for it
}

// turns are the tasks of a lane that are ready, by whose they are. The queue locks
// them; nil: the lane has none.
type turns struct {
	of      map[whose]*turn
	running int
	each    func(*turns) int // how many of one may run
}

// turn has what is one's.
type turn struct {
	ready   taskHeap
	running int
}

func newTurns(each func(*turns) int) *turns { return &turns{of: map[whose]*turn{}, each: each} }

// slowShare parts the workers among the rules that have something to bring.
func slowShare(ts *turns) int {
	return max(1, min(slowEach, slowAtOnce/max(1, len(ts.of))))
}

// keptShare is as many as are left to others. One node that hangs takes half of the
// workers, the next one half of those that are left: whoever comes finds some.
func keptShare(ts *turns) int { return keptAtOnce - ts.running }

func (ts *turns) push(t *task) {
	r := ts.of[t.whose]
	if r == nil {
		r = &turn{ready: taskHeap{less: before}}
		ts.of[t.whose] = r
	}
	heap.Push(&r.ready, t)
}

// next gives the heap whose first task is to be taken, of those that may begin
// one; it is empty if there is none. more: another worker finds something as well.
func (ts *turns) next() (ready *taskHeap, more bool) {
	each := ts.each(ts)
	none := &taskHeap{}
	ready = none
	for _, r := range ts.of {
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
func (ts *turns) begin(t *task) {
	ts.of[t.whose].running++
	ts.running++
}

func (ts *turns) end(t *task) {
	ts.of[t.whose].running--
	ts.running--
	ts.prune(t.whose)
}

// prune forgets who has nothing to bring: the others may then begin more.
func (ts *turns) prune(w whose) {
	if r := ts.of[w]; r != nil && r.running == 0 && len(r.ready.tasks) == 0 {
		delete(ts.of, w)
	}
}

// calmer says whether fewer of the one run than of the other.
func (ts *turns) calmer(a, than whose) bool {
	under := func(w whose) int {
		if r := ts.of[w]; r != nil {
			return r.running
		}
		return 0
	}
	return under(a) < under(than)
}

// heaps are all that have tasks.
func (ts *turns) heaps() (out []*taskHeap) {
	if ts == nil {
		return nil
	}
	for _, r := range ts.of {
		out = append(out, &r.ready)
	}
	return out
}

func (ts *turns) waiting() (n int) {
	for _, h := range ts.heaps() {
		n += len(h.tasks)
	}
	return n
}
