package swarm

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlots_WhatIsOverStandsInNoLine: a blob that is complete is not kept from the store
// by a stream that it stands in line for.
func TestSlots_WhatIsOverStandsInNoLine(t *testing.T) {
	s := &slots{most: func() int { return 1 }, used: map[*slot]struct{}{}}
	held, err := s.take(t.Context(), need{})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := s.take(t.Context(), need{over: over})
		ended <- err
	}()
	close(over)
	if err := <-ended; !errors.Is(err, errOver) {
		t.Errorf("error %v", err)
	}
	s.leave(held)
	if len(s.line)+len(s.used) != 0 {
		t.Errorf("%d in line, %d used", len(s.line), len(s.used))
	}
}

// dribble is a stream that gives a byte just before it would have been silent for too
// long.
type dribble struct {
	deadlined
	each time.Duration
}

func (d *dribble) Read(b []byte) (int, error) {
	if time.Until(d.at) < d.each {
		<-time.After(time.Until(d.at))
		return 0, context.DeadlineExceeded
	}
	<-time.After(d.each)
	d.reads = append(d.reads, d.each)
	return min(1, len(b)), nil
}

// TestBatch_WhoDribblesEnds: a peer that sends a byte now and then does not keep others'
// small blobs for ever, and the budget is paid for what came alone.
func TestBatch_WhoDribblesEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, paid := &dribble{each: 1900 * time.Millisecond}, 0
		ss := &session{st: st, stall: 10 * time.Second, quiet: 2 * time.Second}
		ss.pace = func(n int) (int, error) { paid += n; return n, nil }
		r := &batchReader{ss: ss}
		r.answer(ss.quiet)
		begun := time.Now()
		var err error
		for err == nil && time.Since(begun) < time.Hour {
			_, err = r.Read(make([]byte, 1000))
		}
		if took := time.Since(begun); err == nil || took > ss.stall+ss.quiet {
			t.Errorf("after %s: %v", took, err)
		}
		if paid != 1000 || len(st.reads) < 2 {
			t.Errorf("%d bytes were paid for %d reads, want 1000 once", paid, len(st.reads))
		}
	})
}
