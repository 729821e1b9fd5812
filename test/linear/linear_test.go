package linear

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"go.uber.org/goleak"

	"github.com/portolan/portolan/test/cluster"
)

var (
	seedFlag = flag.Uint64("seed", 0, "of the faults and calls; 0: a new one")
	forFlag  = flag.Duration("for", 30*time.Second, "how long the clients call, per mesh: thousands of calls")
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		cluster.RemoveBinary()
		os.Exit(code)
	}))
}

// checkFor bounds the search; a history that it cannot decide in that time fails.
const checkFor = 2 * time.Minute

func TestLinearizable(t *testing.T) {
	for _, sites := range [][]string{{"ams", "fra", "sgp"}, {"ams", "fra", "sgp", "nyc", "tyo"}} {
		t.Run(fmt.Sprintf("%d voters", len(sites)), func(t *testing.T) {
			seed := chosenSeed(t)
			length := *forFlag
			if testing.Short() {
				length = min(length, 4*time.Second)
			}
			w := newWorld(t, sites...)
			w.run(length, seed)
			counts := map[string]int{}
			for _, op := range w.history {
				c, a := op.Input.(call), op.Output.(answer)
				counts[[]string{"reads", "writes", "swaps"}[c.kind]]++
				if a.unknown {
					counts["not known"]++
				}
				if a.lost {
					counts["lost"]++
				}
			}
			t.Logf("%d calls: %v", len(w.history), counts)
			if least := 5 * int(length.Seconds()); len(w.history) < least || counts["reads"] == 0 || counts["writes"] == 0 || counts["swaps"] == counts["lost"] {
				t.Errorf("too few calls got through to show anything: want %d at least, of each kind", least)
			}
			result, info := check(w.history, checkFor)
			if result == porcupine.Ok {
				return
			}
			show(t, model, result, info, "linear", seed)
		})
	}
}

// TestChecker_FindsStaleRead_OfARealNode: a node that is cut off, whose local
// read is given out as a strict one.
func TestChecker_FindsStaleRead_OfARealNode(t *testing.T) {
	w := newWorld(t, "ams", "fra", "sgp")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	leader, others, err := w.mesh.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	away, id := others[0], w.ids[0]
	for _, s := range []string{leader.Name, others[1].Name} {
		w.mesh.Net.CutBoth(away.Name, s)
	}
	w.do(ctx, 1, leader.Node(), call{object: id, kind: write, value: "new"})
	if len(w.history) != 1 {
		t.Fatal("the majority did not make the edit")
	}
	w.do(ctx, 2, leader.Node(), call{object: id, kind: read})
	if result, _ := check(w.history, checkFor); result != porcupine.Ok {
		t.Fatalf("a true history is %s", result)
	}
	w.do(ctx, 3, away.Node(), call{object: id, kind: read})
	if len(w.history) != 2 {
		t.Fatal("a node that is cut off answered a strict read")
	}
	from := time.Now()
	w.note(3, call{object: id, kind: read}, answer{object: look(away.Node(), id)}, from)
	if result, _ := check(w.history, checkFor); result != porcupine.Illegal {
		t.Fatalf("a stale read was not found: %s", result)
	}
}

// TestChecker_Knows the difference, on histories by hand.
func TestChecker_Knows(t *testing.T) {
	op := func(client int, from, to int64, c call, a answer) porcupine.Operation {
		c.object = 1
		return porcupine.Operation{ClientId: client, Input: c, Call: from, Output: a, Return: to}
	}
	got := func(value string, version uint64) answer { return answer{object: object{value, version}} }
	for name, c := range map[string]struct {
		want    porcupine.CheckResult
		history []porcupine.Operation
	}{
		"one after the other": {porcupine.Ok, []porcupine.Operation{
			op(1, 1, 2, call{kind: write, value: "a"}, answer{}), op(2, 3, 4, call{kind: read}, got("a", 2))}},
		"a stale read": {porcupine.Illegal, []porcupine.Operation{
			op(1, 1, 2, call{kind: write, value: "a"}, answer{}), op(2, 3, 4, call{kind: read}, got("", 1))}},
		"a read at the same time": {porcupine.Ok, []porcupine.Operation{
			op(1, 1, 5, call{kind: write, value: "a"}, answer{}), op(2, 3, 4, call{kind: read}, got("", 1))}},
		"reads go back": {porcupine.Illegal, []porcupine.Operation{
			op(1, 1, 9, call{kind: write, value: "a"}, answer{}), op(2, 2, 3, call{kind: read}, got("a", 2)), op(2, 4, 5, call{kind: read}, got("", 1))}},
		"two swaps of one version": {porcupine.Illegal, []porcupine.Operation{
			op(1, 1, 5, call{kind: swap, value: "a", seen: 1}, answer{}), op(2, 1, 5, call{kind: swap, value: "b", seen: 1}, answer{})}},
		"one of two swaps": {porcupine.Ok, []porcupine.Operation{
			op(1, 1, 5, call{kind: swap, value: "a", seen: 1}, answer{}), op(2, 1, 5, call{kind: swap, value: "b", seen: 1}, answer{lost: true})}},
		"a swap that lost to nobody": {porcupine.Illegal, []porcupine.Operation{
			op(1, 1, 5, call{kind: swap, value: "a", seen: 1}, answer{lost: true})}},
		"an edit of unknown end, made": {porcupine.Ok, []porcupine.Operation{
			op(1, 1, never, call{kind: write, value: "a"}, answer{unknown: true}), op(2, 7, 8, call{kind: read}, got("a", 2))}},
		"an edit of unknown end, not made": {porcupine.Ok, []porcupine.Operation{
			op(1, 1, never, call{kind: write, value: "a"}, answer{unknown: true}), op(2, 7, 8, call{kind: read}, got("", 1))}},
		"an edit of unknown end, made twice": {porcupine.Illegal, []porcupine.Operation{
			op(1, 1, never, call{kind: write, value: "a"}, answer{unknown: true}), op(2, 7, 8, call{kind: read}, got("a", 3))}},
		"an edit that was taken for not made": {porcupine.Illegal, []porcupine.Operation{
			op(2, 7, 8, call{kind: read}, got("a", 2))}},
	} {
		if result, _ := check(c.history, checkFor); result != c.want {
			t.Errorf("%s: %s, want %s", name, result, c.want)
		}
	}
}
