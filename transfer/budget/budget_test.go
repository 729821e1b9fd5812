package budget

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portolan/portolan/node/identity"
)

var far = identity.NodeID{1}

// pour sends without end and counts; call it in a bubble.
func pour(ctx context.Context, c Class, sent *[Classes]atomic.Int64, send func(context.Context, Class, int) (int, error)) {
	go func() {
		for {
			n, err := send(ctx, c, 64<<10)
			if err != nil {
				return
			}
			sent[c].Add(int64(n + n/overhead))
			if n == 0 {
				panic("nothing was granted")
			}
		}
	}()
}

// near fails unless got is within share of want.
func near(t *testing.T, what string, got, want, share float64) {
	t.Helper()
	if math.Abs(got-want) > share*want {
		t.Errorf("%s: %.0f, want %.0f within %.0f %%", what, got, want, share*100)
	}
}

func TestLink_KeepsItsRate(t *testing.T) {
	for _, mbit := range []float64{1, 20, 1000} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			l := new(link)
			l.set(mbit * bytesPerMbit)
			var streams [30][Classes]atomic.Int64
			for i := range streams {
				pour(ctx, Replication, &streams[i], func(ctx context.Context, c Class, n int) (int, error) {
					n = l.least(n)
					return n, l.wait(ctx, c, n)
				})
			}
			sum := func() (n int64) {
				for i := range streams {
					n += streams[i][Replication].Load()
				}
				return n
			}
			for range 10 { // every second, not only on the average
				before := sum()
				time.Sleep(time.Second)
				synctest.Wait()
				near(t, "bytes in a second", float64(sum()-before), mbit*bytesPerMbit, 0.03)
			}
			least, most := streams[0][Replication].Load(), int64(0)
			for i := range streams {
				n := streams[i][Replication].Load()
				least, most = min(least, n), max(most, n)
			}
			if most > least*2 {
				t.Errorf("streams of one class got %d to %d bytes", least, most)
			}
			cancel()
			synctest.Wait()
		})
	}
}

func TestLink_ChangesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := new(link)
		l.set(1000 * bytesPerMbit)
		var sent [Classes]atomic.Int64
		pour(ctx, Replication, &sent, func(ctx context.Context, c Class, n int) (int, error) {
			n = l.least(n)
			return n, l.wait(ctx, c, n)
		})
		for _, mbit := range []float64{5, 100, 1, 20} {
			l.set(mbit * bytesPerMbit)
			before := sent[Replication].Load()
			time.Sleep(2 * time.Second)
			synctest.Wait()
			near(t, "bytes in two seconds after a change", float64(sent[Replication].Load()-before), 2*mbit*bytesPerMbit, 0.05)
		}
		blocked := make(chan error)
		cancel()
		synctest.Wait()
		l.set(1)
		go func() { blocked <- errors.Join(l.wait(t.Context(), Client, 1<<20), l.wait(t.Context(), Client, 1<<20)) }()
		synctest.Wait()
		l.set(0)
		if err := <-blocked; err != nil {
			t.Errorf("who waits when a cap goes: %v", err)
		}
	})
}

func TestLink_ClientsFirstAndEachClassItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := new(link)
		const rate = 20 * bytesPerMbit
		l.set(rate)
		var sent [Classes]atomic.Int64
		take := func(ctx context.Context, c Class, n int) (int, error) {
			n = l.least(n)
			return n, l.wait(ctx, c, n)
		}
		for c := range Classes {
			pour(ctx, c, &sent, take)
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		for c := range sent {
			n := sent[c].Load()
			if float64(n) < 0.05*rate*30 {
				t.Errorf("class %d got %.1f %% of the link", c, float64(n)/rate/30*100)
			}
		}
		if float64(sent[Client].Load()) < 0.8*rate*30 {
			t.Errorf("clients got %.1f %% of the link", float64(sent[Client].Load())/rate/30*100)
		}
		cancel()
		synctest.Wait()
	})
}

func TestLink_AClientNeverWaitsForABackfill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		l := new(link)
		l.set(20 * bytesPerMbit)
		var sent [20][Classes]atomic.Int64
		for i := range sent {
			pour(ctx, Replication, &sent[i], func(ctx context.Context, c Class, n int) (int, error) {
				n = l.least(n)
				return n, l.wait(ctx, c, n)
			})
		}
		time.Sleep(5 * time.Second)
		begun := time.Now()
		if err := l.wait(t.Context(), Client, l.least(64<<10)); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(begun); waited > 20*time.Millisecond { // two pieces
			t.Errorf("a client waited %s behind a backfill", waited)
		}
		cancel()
		synctest.Wait()
	})
}

// TestLink_ALateTimerIsMadeUpFor: a machine that is busy wakes nobody in time; what
// waits gets its due all the same, up to what no second would notice.
func TestLink_ALateTimerIsMadeUpFor(t *testing.T) {
	const rate = 20 * bytesPerMbit
	for _, c := range []struct {
		late time.Duration
		want float64 // seconds' worth that may go at once
	}{
		{10 * time.Millisecond, 0.01},
		{35 * time.Millisecond, 0.035},
		{time.Second, lateBurst.Seconds()},
	} {
		l := &link{rate: rate, at: time.Now()}
		l.waiting[Replication] = []*turn{{n: 1}}
		l.refill(l.at.Add(c.late))
		near(t, "after "+c.late.String(), l.tokens, c.want*rate, 0.001)
		idle := &link{rate: rate, at: l.at}
		idle.refill(idle.at.Add(c.late))
		near(t, "and nobody waits", idle.tokens, min(c.want, burst.Seconds())*rate, 0.001)
	}
}

func TestLink_AWaiterThatLeavesTakesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(link)
		l.set(bytesPerMbit)
		if err := l.wait(t.Context(), Scrub, 1<<17); err != nil { // a second's debt
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() { gone <- l.wait(ctx, Client, 1<<20) }()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("wait: %v", err)
		}
		begun := time.Now()
		if err := l.wait(t.Context(), Scrub, 1); err != nil || time.Since(begun) > 1200*time.Millisecond {
			t.Errorf("after %s: %v", time.Since(begun), err)
		}
	})
}

func TestBudgets_LeaveOtherLinksAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New("fra", func(id identity.NodeID) string {
			if id == far {
				return "sgp"
			}
			return "nyc"
		})
		b.to["sgp"] = new(link)
		b.to["sgp"].set(20 * bytesPerMbit)
		ctx, cancel := context.WithCancel(t.Context())
		var sent [Classes]atomic.Int64
		pour(ctx, Replication, &sent, func(ctx context.Context, c Class, n int) (int, error) { return b.Send(ctx, far, c, n) })
		begun := time.Now()
		for range 10_000 {
			if n, err := b.Send(ctx, identity.NodeID{2}, Replication, 64<<10); err != nil || n != 64<<10 {
				t.Fatalf("to another site: %d, %v", n, err)
			}
			if n, err := b.Receive(ctx, Replication, 64<<10); err != nil || n != 64<<10 {
				t.Fatalf("from another site: %d, %v", n, err)
			}
		}
		if waited := time.Since(begun); waited != 0 {
			t.Errorf("other links waited %s", waited)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		near(t, "bytes to sgp", float64(sent[Replication].Load()), 10*20*bytesPerMbit, 0.03)
		cancel()
		synctest.Wait()
	})
}
