package places_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/portolan/portolan/transfer/places"
)

func has(p *places.Place) bool {
	select {
	case <-p.Got():
		return true
	default:
		return false
	}
}

func TestPlaces_InOrder(t *testing.T) {
	ps := places.New(1, 0, 1)
	first := ps.Stand(places.Order{At: 9})
	if !has(first) {
		t.Fatal("a free place is not given")
	}
	// In the order in which they are to go: by priority, then by age, then as they came.
	orders := []places.Order{{Priority: 5, At: 7}, {Priority: 5, At: 8}, {At: 1}, {At: 2}, {At: 2}, {At: 3}, {Priority: -1}, places.Last}
	waits := make([]*places.Place, len(orders))
	for _, i := range []int{3, 0, 7, 2, 4, 6, 1, 5} {
		waits[i] = ps.Stand(orders[i])
	}
	if n := ps.Waiting(); n != len(orders) {
		t.Errorf("%d wait", n)
	}
	for i, w := range waits {
		if has(w) {
			t.Fatalf("%d has a place before it is free", i)
		}
		if i == 0 {
			ps.Leave(first)
		} else {
			ps.Leave(waits[i-1])
		}
		if !has(w) || ps.Taken() != 1 {
			t.Fatalf("%d is next and has no place, %d are taken", i, ps.Taken())
		}
	}
	ps.Leave(waits[len(waits)-1])
	ps.Leave(waits[len(waits)-1])
	if ps.Taken() != 0 || ps.Waiting() != 0 {
		t.Errorf("%d are taken, %d wait", ps.Taken(), ps.Waiting())
	}
}

// What is of a higher priority does not wait for what is below it.
func TestPlaces_SomeAreForWhatIsAbove(t *testing.T) {
	ps := places.New(4, 2, 8)
	var low []*places.Place
	for range 6 {
		low = append(low, ps.Stand(places.Order{}))
	}
	if ps.Taken() != 4 || ps.Waiting() != 2 {
		t.Fatalf("%d of the lowest have places, %d wait", ps.Taken(), ps.Waiting())
	}
	stand := func(priority, n int) (got int) {
		for range n {
			if has(ps.Stand(places.Order{Priority: priority})) {
				got++
			}
		}
		return got
	}
	if n := stand(1, 3); n != 2 {
		t.Errorf("%d above have places, want 2", n)
	}
	if ps.Try(places.Order{Priority: 1}) != nil || ps.Try(places.Order{}) != nil {
		t.Error("a place too many")
	}
	if n := stand(7, 3); n != 2 {
		t.Errorf("%d above those have places, want 2", n)
	}
	if n := stand(9, 1); n != 0 || ps.Taken() != 8 {
		t.Errorf("%d are taken, want 8 at most", ps.Taken())
	}
	// What comes free is for the highest.
	ps.Leave(low[0])
	if ps.Taken() != 8 {
		t.Errorf("%d are taken: who is above all gets the first that comes free", ps.Taken())
	}
	for _, p := range low[1:4] {
		ps.Leave(p)
	}
	// One more of 7 and none of 1: of those and above there are two and more, and no
	// open place is free as yet.
	if ps.Taken() != 5 {
		t.Errorf("%d are taken, want 5", ps.Taken())
	}
}

func TestPlaces_MoveAndPush(t *testing.T) {
	ps := places.New(1, 0, 1)
	a, b, c := ps.Stand(places.Order{At: 1}), ps.Stand(places.Order{At: 2}), ps.Stand(places.Order{At: 3})
	ps.Move(c, places.Order{At: 1})
	p := ps.Push(places.Last)
	ps.Leave(a)
	if has(b) || has(c) || ps.Taken() != 1 {
		t.Error("what was pushed in takes no place")
	}
	ps.Leave(p)
	if !has(c) || has(b) {
		t.Error("the one that was moved is not the next")
	}

	ps = places.New(1, 1, 3)
	ps.Stand(places.Order{})
	b = ps.Stand(places.Order{})
	if has(b) {
		t.Error("a place too many")
	}
	ps.Move(b, places.Order{Priority: 1})
	if !has(b) {
		t.Error("it is above now, and waits for what is below")
	}
	ps.Move(b, places.Order{Priority: -1}) // it keeps what it has
	if d := ps.Stand(places.Order{Priority: 1}); !has(d) {
		t.Error("nothing of this priority has a place, and the one kept for it is not given")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ps.Take(ctx, places.Order{}); !errors.Is(err, context.Canceled) || ps.Waiting() != 0 {
		t.Errorf("%v, %d wait", err, ps.Waiting())
	}
}

// TestPlaces_Random: never more than there are, nobody waits while one is free for
// it, and all is given back.
func TestPlaces_Random(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		open, each, above := 1+rnd.IntN(5), rnd.IntN(4), rnd.IntN(6)
		ps := places.New(open, each, open+above)
		var all []*places.Place
		for range 300 {
			if i := rnd.IntN(len(all) + 3); i < len(all) {
				if rnd.IntN(3) == 0 {
					ps.Move(all[i], places.Order{Priority: rnd.IntN(4), At: rnd.Int64N(9)})
				} else {
					ps.Leave(all[i])
					all = append(all[:i], all[i+1:]...)
				}
			} else {
				all = append(all, ps.Stand(places.Order{Priority: rnd.IntN(4), At: rnd.Int64N(9)}))
			}
			held := 0
			for _, p := range all {
				if has(p) {
					held++
				}
			}
			if held != ps.Taken() || held > open+above || len(all)-held != ps.Waiting() {
				t.Fatalf("%d of %d hold one, %d are taken, %d wait", held, len(all), ps.Taken(), ps.Waiting())
			}
			if held < min(open, len(all)) {
				t.Fatalf("%d hold one of %d open ones, and %d wait", held, open, ps.Waiting())
			}
		}
		for _, p := range all {
			ps.Leave(p)
		}
		if ps.Taken() != 0 || ps.Waiting() != 0 {
			t.Fatalf("%d are taken at the end, %d wait", ps.Taken(), ps.Waiting())
		}
	}
}
