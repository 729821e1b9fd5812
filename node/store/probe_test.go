package store

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/portolan/portolan/test/bucket"
)

// TestProbe_Bucket: the bucket's answer now is what counts, not that of the start.
func TestProbe_Bucket(t *testing.T) {
	server := bucket.Start(t)
	backend := s3(t, server, nil)
	s := mustOpenOn(t, t.TempDir(), backend)
	defer closeStore(t, s)
	s.probes.rest = 0
	push(t, s, content(1, 100_000))
	before := objects(t, server)
	well := func(what string) {
		t.Helper()
		if took, err := s.Probe(t.Context()); err != nil || took <= 0 {
			t.Errorf("%s: %s, %v", what, took, err)
		}
		if after := objects(t, server); !slices.Equal(before, after) {
			t.Errorf("%s: %v before, %v after", what, before, after)
		}
		tidy(t, s)
	}
	refused := func(what string) {
		t.Helper()
		_, err := s.Probe(t.Context())
		if u := away(t, err); !u.Refused {
			t.Errorf("%s: %v", what, err)
		}
	}
	well("a good bucket")

	good := backend.Driver
	backend.Driver = s3(t, server, map[string]string{"secretkey": "expired"}).Driver
	refused("credentials that have ended")
	backend.Driver = good
	well("good credentials again")

	for _, kind := range []string{"get", "put"} {
		server.OnRequest(func(is string, _ int, _ *http.Request) int {
			if is == kind {
				return http.StatusForbidden
			}
			return 0
		})
		refused("no right to " + kind)
		server.OnRequest(nil)
		well("all rights again")
	}
	server.OnRequest(func(is string, _ int, _ *http.Request) int {
		if is == "delete" {
			return http.StatusForbidden
		}
		return 0
	})
	refused("no right to delete")
	server.OnRequest(nil)
	if after := objects(t, server); len(after) != len(before)+1 {
		t.Fatalf("%v before, %v after: the sweep has nothing to do", before, after)
	}
	s.Sweep(t.Context())
	if after := objects(t, server); !slices.Equal(before, after) {
		t.Errorf("after a sweep: %v before, %v after", before, after)
	}
	well("a swept one")

	if err := server.HideBucket(); err != nil {
		t.Fatal(err)
	}
	refused("no bucket")
	if err := server.ShowBucket(); err != nil {
		t.Fatal(err)
	}
	well("the bucket again")
}

// TestProbe_OneAtATime: however many ask, a store is tried once.
func TestProbe_OneAtATime(t *testing.T) {
	server := bucket.Start(t)
	s := mustOpenOn(t, t.TempDir(), s3(t, server, nil))
	defer closeStore(t, s)
	asked := func(what string, want int) {
		t.Helper()
		if got := server.Asked()["put"]; got != want {
			t.Errorf("%s: %d were written, want %d", what, got, want)
		}
	}
	server.Asked()
	s.probes.rest = time.Hour
	for range 3 {
		if _, err := s.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	asked("within the rest", 1)
	s.probes.rest = 0
	if _, err := s.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	asked("after it", 1)

	// One that hangs: who asks is told so in time, and begins no other.
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if _, err := s.Probe(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a bucket that hangs: %v", err)
		}
		cancel()
	}
	s.probes.mu.Lock()
	s.probes.rest = time.Hour // it may end before it is asked for the last time
	s.probes.mu.Unlock()
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	asked("while one hung", 1)
}

// TestProbe_Closed: a store that is closed is not tried, and a probe does not
// outlive it.
func TestProbe_Closed(t *testing.T) {
	server := bucket.Start(t)
	s := mustOpenOn(t, t.TempDir(), s3(t, server, nil))
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Probe(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	closeStore(t, s)
	<-s.probes.last.done
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Probe(t.Context()); !errors.Is(err, ErrProbeClosed) {
		t.Errorf("got %v", err)
	}
}
