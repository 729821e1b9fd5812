package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/node/store/units"
)

// scrubbing opens a store that reads its blobs again at a rate.
func scrubbing(t *testing.T, dir string, rate int64, now func() time.Time) (*Store, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	s, err := Open(t.Context(), Config{Dir: filepath.Join(dir, "store"), Identity: newIdentity(t, dir),
		Logger: slog.New(slog.DiscardHandler), Now: now, ScrubRate: rate, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	return s, reg
}

// running runs a store until the returned function is called.
func running(t *testing.T, s *Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}

// until waits for the scrub to get somewhere.
func until(t *testing.T, s *Store, what string, ok func(Scrub) bool) {
	t.Helper()
	end := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok(s.Scrub()) {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s; it is at %+v", what, s.Scrub())
		}
	}
}

func passed(c Scrub) bool { return !c.PassedAt.IsZero() }

const fast = 1 << 40

// What is believed goes out unchecked, and rot changes no times: the scrub alone
// finds it.
func TestScrub_FindsRotThatIsBelieved(t *testing.T) {
	dir := t.TempDir()
	s, reg := scrubbing(t, dir, fast, time.Now)
	defer closeStore(t, s)
	good, rotten, small := content(1, int(2*units.Unit)+9), content(2, int(3*units.Unit)+5), content(3, 100)
	put(t, s, good)
	put(t, s, small)
	d := put(t, s, rotten)
	rot(t, s, d, int64(len(rotten))-1)
	if got, err := read(t, s, d); err != nil || bytes.Equal(got, rotten) {
		t.Fatalf("the check is not believed, this test tests nothing: %v", err)
	}
	stop := running(t, s)
	until(t, s, "a whole pass", passed)
	stop()
	if _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
		t.Fatalf("after the scrub: %v", err)
	}
	feed, err := s.Catalog().Feed(0, 10)
	if err != nil || len(feed) == 0 || feed[len(feed)-1].State != catalog.Gone || feed[len(feed)-1].Digest != d {
		t.Errorf("the other sites do not hear of it: %v, %v", feed, err)
	}
	if kept, err := filepath.Glob(filepath.Join(dir, "store", "quarantine", "*")); err != nil || len(kept) != 1 {
		t.Errorf("put aside: %v, %v", kept, err)
	}
	holds(t, s, good)
	holds(t, s, small)
	if c := s.Scrub(); c.Running || c.Damaged != 1 || c.Unread != 0 || c.Blobs != 3 || c.Bytes != int64(len(good)+len(rotten)+len(small)) {
		t.Errorf("it says %+v", c)
	}
	for name, want := range map[string]float64{
		"portolan_store_scrub_bytes_total": float64(len(good) + len(rotten) + len(small)), "portolan_store_scrub_damaged_blobs_total": 1,
		"portolan_store_scrub_unread_blobs_total": 0, "portolan_store_damaged_blobs_total": 1,
		"portolan_store_scrub_last_pass_timestamp_seconds": float64(s.Scrub().PassedAt.UnixMilli()) / 1000,
	} {
		if got := metric(t, reg, name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

func metric(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			m := f.GetMetric()[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestScrub_FindsWhatIsShortOrGone(t *testing.T) {
	s, _ := scrubbing(t, t.TempDir(), fast, time.Now)
	defer closeStore(t, s)
	short, gone := put(t, s, content(1, 100_000)), put(t, s, content(2, 100_000))
	if err := errors.Join(os.Truncate(fileOf(s, "blobs", short), 99_999), os.Remove(fileOf(s, "blobs", gone))); err != nil {
		t.Fatal(err)
	}
	stop := running(t, s)
	until(t, s, "a whole pass", passed)
	stop()
	for _, d := range []digest.Digest{short, gone} {
		if _, err := s.Stat(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", d, err)
		}
	}
	if c := s.Scrub(); c.Damaged != 2 {
		t.Errorf("it says %+v", c)
	}
}

// A stop in the middle costs the blob that was being read, not the pass.
func TestScrub_GoesOnAfterARestart(t *testing.T) {
	dir := t.TempDir()
	s, _ := scrubbing(t, dir, fast, time.Now)
	all := int64(0)
	const n = 5
	for i := range byte(n) {
		put(t, s, content(i, 3*scrubPiece))
		all += 3 * scrubPiece
	}
	closeStore(t, s)
	// The first blob in the time that it takes to look, the second never.
	s, _ = scrubbing(t, dir, fast, time.Now)
	first, err := s.Catalog().BlobsAfter("", 1)
	if err != nil || len(first) != 1 {
		t.Fatal(first, err)
	}
	s.scrub.begin()
	s.scrub.did(first[0].Digest, s.scrubBlob(t.Context(), first[0], make([]byte, scrubPiece)))
	s.scrub.rate = 1
	stop := running(t, s)
	until(t, s, "a piece of the second blob", func(c Scrub) bool { return c.Bytes == 4*scrubPiece })
	stop()
	closeStore(t, s)

	s, _ = scrubbing(t, dir, fast, time.Now)
	if c := s.Scrub(); !c.Running || c.Blobs != 1 {
		t.Errorf("after the restart it is at %+v", c)
	}
	stop = running(t, s)
	until(t, s, "a whole pass", passed)
	stop()
	// The first one was read once, a piece of the second twice.
	if c := s.Scrub(); c.Blobs != n || c.Bytes != all+scrubPiece {
		t.Errorf("at the end it says %+v, want %d blobs and %d bytes", c, n, all+scrubPiece)
	}
	closeStore(t, s)
	s, _ = scrubbing(t, dir, fast, time.Now)
	defer closeStore(t, s)
	if c := s.Scrub(); c.Running || !passed(c) {
		t.Errorf("a pass that ended is forgotten: %+v", c)
	}
}

// A pass begins a week after the one before, or when it is asked for; then it
// begins with the first blob.
func TestScrub_PassesBeginInTheirTime(t *testing.T) {
	now := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	s, _ := scrubbing(t, t.TempDir(), fast, func() time.Time { return now })
	defer closeStore(t, s)
	d := put(t, s, content(1, 100_000))
	c := s.scrub
	if wait := c.begin(); wait != 0 {
		t.Fatalf("the first pass waits %s", wait)
	}
	c.did(d, nil)
	if wait := c.begin(); wait != 0 || s.Scrub().Blobs != 1 {
		t.Fatalf("a pass that was cut short: waits %s, %+v", wait, s.Scrub())
	}
	c.ended()
	now = now.Add(time.Hour)
	if wait := c.begin(); wait != scrubEvery-time.Hour {
		t.Errorf("the next one waits %s", wait)
	}
	now = now.Add(-365 * 24 * time.Hour)
	if wait := c.begin(); wait != 0 {
		t.Errorf("after the clock was set back it waits %s", wait)
	}
	c.did(d, nil)
	s.StartScrub()
	if wait := c.begin(); wait != 0 || s.Scrub().Blobs != 0 || c.restart() {
		t.Errorf("a pass that was asked for: waits %s, %+v", wait, s.Scrub())
	}
	c.ended()
	now = now.Add(scrubEvery)
	if wait := c.begin(); wait != 0 {
		t.Errorf("a week later the next one waits %s", wait)
	}
}

func TestScrub_StartWhileItWaits(t *testing.T) {
	s, _ := scrubbing(t, t.TempDir(), fast, time.Now)
	defer closeStore(t, s)
	stop := running(t, s)
	defer stop()
	until(t, s, "a whole pass", passed)
	want := content(1, 100_000)
	d := put(t, s, want)
	rot(t, s, d, 7)
	s.StartScrub()
	until(t, s, "a pass that finds it", func(c Scrub) bool { return !c.Running && c.Damaged == 1 })
	put(t, s, want)
	holds(t, s, want)
}

// TestScrub_StartAtTheEndOfAPass: a pass that looked at all is one, also if the next is
// asked for right then.
func TestScrub_StartAtTheEndOfAPass(t *testing.T) {
	s, _ := scrubbing(t, t.TempDir(), fast, time.Now)
	defer closeStore(t, s)
	const blobs = 2
	for i := range blobs {
		put(t, s, content(byte(i+1), 100_000))
	}
	c := s.scrub
	var asked, counted bool
	c.now = func() time.Time { // with the lock, from the scrub alone
		switch {
		case c.at.Blobs == blobs && !asked:
			asked, c.asked = true, true
		case c.asked:
			counted = !c.at.PassedAt.IsZero() // last when the next one begins
		}
		return time.Now()
	}
	stop := running(t, s)
	until(t, s, "a pass", passed)
	stop()
	if !asked || !counted {
		t.Errorf("asked for at its end: %t; it was a whole one when the next began: %t", asked, counted)
	}
}

func TestScrub_Pace(t *testing.T) {
	c := newScrubber(t.TempDir(), 1<<20, time.Now, slog.New(slog.DiscardHandler))
	for _, x := range []struct {
		what       string
		n          int64
		took, want time.Duration
	}{
		{"the rest of a second", 1 << 20, 10 * time.Millisecond, 990 * time.Millisecond},
		{"a small blob is a seek", 100, 0, time.Second / 16},
		{"a busy disk", 1 << 20, 2 * time.Second, 18 * time.Second},
		{"a tenth of the disk's time", 1 << 20, 100 * time.Millisecond, 900 * time.Millisecond},
	} {
		if got := c.pace(x.n, x.took); got != x.want {
			t.Errorf("%s: rests %s after %d bytes in %s, want %s", x.what, got, x.n, x.took, x.want)
		}
	}
}

// The position is no promise: one that is damaged begins a pass.
func TestScrub_DamagedPosition(t *testing.T) {
	dir := t.TempDir()
	good, err := json.Marshal(scrubState{Version: scrubVersion, BegunAt: time.Now(), After: digest.FromString("x"), Blobs: 3})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"no JSON": "x", "another version": `{"version":7}`, "no digest": `{"version":1,"after":"sha256:zz"}`, "empty": "", "good": string(good)} {
		if err := os.WriteFile(filepath.Join(dir, scrubFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := newScrubber(dir, 1, time.Now, slog.New(slog.DiscardHandler))
		if c.under() != (name == "good") {
			t.Errorf("%s: %+v", name, c.at)
		}
	}
}

func TestScrub_Off(t *testing.T) {
	s, _ := scrubbing(t, t.TempDir(), -1, time.Now)
	defer closeStore(t, s)
	put(t, s, content(1, 100_000))
	s.runScrub(t.Context()) // it returns
	if c := s.Scrub(); c.Rate != 0 || c.Running || passed(c) {
		t.Errorf("it says %+v", c)
	}
}
