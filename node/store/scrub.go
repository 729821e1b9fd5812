package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/store/blobs"
	"github.com/portolan/portolan/node/store/catalog"
)

// A disk may change bytes that nobody reads for a year, and then the other copies
// may have gone. So all blobs are read again, in the order of their digests, and
// hashed. One that is wrong ends as if a reader had found it: put aside, and gone
// for the other sites, so that it is fetched from one of them.
const (
	// DefaultScrubRate reads a terabyte in a day and a half, and takes 8 % of what a
	// single spinning disk gives.
	DefaultScrubRate = 8 << 20
	// scrubRest: it rests at least so many times what a read took, which is a tenth
	// of the disk's time. Where others keep the disk busy a read takes longer, and
	// the scrub gives way.
	scrubRest = 9
	// scrubPiece is read at a time: long enough for one seek not to matter, short
	// enough for a client's read behind it.
	scrubPiece = 1 << 20
	// scrubLeast is what a small blob counts as: its seek takes about as long.
	scrubLeast = 64 << 10
	// scrubEvery is how often a pass begins, if the one before has ended.
	scrubEvery = 7 * 24 * time.Hour
	// scrubSave is how often the position is written down. What was read since is
	// read again after a crash.
	scrubSave = time.Minute
	// scrubBatch is how many rows are read at a time.
	scrubBatch = 256
	// scrubRetry is when a pass goes on that could not read the catalogue, or
	// scrubMaxErrors files one after the other: then the disk is away.
	scrubRetry     = 10 * time.Minute
	scrubMaxErrors = 100
)

// Scrub says how far a store is with reading its blobs again.
type Scrub struct {
	// Rate is how many bytes a second it may read; 0: it does not run.
	Rate int64
	// Running: a pass is under way, which began at BegunAt; else the last one did.
	Running bool
	BegunAt time.Time
	// Blobs and Bytes are what that pass has read.
	Blobs, Bytes int64
	// Damaged blobs were found by that pass, Unread ones could not be read.
	Damaged, Unread int64
	// PassedAt is when the last whole pass ended; zero: none has.
	PassedAt time.Time
}

// scrubState is what the file `scrub` keeps. It is a position and no promise: one
// that can't be read costs a pass from the beginning.
type scrubState struct {
	Version  int           `json:"version"` // scrubVersion
	After    digest.Digest `json:"after"`   // read up to this one; empty: nothing is
	BegunAt  time.Time     `json:"begun_at"`
	EndedAt  time.Time     `json:"ended_at"` // of this pass; zero: it is under way
	PassedAt time.Time     `json:"passed_at"`
	Blobs    int64         `json:"blobs"`
	Bytes    int64         `json:"bytes"`
	Damaged  int64         `json:"damaged"`
	Unread   int64         `json:"unread"`
}

const (
	scrubFile = "scrub"
	// scrubVersion 1: the first.
	scrubVersion = 1
)

// scrubber has the position of the scrub. Run's goroutine alone moves it.
type scrubber struct {
	path string
	rate int64
	now  func() time.Time
	log  *slog.Logger
	wake chan struct{} // capacity 1: a pass is asked for

	mu    sync.Mutex
	at    scrubState
	asked bool
	saved time.Time

	bytes, damaged, unread float64 // since Open
}

func newScrubber(dir string, rate int64, now func() time.Time, log *slog.Logger) *scrubber {
	if rate == 0 {
		rate = DefaultScrubRate
	}
	c := &scrubber{path: filepath.Join(dir, scrubFile), rate: max(0, rate), now: now, log: log, wake: make(chan struct{}, 1)}
	b, err := os.ReadFile(c.path)
	if err == nil {
		err = json.Unmarshal(b, &c.at)
	}
	if err == nil && (c.at.Version != scrubVersion || c.at.After != "" && c.at.After.Validate() != nil) {
		err = errors.New("it is of another version, or damaged")
	}
	if err != nil {
		c.at = scrubState{}
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("the position of the scrub is lost: it begins anew", "file", c.path, "error", err)
		}
	}
	c.saved = now()
	return c
}

// Scrub says how far the scrub is.
func (s *Store) Scrub() Scrub {
	c := s.scrub
	c.mu.Lock()
	defer c.mu.Unlock()
	return Scrub{Rate: c.rate, Running: c.under(), BegunAt: c.at.BegunAt, Blobs: c.at.Blobs, Bytes: c.at.Bytes,
		Damaged: c.at.Damaged, Unread: c.at.Unread, PassedAt: c.at.PassedAt}
}

