package transfer_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/transfer/swarm"
)

// stuck are blobs that do not come here until it is over.
type stuck struct {
	which func(swarm.Want) bool
	over  chan struct{}
}

// slowly fetches as the swarm does, but for what is stuck.
type slowly struct {
	*swarm.Swarm
	n *site
}

// Fetch implements transfer.Fetcher.
func (s slowly) Fetch(ctx context.Context, w swarm.Want) error {
	if stuck := s.n.stuck.Load(); stuck != nil && stuck.which(w) {
		s.n.held.Add(1)
		defer s.n.held.Add(-1)
		select {
		case <-stuck.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := s.Swarm.Fetch(ctx, w)
	if seen := s.n.seen.Load(); seen != nil && err == nil {
		(*seen)(w)
	}
	return err
}

// sticks makes some blobs not come here, as over a link that is full, until the
// function it returns is called.
func (n *site) sticks(which func(swarm.Want) bool) (end func()) {
	s := &stuck{which, make(chan struct{})}
	n.stuck.Store(s)
	return sync.OnceFunc(func() { n.stuck.CompareAndSwap(s, nil); close(s.over) })
}

// tag gives where a tag points; empty: nowhere.
func (n *site) tag(pid identity.ProjectID, repo, tag string) digest.Digest {
	info, err := n.store.Catalog().Tag(pid, repo, tag)
	if err != nil {
		return ""
	}
	return info.Digest
}

// class gives how a blob is held; 0: it is not.
func (n *site) class(d digest.Digest) catalog.Class {
	row, err := n.store.Catalog().Blob(d)
	if err != nil || row.State != catalog.Present {
		return 0
	}
	return row.Class
}

// holds: all blobs of the image are here for good, and readable.
func (n *site) holds(img image) bool {
	for _, d := range img.blobs {
		if c := n.class(d); c != catalog.Placed && c != catalog.Home {
			return false
		}
		b, err := n.store.Open(context.Background(), d)
		if err != nil {
			return false
		}
		v := d.Verifier()
		buf := new(bytes.Buffer)
		_, err = buf.ReadFrom(b)
		_ = b.Close()
		_, _ = v.Write(buf.Bytes())
		if err != nil || !v.Verified() {
			return false
		}
	}
	return true
}

// eventually waits for a condition; what says what was hoped for.
func eventually(t testing.TB, what string, cond func() bool) time.Duration {
	t.Helper()
	begun := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(begun) > within {
			t.Fatalf("not within %s: %s", within, what)
		}
		<-tick.C
	}
	return time.Since(begun)
}

// scanned is how many scans of projects there were here.
func (n *site) scanned() (count uint64) {
	n.t.Helper()
	families, err := n.counts.Gather()
	must(n.t, err)
	for _, f := range families {
		if f.GetName() == "portolan_transfer_scan_seconds" {
			count = f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	return count
}

// equal: the catalogues of all these sites agree on the project.
func equal(pid identity.ProjectID, sites ...*site) bool {
	var want string
	for i, n := range sites {
		v, err := n.store.Catalog().Vector(pid)
		if err != nil {
			return false
		}
		c, err := n.store.Catalog().Check(pid)
		if err != nil {
			return false
		}
		raw, _ := v.MarshalBinary()
		got := fmt.Sprintf("%x %v", raw, c)
		if i == 0 {
			want = got
		} else if got != want {
			return false
		}
	}
	return true
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
