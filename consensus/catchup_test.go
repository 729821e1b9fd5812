package consensus

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/portolan/portolan/consensus/command"
)

func TestFitting(t *testing.T) {
	of := func(sizes ...int) (logs []*raft.Log) {
		for _, n := range sizes {
			logs = append(logs, &raft.Log{Data: make([]byte, n)})
		}
		return logs
	}
	for _, c := range []struct {
		sizes []int
		want  int
	}{
		{nil, 0},
		{[]int{1, 2, 3}, 3},
		{[]int{maxAppendBytes, 0}, 2},
		{[]int{maxAppendBytes, 1}, 1},
		{[]int{maxAppendBytes + 1, 1}, 1}, // it must go at some time
		{[]int{maxAppendBytes - 1, 1, 1}, 2},
	} {
		if got := len(fitting(of(c.sizes...))); got != c.want {
			t.Errorf("%v: %d entries, want %d", c.sizes, got, c.want)
		}
	}
}

// TestCatchUp_LargeEntries: more than a message may carry waits for a site that was
// away; it gets all of it, in messages that are no longer than that.
func TestCatchUp_LargeEntries(t *testing.T) {
	t.Parallel()
	_, all := three(t)
	leader, others := leaderOf(t, all)
	away := others[0]
	away.stop()
	comment := strings.Repeat("x", command.MaxBytes-200)
	var wg sync.WaitGroup
	const edits = 2*maxAppendBytes/command.MaxBytes + 10
	last := make([]uint64, edits)
	for i := range edits {
		wg.Go(func() {
			// The comment is too long for a comment: an edit that is refused is an entry
			// like any other.
			res, err := leader.node.Propose(t.Context(), "user:admin", &command.UserUpdate{Id: 2, Comment: &comment})
			var refusal *command.Error
			if !errors.As(err, &refusal) {
				t.Errorf("edit %d: %v", i, err)
			}
			last[i] = res.Index
		})
	}
	wg.Wait()
	away.start(nil)
	await(t, "the site that was away has every edit", func() bool { return away.node.State().View().Index() >= slices.Max(last) })
	away.mustCreateProject("after")
}
