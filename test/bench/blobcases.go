package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
)

// group is cases that share what they prepare.
type group struct {
	name string
	run  func(*bench, context.Context) error
}

// groups in the order of the table.
var groups = []group{
	{"get blobs", func(b *bench, ctx context.Context) error { return b.getBlobs(ctx, nil, "", 1.2, 0.8) }},
	{"get blobs tls", (*bench).getBlobsTLS},
	{"put blobs tmpfs", func(b *bench, ctx context.Context) error {
		if b.memory == "" {
			return nil
		}
		return b.putBlobs(ctx, b.memory, "tmpfs", 1.2)
	}},
	{"put blobs disk", func(b *bench, ctx context.Context) error { return b.putBlobs(ctx, b.dir, "disk", 0.95) }},
	{"small blobs", (*bench).smallBlobs},
	{"tags", (*bench).tags},
	{"catalog", (*bench).catalog},
	{"idle", (*bench).idle},
	{"mixed", (*bench).mixed},
}

// onBoth gives a case's repository what it needs, at both.
func (p *pair) onBoth(do func(*server) error) error {
	for _, s := range p.both(0) {
		if err := do(s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// all runs a load and takes any error for the end of the bench: figures of
// requests that failed mean nothing.
func (l load) all(ctx context.Context, s *server, login bool, op func(ctx context.Context, c *client, i int) error) (result, error) {
	cs := newClients(s, l.Clients, login)
	defer cs.close()
	r := l.run(ctx, func(ctx context.Context, w, i int) error { return op(ctx, cs[w], i) })
	if r.Err != nil {
		return r, fmt.Errorf("%s: %d of %d operations failed: %w", s.name, r.Errors, r.Errors+r.Done, r.Err)
	}
	return r, nil
}

// spent runs do and gives the processor seconds that the server used meanwhile.
func (s *server) spent(do func() error) (float64, error) {
	before, err := s.cpu()
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := s.cpu()
	return after - before, err
}

const (
	mega = 1e6
	giga = 1e9
)

func (b *bench) getBlobsTLS(ctx context.Context) error {
	if !b.speaksTLS(ctx) {
		return nil
	}
	dir, err := os.MkdirTemp(b.dir, "portolan-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	cert, err := newCertificate(dir)
	if err != nil {
		return err
	}
	return b.getBlobs(ctx, cert, " over TLS", 1.1, 0)
}

// getBlobs downloads one large blob again and again: it is in the page cache.
func (b *bench) getBlobs(ctx context.Context, cert *certificate, over string, throughput, cpu float64) error {
	p, err := b.startPair(ctx, b.dir, cert)
	if err != nil {
		return err
	}
	defer p.close()
	const repo = "library/large"
	large := newSource(b.BlobBytes).blob(b.BlobBytes)
	err = p.onBoth(func(s *server) error {
		c := newClient(s, true)
		defer c.close()
		return c.pushBlob(ctx, repo, large)
	})
	if err != nil {
		return err
	}
	for _, n := range []int{1, 16} {
		rate, cost := samples{}, samples{}
		l := load{Clients: n, Count: b.Downloads * n}
		if n == 1 {
			l.Count *= 2 // one stream is over soon
		}
		for round := range b.Rounds {
			for _, s := range p.both(round) {
				var r result
				used, err := s.spent(func() (err error) {
					r, err = l.all(ctx, s, false, func(ctx context.Context, c *client, _ int) error { return c.getBlob(ctx, repo, large) })
					return err
				})
				if err != nil {
					return err
				}
				bytes := float64(large.size()) * float64(r.Done)
				rate.add(s, bytes/mega/r.Elapsed.Seconds())
				cost.add(s, used/(bytes/giga))
			}
		}
		name := fmt.Sprintf("GET blob %d MB%s, %s", b.BlobBytes/mega, over, clientsOf(n))
		b.report(name, "MB/s", ratioAtLeast(throughput), rate)
		var t *target
		if cpu > 0 {
			t = ratioAtMost(cpu)
		}
		b.report(name+", server CPU", "s/GB", t, cost)
	}
	return nil
}

func clientsOf(n int) string {
	if n == 1 {
		return "1 client"
	}
	return fmt.Sprintf("%d clients", n)
}

// putBlobs uploads large blobs. In each round each registry is alone and new, so
// that no round finds a fuller disk than the one before, and a tmpfs has room.
func (b *bench) putBlobs(ctx context.Context, on, medium string, throughput float64) error {
	// Two for each client: while the last ones end, cores stand idle.
	const each = 2
	src := newSource(b.BlobBytes)
	counts := []int{1, 8}
	rate, cost := map[int]samples{1: {}, 8: {}}, map[int]samples{1: {}, 8: {}}
	for round := range b.Rounds {
		blobs := map[int][]blob{}
		for _, n := range counts {
			for range n * each {
				blobs[n] = append(blobs[n], src.blob(b.BlobBytes))
			}
		}
		push := func(s *server) error {
			for _, n := range counts {
				var r result
				used, err := s.spent(func() (err error) {
					r, err = load{Clients: n, Count: n * each}.all(ctx, s, true, func(ctx context.Context, c *client, i int) error {
						return c.pushBlob(ctx, "library/large", blobs[n][i])
					})
					return err
				})
				if err != nil {
					return err
				}
				bytes := float64(b.BlobBytes) * float64(r.Done)
				rate[n].add(s, bytes/mega/r.Elapsed.Seconds())
				cost[n].add(s, used/(bytes/giga))
			}
			return nil
		}
		for _, who := range inTurn(round, bare) {
			if err := b.alone(ctx, who, on, push); err != nil {
				return err
			}
		}
	}
	for _, n := range counts {
		name := fmt.Sprintf("PUT blob %d MB on %s, %s", b.BlobBytes/mega, medium, clientsOf(n))
		b.report(name, "MB/s", ratioAtLeast(throughput), rate[n])
		b.report(name+", server CPU", "s/GB", nil, cost[n])
		b.report(name+" (theirs: a bare receiver)", "MB/s", nil, rate[n].beside(bare))
		b.report(name+", server CPU (theirs: a bare receiver)", "s/GB", nil, cost[n].beside(bare))
	}
	return nil
}

// smallBytes is a small layer or an image's config.
const smallBytes = 4 << 10

func (b *bench) smallBlobs(ctx context.Context) error {
	p, err := b.startPair(ctx, b.dir, nil)
	if err != nil {
		return err
	}
	defer p.close()
	src := newSource(smallBytes)
	for _, n := range []int{1, 16} {
		p50, rate := samples{}, samples{}
		l := load{Clients: n, Count: b.SmallPushes * n / 16}
		for round := range b.Rounds {
			blobs := make([]blob, l.Count)
			for i := range blobs {
				blobs[i] = src.blob(smallBytes)
			}
			for _, s := range p.both(round) {
				r, err := l.all(ctx, s, true, func(ctx context.Context, c *client, i int) error { return c.pushBlob(ctx, "library/small", blobs[i]) })
				if err != nil {
					return err
				}
				p50.add(s, r.quantile(0.5))
				rate.add(s, r.rate())
			}
		}
		name := "push 4 KiB blob (POST+PUT), " + clientsOf(n)
		b.report(name+", p50", "ms", ratioAtMost(0.4), p50)
		if n > 1 {
			b.report(name, "1/s", ratioAtLeast(3), rate)
		}
	}
	return nil
}

// list asks for a page and counts its entries.
func (c *client) list(ctx context.Context, path string, want int) error {
	r, err := c.do(ctx, request{method: http.MethodGet, path: path, want: http.StatusOK, keep: true})
	if err != nil {
		return err
	}
	// Two quotes per entry; the rest of the page has fewer than ten.
	if n := strings.Count(string(r.body), `"`) / 2; n < want || n > want+4 {
		return fmt.Errorf("GET %s: some %d entries instead of %d: %.200s", path, n, want, r.body)
	}
	return nil
}
