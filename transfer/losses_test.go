package transfer

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
)

// A feed that can't be read for a while loses nothing: it is read again, further and
// further apart, and then all is looked through once.
func TestLosses_TheFeedFailsForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		var entries []catalog.FeedEntry
		var broken error
		var asked []time.Time
		var lost []digest.Digest
		scans := 0
		news := make(chan struct{}, 1)
		l := &losses{news: news, log: slog.New(slog.DiscardHandler),
			feed: func(after uint64, n int) ([]catalog.FeedEntry, error) {
				mu.Lock()
				defer mu.Unlock()
				asked = append(asked, time.Now())
				if broken != nil {
					return nil, broken
				}
				i := slices.IndexFunc(entries, func(e catalog.FeedEntry) bool { return e.N > after })
				if i < 0 {
					return nil, nil
				}
				return entries[i:min(len(entries), i+n)], nil
			},
			lost: func(d digest.Digest) { mu.Lock(); lost = append(lost, d); mu.Unlock() },
			anew: func() { mu.Lock(); scans++; mu.Unlock() }}
		goes := func(name string) digest.Digest {
			d := digest.FromString(name)
			mu.Lock()
			entries = append(entries, catalog.FeedEntry{N: uint64(len(entries) + 1), Digest: d, State: catalog.Gone})
			mu.Unlock()
			wake(news)
			return d
		}
		goes("before the start")
		done := make(chan struct{})
		go func() { defer close(done); l.watch(ctx) }()
		synctest.Wait()
		first := goes("first")
		synctest.Wait()
		mu.Lock()
		broken, asked = errors.New("input/output error"), nil
		mu.Unlock()
		second := goes("second")
		time.Sleep(time.Hour) // of the bubble's clock
		synctest.Wait()
		mu.Lock()
		if n := len(asked); n < 15 || n > 25 || asked[1].Sub(asked[0]) != lossRetryFirst || asked[n-1].Sub(asked[n-2]) != lossRetryMost {
			t.Errorf("in an hour it asked at %v", asked)
		}
		if !slices.Equal(lost, []digest.Digest{first}) || scans != 0 {
			t.Errorf("lost %v, %d scans", lost, scans)
		}
		broken = nil
		mu.Unlock()
		time.Sleep(lossRetryMost)
		synctest.Wait()
		third := goes("third")
		synctest.Wait()
		mu.Lock()
		if !slices.Equal(lost, []digest.Digest{first, second, third}) || scans != 1 {
			t.Errorf("lost %v, %d scans", lost, scans)
		}
		broken = catalog.ErrClosed
		mu.Unlock()
		wake(news)
		<-done
	})
}
