package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// load says how much to do: Count operations, or as many as begin within For.
type load struct {
	Clients int
	Count   int
	For     time.Duration
}

// result is what came of a load.
type result struct {
	Done    int             // operations without error
	Errors  int             // operations with one
	Elapsed time.Duration   // from the first operation's beginning to the last one's end
	Took    []time.Duration // of each operation without error, sorted
	Err     error           // the first error
}

// run has Clients workers do operations, each worker one after the other. The
// operation is told which worker does it and its own number, from 0; no number
// is given twice.
func (l load) run(ctx context.Context, op func(ctx context.Context, worker, i int) error) result {
	var next, errs atomic.Int64
	var once sync.Once
	var first error
	took := make([][]time.Duration, l.Clients)
	var wg sync.WaitGroup
	begin := time.Now()
	for w := range l.Clients {
		wg.Go(func() {
			for ctx.Err() == nil && (l.For == 0 || time.Since(begin) < l.For) {
				i := int(next.Add(1) - 1)
				if l.Count > 0 && i >= l.Count {
					return
				}
				t := time.Now()
				if err := op(ctx, w, i); err != nil {
					errs.Add(1)
					once.Do(func() { first = err })
					continue
				}
				took[w] = append(took[w], time.Since(t))
			}
		})
	}
	wg.Wait()
	r := result{Elapsed: time.Since(begin), Errors: int(errs.Load()), Took: slices.Concat(took...), Err: first}
	slices.Sort(r.Took)
	r.Done = len(r.Took)
	if err := ctx.Err(); r.Err == nil && err != nil {
		r.Err = err
	}
	return r
}

// rate is operations per second.
func (r result) rate() float64 { return float64(r.Done) / r.Elapsed.Seconds() }

// quantile of the times, in milliseconds; 0 if there are none.
func (r result) quantile(q float64) float64 {
	if len(r.Took) == 0 {
		return 0
	}
	i := min(int(q*float64(len(r.Took))), len(r.Took)-1)
	return float64(r.Took[i]) / float64(time.Millisecond)
}

// median of samples; 0 if there are none.
func median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	switch n := len(s); {
	case n == 0:
		return 0
	case n%2 == 1:
		return s[n/2]
	default:
		return (s[n/2-1] + s[n/2]) / 2
	}
}
