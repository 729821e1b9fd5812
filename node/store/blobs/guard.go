package blobs

import (
	"context"
	"errors"
	"time"
)

// errStalled is the cause of a guard's end.
var errStalled = errors.New("no progress for too long")

// guard ends a context when a call on the bucket does not come back: there is no
// limit for a whole transfer, only for standing still. The clock runs between arm
// and rest alone, so that a slow client is not taken for a slow bucket.
type guard struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	limit  time.Duration
	timer  *time.Timer
}

func newGuard(ctx context.Context, limit time.Duration) *guard {
	g := &guard{limit: limit}
	g.ctx, g.cancel = context.WithCancelCause(ctx)
	g.timer = time.AfterFunc(limit, func() { g.cancel(errStalled) })
	return g
}

func (g *guard) arm()  { g.timer.Reset(g.limit) }
func (g *guard) rest() { g.timer.Stop() }

func (g *guard) end() {
	g.timer.Stop()
	g.cancel(context.Canceled)
}

// explain puts what ended the context in the place of the error that came of it.
func (g *guard) explain(err error) error {
	if cause := context.Cause(g.ctx); cause != nil && err != nil {
		return cause
	}
	return err
}
