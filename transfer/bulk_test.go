package transfer

import (
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/transfer/rules"
)

// TestQueue_BulkHasPlacesForHigherPriorities: images of a lower one may take hours.
func TestQueue_BulkHasPlacesForHigherPriorities(t *testing.T) {
	q := newQueue(time.Now)
	n := 0
	add := func(priority int, at int64) {
		n++
		k := key{kind: artifact, digest: digest.FromString(fmt.Sprint(n))}
		if !q.add(k, 0, time.Unix(at, 0), rules.Terms{Priority: priority}) {
			t.Fatal("no room")
		}
		first, _ := q.take(laneArtifacts)
		if first == nil || first.key != k {
			t.Fatalf("%v is taken, not %v", first, k)
		}
		q.toBulk(first)
	}
	take := func(priority, most int) (got []*task) {
		t.Helper()
		for range most + 1 {
			x, _ := q.take(laneBulk)
			if x == nil {
				break
			}
			if x.goes.Priority != priority || x.goes.At != x.at.UnixNano() {
				t.Fatalf("%v is taken, want priority %d", x.goes, priority)
			}
			got = append(got, x)
		}
		if len(got) != most {
			t.Fatalf("%d of priority %d run, want %d", len(got), priority, most)
		}
		return got
	}
	for i := range 20 {
		add(0, int64(100-i))
	}
	low := take(0, artifactsAtOnce)
	for i := 1; i < len(low); i++ {
		if low[i].at.Before(low[i-1].at) {
			t.Error("a younger one goes first")
		}
	}
	for range 20 {
		add(1, 1)
	}
	take(1, aboveAtOnce)
	add(7, 1)
	take(7, 1) // and the rest of priority 1 waits
	for range 20 {
		add(8, 1)
	}
	take(8, aboveAtOnce)
	add(9, 1)
	add(9, 1)
	take(9, 2)
	// What ends makes room for the first of those that wait, once fewer run than are
	// of no matter which priority.
	for _, x := range low[:12] {
		q.finish(x, "", time.Time{})
	}
	take(8, 1)
	if _, running, _ := q.lengths(); running != 16 {
		t.Errorf("%d run", running)
	}
}
