package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

const (
	// stretch is how many manifests "the first" and "the last" are.
	stretch = 100
	// fillers push what a case needs to be there.
	fillers = 16
	// tagPage is the page that is asked for.
	tagPage = 100
	// listings and deletions per round and server.
	listings  = 40
	deletions = 3
)

// repository is one that cases fill.
type repository struct {
	name          string
	src           *source
	config, layer blob
}

func (b *bench) newRepository(name string) *repository {
	r := &repository{name: name, src: newSource(smallBytes)}
	r.config, r.layer = r.src.blob(smallBytes), r.src.blob(smallBytes)
	return r
}

// prepare pushes the blobs that its images share.
func (r *repository) prepare(ctx context.Context, s *server) error {
	c := newClient(s, true)
	defer c.close()
	for _, b := range []blob{r.config, r.layer} {
		if err := c.pushBlob(ctx, r.name, b); err != nil {
			return err
		}
	}
	return nil
}

func (r *repository) image(i int) manifest { return r.src.image(r.config, r.layer, i) }

// push puts images from to to, each with a tag.
func (r *repository) push(ctx context.Context, s *server, clients, from, to int) (result, error) {
	return load{Clients: clients, Count: to - from}.all(ctx, s, true, func(ctx context.Context, c *client, i int) error {
		return c.putManifest(ctx, r.name, tagName(from+i), r.image(from+i))
	})
}

// scattered walks over n numbers in an order that no cache foresees, by steps of
// a prime.
func scattered(i, n int) int { return int(uint64(i) * 7_368_787 % uint64(n)) }

// tags are the cases about one repository that grows.
func (b *bench) tags(ctx context.Context) error {
	p, err := b.startPair(ctx, b.dir, nil)
	if err != nil {
		return err
	}
	defer p.close()

	first, last := samples{}, samples{}
	var small *repository
	for round := range b.Rounds {
		r := b.newRepository(fmt.Sprintf("library/small%d", round))
		small = r
		for _, s := range p.both(round) {
			if err := r.prepare(ctx, s); err != nil {
				return err
			}
			done, err := r.push(ctx, s, 1, 0, stretch)
			if err != nil {
				return err
			}
			first.add(s, done.quantile(0.5))
		}
	}
	large := b.newRepository("library/large")
	filled := max(b.Tags-b.Rounds*stretch, stretch)
	fill := samples{}
	err = p.onBoth(func(s *server) error {
		if err := large.prepare(ctx, s); err != nil {
			return err
		}
		r, err := large.push(ctx, s, fillers, 0, filled)
		fill.add(s, r.rate())
		return err
	})
	if err != nil {
		return err
	}
	b.report(fmt.Sprintf("PUT manifest + tag, %d clients, %d of them", fillers, filled), "1/s", nil, fill)
	for round := range b.Rounds {
		for _, s := range p.both(round) {
			done, err := large.push(ctx, s, 1, filled+round*stretch, filled+(round+1)*stretch)
			if err != nil {
				return err
			}
			last.add(s, done.quantile(0.5))
		}
	}
	n := filled + b.Rounds*stretch
	b.report(fmt.Sprintf("PUT manifest + tag, first %d", stretch), "ms", ratioAtMost(0.6), first)
	b.report(fmt.Sprintf("PUT manifest + tag, last %d of %d tags", stretch, n), "ms", ratioAtMost(0.6), last)
	b.growth("PUT manifest + tag, last over first", ownAtMost(1.3), last, first)

	if err := b.pullManifests(ctx, p, small, large, n); err != nil {
		return err
	}
	if err := b.listTags(ctx, p, small, large, n); err != nil {
		return err
	}
	return b.deleteManifests(ctx, p, large, n)
}

// growth compares a figure with itself in something smaller, at each server.
func (b *bench) growth(name string, t *target, large, small samples) {
	s := samples{}
	for _, who := range []string{ours, theirs} {
		if m := median(small[who]); m > 0 {
			s[who] = []float64{median(large[who]) / m}
		}
	}
	b.report(name, "times", t, s)
}

func (b *bench) pullManifests(ctx context.Context, p *pair, small, large *repository, n int) error {
	const clients = 64
	rates := []samples{{}, {}}
	costs := []samples{{}, {}}
	repos := []*repository{small, large}
	tags := []int{stretch, n}
	for round := range b.Rounds {
		for k, repo := range repos {
			size := len(repo.image(0).bytes)
			for _, s := range p.both(round) {
				var r result
				used, err := s.spent(func() (err error) {
					r, err = load{Clients: clients, For: b.For}.all(ctx, s, false, func(ctx context.Context, c *client, i int) error {
						return c.getManifest(ctx, repo.name, tagName(scattered(i, tags[k])), size)
					})
					return err
				})
				if err != nil {
					return err
				}
				rates[k].add(s, r.rate())
				costs[k].add(s, used*1e6/float64(r.Done))
			}
		}
	}
	for k := range repos {
		name := fmt.Sprintf("GET manifest by tag, %d clients, %d tags", clients, tags[k])
		b.report(name, "1/s", ratioAtLeast(2.5), rates[k])
		b.report(name+", server CPU", "us", ratioAtMost(0.3), costs[k])
	}
	b.growth(fmt.Sprintf("GET manifest by tag, rate with %d over %d tags", n, stretch), ownAtLeast(0.9), rates[1], rates[0])
	return nil
}

