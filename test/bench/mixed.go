package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"
)

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// layerBytes is the blob that the mixed load pulls: a small layer.
const layerBytes = 256 << 10

// kind is one kind of operation of the mixed load.
type kind struct {
	name  string
	share int // of 100
	do    func(ctx context.Context, m *mix, c *client, i int) error
}

var kinds = []kind{
	{"pull manifest", 35, func(ctx context.Context, m *mix, c *client, i int) error {
		return c.getManifest(ctx, m.repo.name, tagName(scattered(i, stretch)), m.size)
	}},
	{"pull blob", 20, func(ctx context.Context, m *mix, c *client, _ int) error { return c.getBlob(ctx, m.repo.name, m.layer) }},
	{"head manifest", 15, func(ctx context.Context, m *mix, c *client, i int) error {
		return c.call(ctx, http.MethodHead, "/v2/"+m.repo.name+"/manifests/"+tagName(scattered(i, stretch)), http.StatusOK)
	}},
	{"push blob", 12, func(ctx context.Context, m *mix, c *client, _ int) error {
		return c.pushBlob(ctx, m.repo.name, m.repo.src.blob(smallBytes))
	}},
	{"push manifest", 12, func(ctx context.Context, m *mix, c *client, i int) error {
		return c.putManifest(ctx, m.repo.name, tagName(stretch+i), m.repo.image(stretch+i))
	}},
	{"list tags", 6, func(ctx context.Context, m *mix, c *client, _ int) error {
		return c.list(ctx, fmt.Sprintf("/v2/%s/tags/list?n=%d", m.repo.name, tagPage), tagPage)
	}},
}

// kindOf spreads the kinds over the operations' numbers, in their shares.
func kindOf(i int) int {
	at := scattered(i, 100)
	for k := range kinds {
		if at -= kinds[k].share; at < 0 {
			return k
		}
	}
	return 0
}

type mix struct {
	repo  *repository
	layer blob
	size  int // of its manifests

	mu   sync.Mutex
	took [][]time.Duration // by kind
}

// mixed has many clients pull and push at once, all with their credentials.
func (b *bench) mixed(ctx context.Context) error {
	p, err := b.startPair(ctx, b.dir, nil)
	if err != nil {
		return err
	}
	defer p.close()
	rate, failed, peak := samples{}, samples{}, samples{}
	p50, p99, tail := make([]samples, len(kinds)), make([]samples, len(kinds)), make([]samples, len(kinds))
	for k := range kinds {
		p50[k], p99[k], tail[k] = samples{}, samples{}, samples{}
	}
	for round := range 1 + b.Rounds/5 { // long enough each
		for _, s := range p.both(round) {
			m := &mix{repo: b.newRepository(fmt.Sprintf("library/mixed%d", round)), took: make([][]time.Duration, len(kinds))}
			m.layer = newSource(layerBytes).blob(layerBytes)
			m.size = len(m.repo.image(0).bytes)
			r, memory, err := m.run(ctx, b, s)
			if err != nil {
				return err
			}
			if r.Err != nil {
				fmt.Fprintf(os.Stderr, "          %s: %d errors, the first: %v\n", s.name, r.Errors, r.Err)
			}
			rate.add(s, r.rate())
			failed.add(s, float64(r.Errors))
			peak.add(s, memory)
			for k := range kinds {
				slices.Sort(m.took[k])
				q := result{Took: m.took[k]}
				p50[k].add(s, q.quantile(0.5))
				p99[k].add(s, q.quantile(0.99))
				tail[k].add(s, q.quantile(0.99)/max(q.quantile(0.5), 1e-6))
			}
		}
	}
	name := fmt.Sprintf("mixed, %d clients", b.MixedClients)
	b.report(name, "1/s", nil, rate)
	b.report(name+", errors", "", ownAtMost(0), failed)
	b.report(name+", peak RssAnon", "MiB", ownAtMost(mixedMiB*float64(b.MixedClients)), peak)
	for k := range kinds {
		b.report(name+", "+kinds[k].name+" p50", "ms", nil, p50[k])
		b.report(name+", "+kinds[k].name+" p99", "ms", nil, p99[k])
		b.report(name+", "+kinds[k].name+" p99 over p50", "times", ownAtMost(10), tail[k])
	}
	return nil
}

// mixedMiB is what each client of the mixed load may cost in memory, all told:
// memory is bounded by their number, not by what they do.
const mixedMiB = 2

// memoryEvery is how often the mixed load looks at the server's memory.
const memoryEvery = 200 * time.Millisecond

func (m *mix) run(ctx context.Context, b *bench, s *server) (r result, peak float64, err error) {
	if err := m.repo.prepare(ctx, s); err != nil {
		return r, 0, err
	}
	c := newClient(s, true)
	defer c.close()
	if err := c.pushBlob(ctx, m.repo.name, m.layer); err != nil {
		return r, 0, err
	}
	if _, err := m.repo.push(ctx, s, fillers, 0, stretch); err != nil {
		return r, 0, err
	}

	watch, end := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			if v, err := s.anonymous(); err == nil {
				peak = max(peak, v)
			}
			if wait(watch, memoryEvery) != nil {
				return
			}
		}
	})
	cs := newClients(s, b.MixedClients, true)
	defer cs.close()
	r = load{Clients: b.MixedClients, For: b.Mixed}.run(ctx, func(ctx context.Context, w, i int) error {
		k := kindOf(i)
		begin := time.Now()
		if err := kinds[k].do(ctx, m, cs[w], i); err != nil {
			return fmt.Errorf("%s: %w", kinds[k].name, err)
		}
		took := time.Since(begin)
		m.mu.Lock()
		m.took[k] = append(m.took[k], took)
		m.mu.Unlock()
		return nil
	})
	end()
	watching.Wait()
	return r, peak, ctx.Err()
}
