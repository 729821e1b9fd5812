package swarm

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/blobs/drivers"
	"github.com/portolan/portolan/test/bucket"
)

// A site that cannot store what it fetches, because its bucket is away, gives it
// to its client to the end all the same, and stores it when the bucket is back.
func TestOpenBlob_BucketAway(t *testing.T) {
	server := bucket.Start(t)
	l := newLab(t)
	a := l.start()
	l.held(a)
	var err error
	l.bucket, err = drivers.New(t.Context(), "s3", server.Parameters())
	l.check(err)
	b := l.start()
	b.swarm.storeAgain = 10 * time.Millisecond
	data := content(9*mib + 5)
	w := a.put(data)

	var refused atomic.Int32
	server.OnRequest(func(kind string, _ int, _ *http.Request) int {
		if kind != "put" && kind != "create" {
			return 0
		}
		refused.Add(1)
		return http.StatusForbidden
	})
	if err := b.swarm.Fetch(t.Context(), w); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("nobody reads: %v", err)
	}
	r, err := b.swarm.OpenBlob(t.Context(), w)
	l.check(err)
	got := make([]byte, 8*mib)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	tried := refused.Load()
	eventually(t, "the store is tried again", func() bool { return refused.Load() > tried+2 })
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(got, rest...), data) {
		t.Fatalf("%d of %d bytes after %d attempts to store them: %v", len(got)+len(rest), len(data), refused.Load(), err)
	}
	server.OnRequest(nil)
	eventually(t, "the blob is stored", func() bool { _, err := b.store.Stat(t.Context(), w.Digest); return err == nil })
	l.check(r.Close())
	b.has(data)
}
