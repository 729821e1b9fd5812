package swarm

import (
	"context"
	"errors"
	"testing"
	"time"
)

func (w *slot) given() bool {
	select {
	case <-w.got:
		return true
	default:
		return false
	}
}

// Each class has streams, whatever the others want, and together there are no more
// than the host admits.
func TestSlots_SomeForEachClass(t *testing.T) {
	for _, order := range [][]class{
		{classClient, classHurried, classReplication},
		{classReplication, classHurried, classClient},
		{classHurried, classReplication, classClient},
	} {
		var s slots
		var got [classes][]*slot
		for _, c := range order {
			for range 2 * maxSessions {
				if w := s.stand(c, rank{}); w.given() {
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
	var s slots
	var held []*slot
	for {
		w := s.stand(classReplication, rank{})
		if !w.given() {
			s.leave(w)
			break
		}
		held = append(held, w)
	}
	now := time.Now()
	young, old := s.stand(classReplication, rank{since: now}), s.stand(classReplication, rank{since: now.Add(-time.Second)})
	s.leave(held[0])
	if young.given() || !old.given() {
		t.Error("the younger one goes first")
	}
	// One that becomes urgent while it waits is in another line.
	urgent, took := make(chan struct{}), make(chan *slot, 1)
	go func() {
		w, err := s.take(t.Context(), need{urgent: urgent, rank: rank{since: now}})
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
