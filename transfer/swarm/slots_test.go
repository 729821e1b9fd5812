package swarm

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// put has somebody stand that is always of a class.
func (s *slots) put(c class, r rank) *slot {
	w, _ := s.stand(need{at: func() (class, rank, <-chan struct{}) { return c, r, nil }})
	return w
}

// Each class has streams, whatever the others want, and together there are no more
// than the host admits.
func TestSlots_SomeForEachClass(t *testing.T) {
	for _, order := range [][]class{
		{classClient, classHurried, classReplication},
		{classReplication, classHurried, classClient},
		{classHurried, classReplication, classClient},
	} {
		s := slots{most: func() int { return maxSessions }}
		var got [classes][]*slot
		for _, c := range order {
			for range 2 * maxSessions {
				if w := s.put(c, rank{}); w.given() {
					got[c] = append(got[c], w)
				}
			}
		}
		all := 0
		for c, n := range got {
			if len(n) < leastSessions[c] {
				t.Errorf("%v: %d streams for class %d", order, len(n), c)
			}
			all += len(n)
		}
		if all != maxSessions {
			t.Errorf("%v: %d streams", order, all)
		}
		if n := len(got[classReplication]); n > 20 {
			t.Errorf("%v: %d streams for rules", order, n)
		}
		if s.unused() {
			t.Error("unused, although all are used")
		}
	}
}

func TestSlots_InOrderAndMoreUrgentMeanwhile(t *testing.T) {
	s := slots{most: func() int { return maxSessions }}
	var held []*slot
	for {
		w := s.put(classReplication, rank{})
		if !w.given() {
			s.leave(w)
			break
		}
		held = append(held, w)
	}
	now := time.Now()
	young, old := s.put(classReplication, rank{since: now}), s.put(classReplication, rank{since: now.Add(-time.Second)})
	s.leave(held[0])
	if young.given() || !old.given() {
		t.Error("the younger one goes first")
	}
	// One that becomes urgent while it waits is in another line.
	urgent, took := make(chan struct{}), make(chan *slot, 1)
	go func() {
		w, err := s.take(t.Context(), need{at: func() (class, rank, <-chan struct{}) {
			select {
			case <-urgent:
				return classHurried, rank{since: now}, nil
			default:
				return classReplication, rank{since: now}, urgent
			}
		}})
		if err != nil {
			t.Error(err)
		}
		took <- w
	}()
	eventually(t, "it stands in line", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.line) == 2 })
	close(urgent)
	w := <-took
	if w.class != classHurried {
		t.Errorf("class %d", w.class)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.take(ctx, need{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, w := range append(held[1:], w, old, young) {
		s.leave(w)
	}
	if !s.unused() {
		t.Errorf("%v are used in the end, %d wait", s.used, len(s.line))
	}
}

// In a larger mesh there are fewer to each holder; each class has some as long as
// there are so many. How many there are may change while they are used.
func TestSlots_AsManyAsThereAre(t *testing.T) {
	most := 0
	s := slots{most: func() int { return most }}
	for most = 1; most <= maxSessions; most++ {
		var held []*slot
		var got [classes]int
		for c := range classes {
			for range 2 * most {
				w := s.put(c, rank{})
				if w.given() {
					got[c]++
				}
				held = append(held, w)
			}
		}
		all := 0
		for c, n := range got {
			if most >= int(classes) && n == 0 {
				t.Errorf("of %d streams none is for class %d", most, c)
			}
			all += n
		}
		if all != most {
			t.Errorf("%d streams of %d", all, most)
		}
		for _, w := range held {
			s.leave(w)
		}
		held = nil
		for _, c := range []class{classReplication, classHurried, classClient} {
			n := 0
			for range 2 * most {
				w := s.put(c, rank{})
				if w.given() {
					n++
				}
				held = append(held, w)
			}
			if n == 0 && (most >= int(classes) || most == 2 && c == classClient) {
				t.Errorf("of %d streams those of rules keep out class %d", most, c)
			}
		}
		for _, w := range held {
			s.leave(w)
		}
	}
	most = 4
	a, b, c := s.put(classClient, rank{}), s.put(classClient, rank{}), s.put(classClient, rank{})
	if !a.given() || !b.given() || c.given() {
		t.Fatal("of four streams two are for clients")
	}
	most = 1
	if s.leave(a); c.given() {
		t.Error("a second one of one")
	}
	if s.leave(b); !c.given() {
		t.Error("none of one")
	}
	s.leave(c)
	if !s.unused() {
		t.Error("used in the end")
	}
}

// A slot that is given to one that just stops waiting is not lost.
func TestSlots_AtOnce(t *testing.T) {
	s := slots{most: func() int { return 3 }}
	var in atomic.Int32
	var wg sync.WaitGroup
	for i := range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if i%3 == 0 {
				cancel()
			}
			if w, err := s.take(ctx, need{}); err == nil {
				if n := in.Add(1); n > 3 {
					t.Errorf("%d are in", n)
				}
				in.Add(-1)
				s.leave(w)
			}
		})
		wg.Go(cancel)
	}
	wg.Wait()
	if !s.unused() {
		t.Errorf("%v are in, %d wait", s.used, len(s.line))
	}
}
