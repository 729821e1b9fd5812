package transfer

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
)

// Behind is how far this site is behind another: what that one accepted, rules
// want here, and is not wholly here.
type Behind struct {
	Site      string // that accepted it
	Artifacts int
	// Bytes of blobs that are missing; those of Unmeasured artifacts, which were not
	// looked at yet, are not in it.
	Bytes      int64
	Unmeasured int
	// Total is Bytes and what came since nothing was awaited of the site last.
	Total int64
	// ETA is how long Bytes take at the mean rate of the last minutes; 0: not known.
	ETA time.Duration
	// Partial: more is awaited than the queue takes. It is in Oldest alone.
	Partial bool
	// Oldest is when the first of them was pushed.
	Oldest time.Time
}

// Behind tells it of each site, by name. Sites that nothing is awaited from are
// left out. It goes through the queue.
func (r *Reconciler) Behind() []Behind {
	sites := map[string]*Behind{}
	at := func(home string, pushed time.Time) *Behind {
		b := sites[home]
		if b == nil {
			b = &Behind{Site: home, Oldest: pushed}
			sites[home] = b
		}
		if pushed.Before(b.Oldest) {
			b.Oldest = pushed
		}
		return b
	}
	q := r.queue
	q.mu.Lock()
	for _, t := range q.tasks {
		if t.kind != artifact || t.home == "" {
			continue
		}
		b := at(t.home, t.at)
		b.Artifacts++
		b.Bytes += t.missing
		if !t.measured {
			b.Unmeasured++
		}
	}
	for home, pushed := range q.owing.refused {
		at(home, pushed).Partial = true
	}
	coming := map[string][]digest.Digest{}
	for home := range sites {
		if d := q.owing.of[home]; d != nil {
			coming[home] = slices.Collect(maps.Keys(d.flying))
		}
	}
	q.mu.Unlock()
	// Of the blobs on their way, what is here; without the queue's lock, as the swarm
	// has its own.
	here := map[string]int64{}
	for home, blobs := range coming {
		for _, d := range blobs {
			here[home] += r.cfg.Swarm.Done(d)
		}
	}
	out := make([]Behind, 0, len(sites))
	q.mu.Lock()
	for _, b := range sites {
		part := min(here[b.Site], b.Bytes)
		b.Bytes -= part
		b.Total = b.Bytes
		if d := q.owing.of[b.Site]; d != nil {
			b.Total += d.done + part
			b.ETA = d.eta(q.now(), b.Bytes, part)
		}
		out = append(out, *b)
	}
	q.mu.Unlock()
	slices.SortFunc(out, func(a, b Behind) int { return cmp.Compare(a.Site, b.Site) })
	return out
}

// from notes who accepted an artifact that waits.
func (q *queue) from(k key, home string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t := q.tasks[k]; t != nil && t.home != home {
		q.owing.drop(t)
		t.home = home
		q.owing.add(t, q.now())
	}
}

// lacks notes how much of a task is missing, and that an attempt at it begins.
func (q *queue) lacks(t *task, fetch []content) {
	sum := int64(0)
	for _, b := range fetch {
		sum += b.size
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	t.measured, t.missing, t.total = true, sum, max(t.total, sum)
	t.begun, t.begunAt = q.now(), sum
}

// came notes that a blob of a task is here.
func (q *queue) came(t *task, bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t.missing = max(0, t.missing-bytes)
	q.owing.came(t, bytes, q.now())
}

// measure looks at what a task lacks that may not begin, once.
func (r *Reconciler) measure(t *task) {
	r.queue.mu.Lock()
	known := t.measured || t.kind != artifact
	r.queue.mu.Unlock()
	if known {
		return
	}
	c, err := r.closure(t.pid, t.repo, t.digest, false)
	if err != nil {
		return // its attempt says so
	}
	if fetch, _, err := r.lacking(t.pid, c); err == nil {
		r.queue.lacks(t, fetch)
	}
}

// eta is how long the rest of a task takes at the rate of its attempt; 0: not
// known.
func (t *task) eta(now time.Time) time.Duration {
	moved := t.begunAt - t.missing
	if !t.running || moved <= 0 || t.missing <= 0 {
		return 0
	}
	return time.Duration(float64(now.Sub(t.begun)) * float64(t.missing) / float64(moved))
}

// behindCollector reads the queue when it is asked.
type behindCollector struct{ r *Reconciler }

var (
	behindBytesDesc = prometheus.NewDesc("portolan_transfer_behind_bytes",
		"Bytes that a site accepted, that rules want here and that are not here, as far as they were looked at.", []string{"site"}, nil)
	behindSecondsDesc = prometheus.NewDesc("portolan_transfer_behind_seconds",
		"Age of the oldest push of a site that rules want here and that is not wholly here.", []string{"site"}, nil)
)

func (c behindCollector) Describe(out chan<- *prometheus.Desc) {
	out <- behindBytesDesc
	out <- behindSecondsDesc
}

// Collect tells of each other site with content, also of one that nothing is
// awaited of: an alert has to tell that from a series that is not there. A site
// that is gone is told of while its pushes are awaited.
func (c behindCollector) Collect(out chan<- prometheus.Metric) {
	now := c.r.cfg.Now()
	sites := map[string]Behind{}
	for _, s := range c.r.cfg.State.View().ContentSites() {
		if s.Name != c.r.cfg.Site {
			sites[s.Name] = Behind{Oldest: now}
		}
	}
	for _, b := range c.r.Behind() {
		sites[b.Site] = b
	}
	for site, b := range sites {
		out <- prometheus.MustNewConstMetric(behindBytesDesc, prometheus.GaugeValue, float64(b.Bytes), site)
		out <- prometheus.MustNewConstMetric(behindSecondsDesc, prometheus.GaugeValue, max(0, now.Sub(b.Oldest).Seconds()), site)
	}
}
