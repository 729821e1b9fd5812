package catalog

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/portolan/portolan/node/identity"
)

// The list has the last ones, however many there are, and the counter all: also those
// that one page brought.
func TestConflicts_TheLastOnes(t *testing.T) {
	clk := newClock()
	loser, winner := openMemory(t, Options{Now: clk.now}), openMemory(t, Options{Now: clk.now})
	pid := identity.NewProjectID()
	const n, shown = 50, 7
	for i := range n {
		mustPut(t, loser, put(pid, "app", fmt.Sprint("lost", i), tagName(i)))
	}
	clk.at = clk.at.Add(time.Second)
	for i := range n {
		mustPut(t, winner, put(pid, "app", fmt.Sprint("won", i), tagName(i)))
		if i%10 == 9 { // so many are found together
			clk.at = clk.at.Add(time.Second)
			mustPull(t, loser, winner, pid)
		}
	}
	got, err := loser.Conflicts(pid, shown)
	if err != nil || len(got) != shown {
		t.Fatalf("%d of them, %v", len(got), err)
	}
	for i, c := range got {
		if c.Tag != tagName(n-1-i) || !c.FoundAt.Equal(clk.at) {
			t.Errorf("number %d is %s, found at %s", i, c.Tag, c.FoundAt)
		}
	}
	if all, err := loser.Conflicts(pid, 10*n); err != nil || len(all) != n {
		t.Errorf("%d of them, %v", len(all), err)
	}
	if got := testutil.ToFloat64(loser.metrics.conflicts); got != n {
		t.Errorf("it counts %v", got)
	}
}
