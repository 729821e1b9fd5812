package transfer

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestPushGate_HoldWaitsForThoseUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pushGate
		first, wait := p.begin(time.Now())
		if first == nil || wait != 0 {
			t.Fatalf("an open gate says wait %s", wait)
		}
		time.AfterFunc(time.Second, first)
		begun := time.Now()
		if left, _ := p.hold(t.Context(), time.Now()); left != 0 || time.Since(begun) != time.Second {
			t.Errorf("%d were under way after %s", left, time.Since(begun))
		}
		first() // twice is as good as once
		if end, wait := p.begin(time.Now()); end != nil || wait != holdPushes-time.Second {
			t.Errorf("a held gate let a push through, or says wait %s", wait)
		}
		// Asked again, the time begins anew; then it opens by itself.
		time.Sleep(holdPushes / 2)
		p.hold(t.Context(), time.Now())
		time.Sleep(holdPushes - time.Nanosecond)
		if _, wait := p.begin(time.Now()); wait != time.Nanosecond {
			t.Errorf("wait %s", wait)
		}
		time.Sleep(time.Nanosecond)
		slow, _ := p.begin(time.Now())
		if slow == nil {
			t.Fatal("it stays shut")
		}
		begun = time.Now()
		if left, _ := p.hold(t.Context(), time.Now()); left != 1 || time.Since(begun) != endPushes {
			t.Errorf("%d were under way after %s", left, time.Since(begun))
		}
		slow()
		if left, _ := p.hold(t.Context(), time.Now()); left != 0 {
			t.Errorf("%d are under way", left)
		}
	})
}
