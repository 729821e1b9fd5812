package transfer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/portolan/portolan/consensus/state"
	"github.com/portolan/portolan/transfer/rules"
)

func TestGate_EndsWhatIsUnderWay(t *testing.T) {
	g := newGate()
	ctx, stop, err := g.pass(t.Context())
	if err != nil || ctx.Err() != nil {
		t.Fatalf("an open gate: %v, %v", err, ctx.Err())
	}
	if g.set(state.Pause{Site: "sgp", By: "user:ann", At: time.Unix(0, 0)}, true) {
		t.Error("a gate that closes was opened")
	}
	<-ctx.Done()
	stop()
	var paused *pausedError
	if _, _, err := g.pass(t.Context()); !errors.As(err, &paused) || !errors.As(g.why(), &paused) {
		t.Errorf("a closed gate: %v", err)
	}
	if want := "site sgp is paused since 1970-01-01T00:00:00Z by user:ann: let it go on with: portolan transfer resume sgp"; g.why().Error() != want {
		t.Errorf("it says %q", g.why())
	}
	if g.set(state.Pause{}, true) || !g.set(state.Pause{}, false) || g.set(state.Pause{}, false) {
		t.Error("a gate tells of being opened once")
	}
	own, cancel := context.WithCancel(t.Context())
	ctx, stop, err = g.pass(own)
	if err != nil || g.why() != nil {
		t.Fatalf("opened again: %v", err)
	}
	cancel()
	<-ctx.Done()
	stop()
}

func TestQueue_ListsWhatIsNext(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	q := newQueue(func() time.Time { return now })
	for i, name := range []string{"d", "c", "b", "a"} {
		q.add(named(name), 0, now.Add(-time.Duration(i)*time.Hour), rules.Terms{})
	}
	failed, _ := q.take(laneArtifacts) // a
	q.finish(failed, "nobody has it", time.Time{})
	if running, _ := q.take(laneArtifacts); running.repo != "b" {
		t.Fatalf("took %s", running.repo)
	}
	list := q.list(10)
	if len(list) != 4 || list[0].repo != "b" || !list[0].running || list[1].repo != "a" || list[1].reason != "nobody has it" || list[1].next.IsZero() ||
		list[2].repo != "c" || list[3].repo != "d" {
		t.Errorf("listed %+v", list)
	}
	if list := q.list(2); len(list) != 2 || list[1].repo != "a" {
		t.Errorf("the first two: %+v", list)
	}
}