// StartScrub has a pass begin at once, from the first blob on, if the store scrubs
// at all. It does not wait.
func (s *Store) StartScrub() {
	c := s.scrub
	c.mu.Lock()
	c.asked = true
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// under reports whether a pass is under way. mu is held.
func (c *scrubber) under() bool { return !c.at.BegunAt.IsZero() && c.at.EndedAt.IsZero() }

// begin begins a pass if its time has come, and says how long to wait if not. A
// pass that a stop cut short goes on.
func (c *scrubber) begin() (wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if !c.asked {
		if c.under() {
			return 0
		}
		// A clock that was set back must not put it off for years.
		if wait = c.at.BegunAt.Add(scrubEvery).Sub(now); !c.at.BegunAt.IsZero() && wait > 0 && wait <= scrubEvery {
			return wait
		}
	}
	c.asked = false
	c.at = scrubState{Version: scrubVersion, BegunAt: now, PassedAt: c.at.PassedAt}
	return 0
}

// restart reports whether somebody asked for a new pass.
func (c *scrubber) restart() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

// read notes bytes that were read.
func (c *scrubber) read(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at.Bytes += n
	c.bytes += float64(n)
}

// did notes that a blob was looked at, and what came of it.
func (c *scrubber) did(d digest.Digest, err error) {
	c.mu.Lock()
	c.at.After = d
	switch {
	case errors.Is(err, ErrCorrupt):
		c.at.Damaged++
		c.damaged++
	case err != nil:
		c.at.Unread++
		c.unread++
	}
	c.at.Blobs++
	due := c.now().Sub(c.saved).Abs() >= scrubSave
	c.mu.Unlock()
	if due {
		c.save()
	}
}

// ended notes that all blobs were looked at.
func (c *scrubber) ended() scrubState {
	c.mu.Lock()
	c.at.EndedAt = c.now()
	c.at.PassedAt, c.at.After = c.at.EndedAt, ""
	at := c.at
	c.mu.Unlock()
	c.save()
	return at
}

// save writes the position down.
func (c *scrubber) save() {
	c.mu.Lock()
	at := c.at
	c.saved = c.now()
	c.mu.Unlock()
	b, err := json.Marshal(at)
	if err == nil {
		err = blobs.WriteFile(c.path, b)
	}
	if err != nil {
		c.log.Warn("the position of the scrub could not be written: after a restart it reads again what it has read", "file", c.path, "error", err)
	}
}

// pace is how long to rest after a read of n bytes that took some time.
func (c *scrubber) pace(n int64, took time.Duration) time.Duration {
	at := time.Duration(float64(max(n, scrubLeast)) / float64(c.rate) * float64(time.Second))
	return max(at-took, scrubRest*took)
}

// rest waits; false: ctx ended.
func rest(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-wake:
	}
	return true
}

// runScrub reads the blobs again, pass by pass, until ctx ends.
func (s *Store) runScrub(ctx context.Context) {
	c := s.scrub
	if c.rate == 0 {
		return
	}
	for {
		if wait := c.begin(); wait > 0 {
			if !rest(ctx, wait, c.wake) {
				return
			}
			continue
		}
		err := s.scrubPass(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, catalog.ErrClosed):
			c.save()
			return
		case errors.Is(err, errScrubAnew):
		case err != nil:
			s.log.Warn("the scrub waits: blobs could not be read again", "error", err)
			c.save()
			if !rest(ctx, scrubRetry, c.wake) {
				return
			}
		default:
			at := c.ended()
			s.log.Info("all blobs were read again", "blobs", at.Blobs, "bytes", at.Bytes, "damaged", at.Damaged, "unread", at.Unread, "took", at.EndedAt.Sub(at.BegunAt))
		}
	}
}

// errScrubAnew: somebody asked for a new pass in the midst of one.
var errScrubAnew = errors.New("a new scrub is asked for")