func (b *bench) listTags(ctx context.Context, p *pair, small, large *repository, n int) error {
	few, many := samples{}, samples{}
	for round := range b.Rounds {
		for _, s := range p.both(round) {
			if err := timeList(ctx, s, few, fmt.Sprintf("/v2/%s/tags/list?n=%d", small.name, tagPage), min(tagPage, stretch)); err != nil {
				return err
			}
			middle := fmt.Sprintf("/v2/%s/tags/list?n=%d&last=%s", large.name, tagPage, tagName(n/2))
			if err := timeList(ctx, s, many, middle, tagPage); err != nil {
				return err
			}
		}
	}
	b.report(fmt.Sprintf("tags/list n=%d of %d", tagPage, stretch), "ms", nil, few)
	b.report(fmt.Sprintf("tags/list n=%d from the middle of %d", tagPage, n), "ms", nil, many)
	b.growth("tags/list, large over small", ownAtMost(2), many, few)
	return nil
}

// timeList takes the median time of a listing.
func timeList(ctx context.Context, s *server, to samples, path string, want int) error {
	r, err := load{Clients: 1, Count: listings}.all(ctx, s, true, func(ctx context.Context, c *client, _ int) error {
		return c.list(ctx, path, want)
	})
	to.add(s, r.quantile(0.5))
	return err
}

func (b *bench) deleteManifests(ctx context.Context, p *pair, r *repository, n int) error {
	took := samples{}
	for round := range b.Rounds {
		for _, s := range p.both(round) {
			done, err := load{Clients: 1, Count: deletions}.all(ctx, s, true, func(ctx context.Context, c *client, i int) error {
				d := r.image(scattered(round*deletions+i, n)).digest
				return c.call(ctx, http.MethodDelete, "/v2/"+r.name+"/manifests/"+d, http.StatusAccepted)
			})
			if err != nil {
				return err
			}
			took.add(s, done.quantile(0.5))
		}
	}
	b.report(fmt.Sprintf("DELETE manifest by digest, %d tags", n), "ms", ratioAtMost(0.1), took)
	return nil
}

// catalog lists the repositories of registries that hold few, then many.
func (b *bench) catalog(ctx context.Context) error {
	p, err := b.startPair(ctx, b.dir, nil)
	if err != nil {
		return err
	}
	defer p.close()
	src := newSource(smallBytes)
	name := func(i int) string { return fmt.Sprintf("library/r%07d", i) }
	fill := func(from, to int) error {
		return p.onBoth(func(s *server) error {
			_, err := load{Clients: fillers, Count: to - from}.all(ctx, s, true, func(ctx context.Context, c *client, i int) error {
				return c.putManifest(ctx, name(from+i), "latest", src.empty(from+i))
			})
			return err
		})
	}
	few, many := samples{}, samples{}
	measure := func(to samples, last string) error {
		for round := range b.Rounds {
			for _, s := range p.both(round) {
				if err := timeList(ctx, s, to, fmt.Sprintf("/v2/_catalog?n=%d&last=%s", tagPage, url.QueryEscape(last)), tagPage); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := fill(0, tagPage); err != nil {
		return err
	}
	if err := measure(few, ""); err != nil {
		return err
	}
	n := max(b.Repositories, 3*tagPage)
	if err := fill(tagPage, n); err != nil {
		return err
	}
	if err := measure(many, name(n/2)); err != nil {
		return err
	}
	b.report(fmt.Sprintf("_catalog n=%d of %d", tagPage, tagPage), "ms", nil, few)
	b.report(fmt.Sprintf("_catalog n=%d from the middle of %d", tagPage, n), "ms", nil, many)
	b.growth("_catalog, large over small", ownAtMost(2), many, few)
	return nil
}

// tagsEach is how many tags each manifest has when idle memory is read.
const tagsEach = 10

// idle fills ours, starts both anew and reads how much memory they keep while
// nobody asks. Theirs keeps nothing of what it stores, so it is not filled.
func (b *bench) idle(ctx context.Context) error {
	p, err := b.startPair(ctx, b.dir, nil)
	if err != nil {
		return err
	}
	defer p.close()
	src := newSource(smallBytes)
	_, err = load{Clients: fillers, Count: b.IdleManifests}.all(ctx, p.ours, true, func(ctx context.Context, c *client, i int) error {
		m := src.empty(i)
		tags := make([]string, tagsEach)
		for t := range tags {
			tags[t] = "tag=" + tagName(i*tagsEach+t)
		}
		return c.putManifest(ctx, "library/many", m.digest+"?"+strings.Join(tags, "&"), m)
	})
	if err != nil {
		return err
	}
	p.halt()
	if err := p.startIn(ctx, nil); err != nil {
		return err
	}
	start := samples{}
	start.add(p.ours, float64(p.ours.ready.Milliseconds()))
	start.add(p.theirs, float64(p.theirs.ready.Milliseconds()))
	if err := wait(ctx, b.Idle); err != nil {
		return err
	}
	memory := samples{}
	for _, s := range p.both(0) {
		m, err := s.anonymous()
		if err != nil {
			return err
		}
		memory.add(s, m)
	}
	n := b.IdleManifests * tagsEach
	b.report(fmt.Sprintf("start until ready, %d tags (theirs: none)", n), "ms", ownAtMost(1000), start)
	b.report(fmt.Sprintf("idle RssAnon %s after the start, %d tags (theirs: none)", b.Idle, n), "MiB", ownAtMost(150), memory)
	return nil
}
