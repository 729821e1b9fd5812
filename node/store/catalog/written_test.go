package catalog

import (
	"testing"

	"github.com/portolan/portolan/node/identity"
)

func TestUnseen_WhatAStoreLostCountsAgain(t *testing.T) {
	inc := identity.NewIncarnation()
	word := func(n uint64) Written { return Written{Dot: Dot{inc, n}, Count: n} }
	covers := func(n uint64) Vector { return Vector{inc: n} }
	var u Unseen
	u.Hear(word(3), covers(3))
	u.Hear(word(5), covers(3))
	if n := u.Count(covers(3)); n != 2 {
		t.Fatalf("%d requests were never seen, want 2", n)
	}
	if n := u.Count(covers(0)); n != 5 { // a disk put back, or a site that came in anew
		t.Errorf("%d requests were never seen by who has nothing any more, want 5", n)
	}
	if n := u.Count(covers(5)); n != 0 {
		t.Errorf("%d requests were never seen by who has all, want 0", n)
	}
}

// TestUnseen_EachIncarnation: a store that was started again does not take back what
// it said before.
func TestUnseen_EachIncarnation(t *testing.T) {
	word := func(inc identity.Incarnation, n uint64) Written { return Written{Dot: Dot{inc, n}, Count: n} }
	first, second := identity.NewIncarnation(), identity.NewIncarnation()
	var u Unseen
	u.Hear(word(first, 10), nil)
	u.Hear(word(second, 1), nil)
	u.Hear(word(first, 4), nil) // came late
	for _, c := range []struct {
		covers Vector
		want   uint64
	}{{nil, 11}, {Vector{second: 1}, 10}, {Vector{first: 10}, 1}, {Vector{first: 10, second: 1}, 0}, {nil, 11}} {
		if n := u.Count(c.covers); n != c.want {
			t.Errorf("%d requests were never seen by who has %v, want %d", n, c.covers, c.want)
		}
	}
	// Those that are too many are forgotten if they were seen, and count on if not.
	seen := Vector{second: 1}
	for range maxIncarnations {
		u.Hear(word(identity.NewIncarnation(), 1), seen)
	}
	if n := u.Count(seen); n != 10+maxIncarnations || len(u.words) > maxIncarnations {
		t.Errorf("%d requests of %d incarnations, want %d", n, len(u.words), 10+maxIncarnations)
	}
}
