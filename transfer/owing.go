package transfer

import (
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// rateOver is the least time over which the rate of what comes from a site is
	// measured, if it has come for so long; twice it is the most. Blobs come one
	// after the other, and artifacts of many sites take turns.
	rateOver = 5 * time.Minute
	// maxRefused bounds the sites of which is known that the queue refused something.
	maxRefused = 1000
)

// owing is what sites owe this one, by the site that accepted it: an entry for each
// that an artifact in the queue is from. It is guarded by the queue's lock.
type owing struct {
	of map[string]*debt
	// refused has the sites of which something found no place in the queue, and when
	// the first of that was pushed.
	refused map[string]time.Time
}

// debt is of one site, since nothing was awaited of it last.
type debt struct {
	artifacts int   // in the queue
	done      int64 // bytes that came
	// The rate is measured from the older of two marks; the newer one takes its place
	// when it is old enough.
	older, newer mark
	// flying are the larger blobs on their way, and how many artifacts wait for each.
	flying map[digest.Digest]int
}

// mark is how far it was.
type mark struct {
	at   time.Time
	done int64
}

func newOwing() owing { return owing{of: map[string]*debt{}, refused: map[string]time.Time{}} }

func (o *owing) debt(t *task) *debt {
	if t.kind != artifact || t.home == "" {
		return nil
	}
	return o.of[t.home]
}

func (o *owing) add(t *task, now time.Time) {
	if t.kind != artifact || t.home == "" {
		return
	}
	d := o.of[t.home]
	if d == nil {
		d = &debt{older: mark{at: now}, newer: mark{at: now}, flying: map[digest.Digest]int{}}
		o.of[t.home] = d
	}
	d.artifacts++
}

func (o *owing) drop(t *task) {
	d := o.debt(t)
	if d == nil {
		return
	}
	if d.artifacts--; d.artifacts == 0 {
		delete(o.of, t.home)
	}
}

func (o *owing) came(t *task, bytes int64, now time.Time) {
	d := o.debt(t)
	if d == nil {
		return
	}
	d.done += bytes
	if now.Sub(d.newer.at) >= rateOver {
		d.older, d.newer = d.newer, mark{now, d.done}
	}
}

// eta is how long so much takes, where part of it is here of blobs on their way.
func (d *debt) eta(now time.Time, missing, part int64) time.Duration {
	moved, took := d.done+part-d.older.done, now.Sub(d.older.at)
	if moved <= 0 || took <= 0 || missing <= 0 {
		return 0
	}
	return time.Duration(float64(took) * float64(missing) / float64(moved))
}

// refuse notes that something of a site found no place.
func (q *queue) refuse(home string, at time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if home == "" {
		return
	}
	first, known := q.owing.refused[home]
	if !known && len(q.owing.refused) >= maxRefused {
		return
	}
	if !known || at.Before(first) {
		q.owing.refused[home] = at
	}
}

// comes notes that a blob of a task is on its way; the returned function that it is
// not any more, of the site that the artifact was from at first: it may be another's by
// then (from).
func (q *queue) comes(t *task, b content) (ended func()) {
	if isSmall(b) {
		return func() {} // it comes whole
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	d := q.owing.debt(t)
	if d == nil {
		return func() {}
	}
	d.flying[b.digest]++
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if d.flying[b.digest]--; d.flying[b.digest] == 0 {
			delete(d.flying, b.digest)
		}
	}
}
