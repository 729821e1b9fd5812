// Package places says who goes first, and bounds how many go at once.
//
// What a rule of a high priority brings must not wait until what came before it is
// done, which may take hours; and what is begun must end before newer things begin,
// or nothing is ever whole. So places are given in order, and a few are kept for
// what goes before most of those that have one.
package places

import (
	"context"
	"math"
	"slices"
	"sync"
)

// Order is where something stands among others. The zero Order goes before all of
// its priority.
type Order struct {
	Priority int   // the higher goes first
	At       int64 // among equals the lower: Unix nanoseconds
}

// Last goes after all others, and counts as one of them nowhere.
var Last = Order{Priority: math.MinInt, At: math.MaxInt64}

// Before says whether o goes before p.
func (o Order) Before(p Order) bool {
	if o.Priority != p.Priority {
		return o.Priority > p.Priority
	}
	return o.At < p.At
}

// Compare is below zero if o goes before p, above if p goes before o.
func (o Order) Compare(p Order) int {
	switch {
	case o.Before(p):
		return -1
	case p.Before(o):
		return 1
	}
	return 0
}

// Places bound how many go at once. All may be used by many goroutines.
type Places struct {
	open, each, most int

	mu    sync.Mutex
	taken int
	of    map[int]int // taken, by priority
	line  []*Place    // those that wait, in order
}

// New makes places: open ones for whatever comes first, and beyond them, most in
// all, each many for what is of a priority, or above it, as long as fewer of those
// have one. So the first of a higher priority never wait for what is below them,
// whatever has the open ones, unless several priorities have used up all.
func New(open, each, most int) *Places {
	return &Places{open: open, each: each, most: most, of: map[int]int{}}
}

// Place is a place, or a place in the line for one.
type Place struct {
	order Order         // guarded by Places.mu, as all else
	got   chan struct{} // closed when it is one
	held  bool
	gone  bool
}

// Got is closed when the place is given.
func (p *Place) Got() <-chan struct{} { return p.got }

// Stand lines up. Leave must follow.
func (ps *Places) Stand(o Order) *Place {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := &Place{order: o, got: make(chan struct{})}
	ps.insert(p)
	ps.give()
	return p
}

// Take waits for a place. Leave must follow, if there is no error, which is that of
// ctx.
func (ps *Places) Take(ctx context.Context, o Order) (*Place, error) {
	p := ps.Stand(o)
	select {
	case <-p.got:
		return p, nil
	case <-ctx.Done():
		ps.Leave(p)
		return nil, ctx.Err()
	}
}

// Try takes a place if one is to be had at once: nil if not.
func (ps *Places) Try(o Order) *Place {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if !ps.free(o) || len(ps.line) > 0 && !o.Before(ps.line[0].order) {
		return nil
	}
	p := &Place{order: o, got: make(chan struct{})}
	ps.hold(p)
	return p
}

// Push takes a place though there may be none: others begin the later.
func (ps *Places) Push(o Order) *Place {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := &Place{order: o, got: make(chan struct{})}
	ps.hold(p)
	return p
}

// Leave gives a place up, or leaves the line. A second time changes nothing.
func (ps *Places) Leave(p *Place) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.gone {
		return
	}
	p.gone = true
	if p.held {
		ps.drop(p)
	} else {
		ps.line = slices.DeleteFunc(ps.line, func(o *Place) bool { return o == p })
	}
	ps.give()
}

// Move changes where a place stands.
func (ps *Places) Move(p *Place, o Order) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p.gone || p.order == o {
		return
	}
	if p.held {
		ps.drop(p)
		p.order = o
		ps.hold(p)
	} else {
		ps.line = slices.DeleteFunc(ps.line, func(x *Place) bool { return x == p })
		p.order = o
		ps.insert(p)
	}
	ps.give()
}

// Taken is how many have a place.
func (ps *Places) Taken() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.taken
}

// Waiting is how many stand in line.
func (ps *Places) Waiting() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return len(ps.line)
}

// insert lines up behind all that do not go after it; mu is held, here and below.
func (ps *Places) insert(p *Place) {
	at, _ := slices.BinarySearchFunc(ps.line, p, func(o, p *Place) int {
		if p.order.Before(o.order) {
			return 1
		}
		return -1
	})
	ps.line = slices.Insert(ps.line, at, p)
}

// give gives what is free to the first in line. Who is behind one that gets none
// would get none either: of its priority, and above, there are as many or more.
func (ps *Places) give() {
	for len(ps.line) > 0 && ps.free(ps.line[0].order) {
		p := ps.line[0]
		ps.line[0] = nil
		ps.line = ps.line[1:]
		ps.hold(p)
	}
}

func (ps *Places) free(o Order) bool {
	if ps.taken < ps.open {
		return true
	}
	if ps.taken >= ps.most {
		return false
	}
	n := 0
	for priority, k := range ps.of {
		if priority >= o.Priority {
			n += k
		}
	}
	return n < ps.each
}

func (ps *Places) hold(p *Place) {
	ps.taken++
	ps.of[p.order.Priority]++
	if !p.held {
		p.held = true
		close(p.got)
	}
}

func (ps *Places) drop(p *Place) {
	ps.taken--
	if ps.of[p.order.Priority]--; ps.of[p.order.Priority] == 0 {
		delete(ps.of, p.order.Priority)
	}
}
