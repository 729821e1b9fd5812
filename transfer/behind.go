package transfer

import (
	"cmp"
	"slices"
	"time"

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
	// Oldest is when the first of them was pushed.
	Oldest time.Time
}

// Behind tells it of each site, by name. Sites that nothing is awaited from are
// left out. It goes through the queue.
func (r *Reconciler) Behind() []Behind {
	sites := map[string]*Behind{}
	r.queue.mu.Lock()
	for _, t := range r.queue.tasks {
		if t.kind != artifact || t.home == "" {
			continue
		}
		b := sites[t.home]
		if b == nil {
			b = &Behind{Site: t.home, Oldest: t.at}
			sites[t.home] = b
		}
		b.Artifacts++
		b.Bytes += t.missing
		if !t.measured {
			b.Unmeasured++
		}
		if t.at.Before(b.Oldest) {
			b.Oldest = t.at
		}
	}
	r.queue.mu.Unlock()
	out := make([]Behind, 0, len(sites))
	for _, b := range sites {
		out = append(out, *b)
	}
	slices.SortFunc(out, func(a, b Behind) int { return cmp.Compare(a.Site, b.Site) })
	return out
}

// from notes who accepted an artifact that waits.
func (q *queue) from(k key, home string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if t := q.tasks[k]; t != nil {
		t.home = home
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

func (c behindCollector) Collect(out chan<- prometheus.Metric) {
	now := c.r.cfg.Now()
	for _, b := range c.r.Behind() {
		out <- prometheus.MustNewConstMetric(behindBytesDesc, prometheus.GaugeValue, float64(b.Bytes), b.Site)
		out <- prometheus.MustNewConstMetric(behindSecondsDesc, prometheus.GaugeValue, max(0, now.Sub(b.Oldest).Seconds()), b.Site)
	}
}
