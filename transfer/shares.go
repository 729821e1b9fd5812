package transfer

import (
	"sync"
	"time"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/rules"
)

// keptEach is how many blobs one node may have on their way here for its pushes: of four
// that ask for the most, each has room.
const keptEach = maxBlobTasks / 4

// shares say who asked for the blobs that pushes elsewhere want kept here: a node that asks
// for ever more, or never sends what it asked for, does not keep others' pushes out. They
// have as many entries as the queue has such tasks.
type shares struct {
	mu sync.Mutex
	of map[key]identity.NodeID
	n  map[identity.NodeID]int
}

func newShares() *shares {
	return &shares{of: map[key]identity.NodeID{}, n: map[identity.NodeID]int{}}
}

// take counts a task as a node's; false: it has its share.
func (s *shares) take(k key, by identity.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.of[k]; ok {
		return true
	}
	if s.n[by] >= keptEach {
		return false
	}
	s.of[k] = by
	s.n[by]++
	return true
}

// end is called when the task is in the queue no longer.
func (s *shares) end(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	by, ok := s.of[k]
	if !ok {
		return
	}
	delete(s.of, k)
	if s.n[by]--; s.n[by] == 0 {
		delete(s.n, by)
	}
}

// keep puts in a blob that a node's push wants here. Its turn is the node's: one whose
// blobs do not come takes but a share of the workers (keptShare).
func (q *queue) keep(k key, size int64, by identity.NodeID) bool {
	return q.addFor(k, size, time.Time{}, rules.Terms{}, whose{node: by})
}

// renew has a task that is there tried for as long as if it were added now. It does not
// make it try earlier: who asks does so again and again. But what waits behind much of
// another node's takes the turn of who asks. false: it is not there.
func (q *queue) renew(k key, by identity.NodeID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.tasks[k]
	if t == nil {
		return false
	}
	t.until = q.now().Add(k.kind.wantedFor())
	ts, to := q.of(t).turns, whose{node: by}
	if t.in != nil && t.next.IsZero() && to != t.whose && ts.calmer(to, t.whose) {
		q.takeOut(t)
		t.whose = to
		q.makeReady(t)
	}
	return true
}