// scrubPass goes on from where the pass stands. nil: all blobs were looked at, whoever
// asks for the next pass by then. errScrubAnew: it is to begin anew.
func (s *Store) scrubPass(ctx context.Context) error {
	c := s.scrub
	buf := make([]byte, scrubPiece)
	failed := 0
	for {
		c.mu.Lock()
		after := c.at.After
		c.mu.Unlock()
		rows, err := s.cat.BlobsAfter(after, scrubBatch)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if c.restart() {
				return errScrubAnew
			}
			err := s.scrubBlob(ctx, row, buf)
			if ctx.Err() != nil || errors.Is(err, catalog.ErrClosed) {
				return err // it is read again
			}
			switch {
			case errors.Is(err, ErrNotFound):
				err = nil // collected, or replaced, meanwhile
			case errors.Is(err, ErrCorrupt):
				s.log.Error("the scrub found a damaged blob: it is put aside, and comes again from another site that has it", "digest", row.Digest, "error", err)
			case err != nil:
				failed++
				s.log.Warn("the scrub could not read a blob", "digest", row.Digest, "error", err)
			}
			if err == nil {
				failed = 0
			}
			c.did(row.Digest, err)
			if failed == scrubMaxErrors {
				return fmt.Errorf("%d blobs one after the other could not be read, the last one: %w", failed, err)
			}
		}
		if len(rows) < scrubBatch {
			return nil
		}
	}
}

// scrubBlob reads one blob whole. Objects of a bucket are not: a bucket has copies
// and a scrub of its own, and each byte of it is checked here when it is served.
func (s *Store) scrubBlob(ctx context.Context, row catalog.BlobRow, buf []byte) error {
	switch {
	case row.Inline:
		begun := time.Now()
		b, err := s.Open(ctx, row.Digest) // which hashes it
		if err != nil {
			return err
		}
		_ = b.Close()
		return s.scrubbed(ctx, row.Size, time.Since(begun))
	case s.files.Remote():
		return nil
	}
	b, err := s.openUnchecked(ctx, row)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	f, v := b.File(), row.Digest.Verifier()
	for off := int64(0); off < row.Size; {
		piece := buf[:min(int64(len(buf)), row.Size-off)]
		n := int64(len(piece))
		blobs.Forget(f, off, n)
		begun := time.Now()
		if k, err := f.ReadAt(piece, off); k < len(piece) {
			if spoils(err) {
				err = s.spoiled(context.WithoutCancel(ctx), row, f, err)
			}
			return err
		}
		took := time.Since(begun)
		blobs.Forget(f, off, n)
		_, _ = v.Write(piece) // a hash takes all
		off += n
		if err := s.scrubbed(ctx, n, took); err != nil {
			return err
		}
	}
	if !v.Verified() {
		return s.rotten(context.WithoutCancel(ctx), row, f)
	}
	return nil
}

// scrubbed notes what was read, and rests.
func (s *Store) scrubbed(ctx context.Context, n int64, took time.Duration) error {
	s.scrub.read(n)
	if !rest(ctx, s.scrub.pace(n, took), nil) {
		return ctx.Err()
	}
	return nil
}

var (
	scrubBytesDesc = prometheus.NewDesc("portolan_store_scrub_bytes_total",
		"Bytes of stored blobs that were read again to find bit rot.", nil, nil)
	scrubDamagedDesc = prometheus.NewDesc("portolan_store_scrub_damaged_blobs_total",
		"Stored blobs that were found damaged when they were read again.", nil, nil)
	scrubUnreadDesc = prometheus.NewDesc("portolan_store_scrub_unread_blobs_total",
		"Stored blobs that could not be read again, for another reason than damage.", nil, nil)
	scrubPassDesc = prometheus.NewDesc("portolan_store_scrub_last_pass_timestamp_seconds",
		"When the last pass over all stored blobs ended; 0: none has.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *scrubber) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{scrubBytesDesc, scrubDamagedDesc, scrubUnreadDesc, scrubPassDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *scrubber) Collect(out chan<- prometheus.Metric) {
	c.mu.Lock()
	bytes, damaged, unread, passed := c.bytes, c.damaged, c.unread, c.at.PassedAt
	c.mu.Unlock()
	at := 0.0
	if !passed.IsZero() {
		at = float64(passed.UnixMilli()) / 1000
	}
	out <- prometheus.MustNewConstMetric(scrubBytesDesc, prometheus.CounterValue, bytes)
	out <- prometheus.MustNewConstMetric(scrubDamagedDesc, prometheus.CounterValue, damaged)
	out <- prometheus.MustNewConstMetric(scrubUnreadDesc, prometheus.CounterValue, unread)
	out <- prometheus.MustNewConstMetric(scrubPassDesc, prometheus.GaugeValue, at)
}
