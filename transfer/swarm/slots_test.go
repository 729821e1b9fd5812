package swarm

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		most := 2
		s := &slots{most: func() int { return most }}
		ctx, cancel := context.WithCancel(t.Context())
		for range 2 {
			if !s.take(ctx, nil) {
				t.Fatal("no slot of two")
			}
		}
		var got []string
		var mu sync.Mutex
		wait := func(name string, ctx context.Context, given <-chan struct{}) {
			go func() {
				ok := s.take(ctx, given)
				mu.Lock()
				defer mu.Unlock()
				if !ok {
					name = "not " + name
				}
				got = append(got, name)
			}()
			synctest.Wait()
		}
		urgent := make(chan struct{})
		wait("a", ctx, urgent)
		wait("b", t.Context(), nil)
		wait("c", t.Context(), nil)
		wait("d", ctx, nil)
		close(urgent)
		synctest.Wait()
		s.free() // b has it
		synctest.Wait()
		cancel()
		synctest.Wait()
		most = 1 // there are fewer: the next one that leaves lets nobody in
		s.free()
		synctest.Wait()
		if n := s.used(); n != 1 {
			t.Errorf("%d slots are taken, of one", n)
		}
		most = 3
		s.free()
		synctest.Wait()
		want := []string{"not a", "b", "not d", "c"}
		if len(got) != len(want) {
			t.Fatalf("%v, want %v", got, want)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%v, want %v", got, want)
			}
		}
		s.free()
		if n := s.used(); n != 0 {
			t.Errorf("%d slots are taken by nobody", n)
		}
	})
}

// A slot that is given to one that just stops waiting is not lost.
func TestSlots_AtOnce(t *testing.T) {
	s := &slots{most: func() int { return 3 }}
	var in atomic.Int32
	var wg sync.WaitGroup
	for i := range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if i%3 == 0 {
				cancel()
			}
			if s.take(ctx, nil) {
				if n := in.Add(1); n > 3 {
					t.Errorf("%d are in", n)
				}
				in.Add(-1)
				s.free()
			}
		})
		wg.Go(cancel)
	}
	wg.Wait()
	if s.used() != 0 || len(s.waiting) != 0 {
		t.Errorf("%d are in, %d wait", s.used(), len(s.waiting))
	}
}
