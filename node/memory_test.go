package node

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestGiveBack_OnceAfterTheStart: nothing is given back before the node is ready
// and has settled; then it is once, and the part goes on until the node stops.
func TestGiveBack_OnceAfterTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		started, ended := make(chan struct{}), make(chan error, 1)
		var given atomic.Int32
		go func() { ended <- giveBack(started, func() { given.Add(1) })(ctx) }()
		<-time.After(time.Hour)
		synctest.Wait()
		if given.Load() != 0 {
			t.Fatal("given back before the node is ready")
		}
		close(started)
		<-time.After(settled - time.Millisecond)
		synctest.Wait()
		if given.Load() != 0 {
			t.Fatal("given back while it settles")
		}
		<-time.After(time.Millisecond)
		synctest.Wait()
		if given.Load() != 1 {
			t.Fatalf("given back %d times when it has settled", given.Load())
		}
		<-time.After(time.Hour)
		synctest.Wait()
		if given.Load() != 1 || len(ended) != 0 {
			t.Fatalf("an hour later: given back %d times, ended %d", given.Load(), len(ended))
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
}

// TestGiveBack_StoppedBefore: a node that stops while it starts waits for nothing.
func TestGiveBack_StoppedBefore(t *testing.T) {
	for name, ready := range map[string]bool{"before it is ready": false, "while it settles": true} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			started, ended := make(chan struct{}), make(chan error, 1)
			if ready {
				close(started)
			}
			began := time.Now()
			go func() { ended <- giveBack(started, func() { t.Errorf("%s: given back", name) })(ctx) }()
			<-time.After(settled / 2)
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(began) != settled/2 {
				t.Errorf("%s: %v after %s", name, err, time.Since(began))
			}
		})
	}
}

// TestSoftLimit: a node with little in use has the limit, one with much has room
// enough that a collection does not follow the other.
func TestSoftLimit(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ live, want uint64 }{
		{0, 256}, {150, 256}, {179, 256}, {180, 288}, {300, 448}, {1000, 1440},
	} {
		if got := softLimit(c.live * mib); uint64(got) != c.want*mib {
			t.Errorf("%d MiB live: limit %d MiB, want %d", c.live, got/mib, c.want)
		}
	}
	if live() == 0 {
		t.Error("nothing is live")
	}
}
