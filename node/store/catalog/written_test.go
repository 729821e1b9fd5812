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
