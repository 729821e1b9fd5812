package main

import (
	"context"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// retryEvery is how often dev looks whether a site has come as far as it waits for.
const retryEvery = 100 * time.Millisecond

// eventually repeats op until it works, ctx ends or its error is permanent.
// When time runs out the last error is told too: it says what was waited for.
func eventually[T any](ctx context.Context, op func() (T, error)) (T, error) {
	var last error
	v, err := backoff.Retry(ctx, func() (T, error) {
		v, err := op()
		if err != nil && ctx.Err() == nil {
			last = err
		}
		return v, err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(retryEvery)), backoff.WithMaxElapsedTime(0))
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
		if last != nil {
			err = fmt.Errorf("%w (last: %w)", err, last)
		}
	}
	return v, err
}

// permanent marks an error after which eventually gives up.
func permanent(err error) error { return backoff.Permanent(err) }
