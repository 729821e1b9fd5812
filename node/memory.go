package node

import (
	"context"
	"math"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// settled is how long after it is ready a node's start is over: raft has read its
// log a second time by then, and the reconciler has looked at everything once.
const settled = 10 * time.Second

// giveBack returns what the start took and no longer needs to the system. A start
// that replays 65,000 commands leaves twice as much garbage as state, and the
// runtime by itself keeps that room for minutes: its next collection is due when the
// heap has doubled, or after two minutes. It costs one collection. The result is a
// part for stages; started is closed when the node is ready, free is
// debug.FreeOSMemory.
func giveBack(started <-chan struct{}, free func()) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-started:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-time.After(settled):
			free()
		case <-ctx.Done():
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

const (
	// softMemory is how much the runtime holds before it collects more often than
	// when the heap has doubled: tables that are written leave 60 MiB at a time, and a
	// heap of 150 MiB would grow to 300 for the sake of a collection less.
	softMemory = 256 << 20
	// softShare is the part of that limit that may be live. With less to spare a
	// collection follows the other: then the limit grows.
	softShare = 0.7
	// softEvery is how often what is live is looked at.
	softEvery = time.Second
)

// pace keeps the runtime's soft limit: softMemory, or more as far as what is live
// needs it. Who gave GOMEMLIMIT has its own, and pace does nothing.
func pace(ctx context.Context) error {
	if debug.SetMemoryLimit(-1) == math.MaxInt64 {
		now := int64(0)
		tick := time.NewTicker(softEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			if limit := softLimit(live()); limit != now {
				now = limit
				debug.SetMemoryLimit(limit)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
		debug.SetMemoryLimit(math.MaxInt64)
		return ctx.Err()
	}
	<-ctx.Done()
	return ctx.Err()
}

// softLimit is the limit for so many bytes that are live, in steps of an eighth of
// softMemory.
func softLimit(live uint64) int64 {
	const step = softMemory / 8
	need := int64(float64(live) / softShare)
	return max(softMemory, (need+step-1)/step*step)
}

// live is what the last collection found in use, and the stacks.
func live() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	sum := uint64(0)
	for _, m := range s {
		if m.Value.Kind() == metrics.KindUint64 {
			sum += m.Value.Uint64()
		}
	}
	return sum
}
