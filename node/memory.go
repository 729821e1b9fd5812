package node

import (
	"context"
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
