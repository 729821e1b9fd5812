package swarm

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portolan/portolan/node/identity"
)

func TestArrivals_RateIsOfTheLastWholeSeconds(t *testing.T) {
	node := identity.NodeID{1}
	start := time.Unix(1000, 0)
	var as arrivals
	rateAt := func(at time.Duration) (total int64, rate float64) {
		as.each(start.Add(at), func(n identity.NodeID, sum int64, r float64) {
			if n != node {
				t.Errorf("node %s", n)
			}
			total, rate = sum, r
		})
		return total, rate
	}
	for s := range 30 {
		for range 4 {
			as.add(node, 250, start.Add(time.Duration(s)*time.Second))
		}
	}
	for _, c := range []struct {
		at   time.Duration
		rate float64
	}{
		{29 * time.Second, 1000}, // the second that is under way counts for nothing
		{30 * time.Second, 1000},
		{35 * time.Second, 500},
		{40 * time.Second, 0},
		{time.Hour, 0},
	} {
		if total, rate := rateAt(c.at); total != 30_000 || rate != c.rate {
			t.Errorf("after %s: %d bytes in all, %.0f a second; want 30000 and %.0f", c.at, total, rate, c.rate)
		}
	}
	// A clock that is set back counts into the newest second.
	as.add(node, 500, start)
	if total, rate := rateAt(time.Hour + time.Second); total != 30_500 || rate != 50 {
		t.Errorf("%d bytes in all, %.0f a second", total, rate)
	}
}

func TestShare_PartsByRates(t *testing.T) {
	a, b := identity.NodeID{1}, identity.NodeID{2}
	for _, c := range []struct {
		name    string
		left    int64
		senders []identity.NodeID
		rates   map[identity.NodeID]float64
		want    map[identity.NodeID]int64
	}{
		{"nobody sends", 100, nil, nil, map[identity.NodeID]int64{}},
		{"no rate is known", 100, []identity.NodeID{a, b}, nil, map[identity.NodeID]int64{a: 50, b: 50}},
		{"by rates", 100, []identity.NodeID{a, b}, map[identity.NodeID]float64{a: 30, b: 10}, map[identity.NodeID]int64{a: 75, b: 25}},
		{"another peer's rate", 100, []identity.NodeID{a}, map[identity.NodeID]float64{b: 10}, map[identity.NodeID]int64{a: 100}},
	} {
		if diff := cmp.Diff(c.want, share(c.left, c.senders, c.rates)); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestLink_ETA(t *testing.T) {
	if got := (Link{Left: 1000, Rate: 100}).ETA(); got != 10*time.Second {
		t.Errorf("%s", got)
	}
	for _, l := range []Link{{Left: 1000}, {Rate: 100}} {
		if got := l.ETA(); got != 0 {
			t.Errorf("%+v: %s", l, got)
		}
	}
}
