package transfer

import (
	"slices"
	"time"
)

// asideShare is which part of a lane's room is made at a time: to look for what may
// go costs a walk through what waits.
const asideShare = 4

// aside says that tasks which were not to move went to make room for others. A
// scan finds them again.
type aside struct {
	paused bool      // people hold some of them back
	opens  time.Time // the first window of others of them; zero: there are none
}

// makeRoom takes tasks of a lane's out that may not move now, the last ones first:
// what people hold back, or what waits for a window. mu is held.
func (q *queue) makeRoom(first *queueLane) {
	if first.fixed == 0 {
		return // each task that a full queue refuses comes here
	}
	var out []*task
	for _, t := range q.tasks {
		if t.fixed && !t.running && &q.lanes[t.kind.lane()] == first {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b *task) int {
		switch {
		case before(b, a):
			return -1
		case before(a, b):
			return 1
		}
		return 0
	})
	for _, t := range out[:min(len(out), max(1, first.most/asideShare))] {
		q.takeOut(t)
		q.drop(t)
		first.fixed--
		switch a := &first.aside; {
		case t.paused:
			a.paused = true
		case a.opens.IsZero() || t.next.Before(a.opens):
			a.opens = t.next
		}
	}
}

// missed reports, once, that a scan has to look for what was put aside: people let
// something go on, or a window opened.
func (q *queue) missed(resumed bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	missed := false
	for i := range q.lanes {
		a := &q.lanes[i].aside
		if resumed && a.paused {
			a.paused, missed = false, true
		}
		if !a.opens.IsZero() && !q.now().Before(a.opens) {
			a.opens, missed = time.Time{}, true
		}
	}
	return missed
}
