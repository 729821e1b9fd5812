package transfer

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/store/catalog"
)

const (
	// lossRetryFirst and lossRetryMost bound the wait after the store's feed could not
	// be read.
	lossRetryFirst = time.Second
	lossRetryMost  = 5 * time.Minute
	// lossBatch is how many entries of the feed are read at a time.
	lossBatch = 1000
)

// losses notices blobs that this store no longer has, by its own feed.
type losses struct {
	feed func(after uint64, n int) ([]catalog.FeedEntry, error)
	news <-chan struct{} // the feed may have grown
	lost func(digest.Digest)
	// anew looks for all that is wanted here and missing: some entries of the feed may
	// never be read.
	anew func()
	log  *slog.Logger
}

// watch reads the feed until ctx ends or the catalogue is closed. What went before
// the start is found by the scan at the start.
func (l *losses) watch(ctx context.Context) {
	cursor, started, failed := uint64(0), false, 0
	for {
		entries, err := l.feed(cursor, lossBatch)
		if errors.Is(err, catalog.ErrClosed) {
			return
		}
		if err != nil {
			wait := min(lossRetryFirst<<min(failed, 20), lossRetryMost)
			failed++
			l.log.Error("this store's feed can't be read: lost blobs are looked for when it can", "again_in", wait, "error", err)
			if !sleep(ctx, wait) {
				return
			}
			continue
		}
		if failed > 0 {
			failed = 0
			l.anew()
		}
		for _, e := range entries {
			cursor = e.N
			if started && e.State == catalog.Gone {
				l.lost(e.Digest)
			}
		}
		if len(entries) == lossBatch {
			continue
		}
		started = true
		select {
		case <-ctx.Done():
			return
		case <-l.news:
		}
	}
}

// watchLosses has the projects scanned that name a blob which went.
func (r *Reconciler) watchLosses(ctx context.Context) {
	(&losses{feed: r.cat.Feed, news: r.feedNews, lost: r.lost, log: r.log,
		anew: func() { r.scans.everything(r.cfg.State.View(), r.cfg.Site) }}).watch(ctx)
}
