package crash

import (
	"context"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/portolan/portolan/test/bucket"
	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/faultfs"
)

// large is sent to a bucket in parts.
const large = 7 << 20

// TestKills_OnABucket kills the node while it sends blobs to its bucket, at two of
// the kinds of requests that a commit is made of (-faultfs.crashes: more). What clients were told holds to the
// byte, and uploads go on where they were: all their bytes are staged.
func TestKills_OnABucket(t *testing.T) {
	server := bucket.Start(t)
	seed := faultfs.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 6))
	n := newNode(t)
	n.options = []string{"--store-driver", "s3"}
	for k, v := range server.Parameters() {
		n.options = append(n.options, "--store-parameters", k+"="+v)
	}
	data := filepath.Join(t.TempDir(), "data")
	var acks atomic.Int64
	clients := newClients(n, seed, &acks)[:2]
	for _, c := range clients {
		c.sizes = []int{4 << 10, 300 << 10, large}
	}
	kinds := []string{"put", "complete", "part", "create"}
	rng.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	for round := range faultfs.Rounds(2) {
		p := n.start(t, data)
		n.ready(t, p)
		all(t, clients, func(c *client) error { return c.verify(t.Context(), true) })
		if t.Failed() {
			return
		}
		kind, at := kinds[round%len(kinds)], 1+rng.IntN(2)
		ctx, cancel := context.WithTimeout(t.Context(), cluster.Patience)
		var killed atomic.Bool
		server.OnRequest(func(asked string, nth int, _ *http.Request) int {
			if asked == kind && nth == at && killed.CompareAndSwap(false, true) {
				_ = p.Cmd.Process.Kill() // the request itself may still arrive
			}
			return 0
		})
		all(t, clients, func(c *client) error { return c.work(ctx) })
		server.OnRequest(nil)
		if !killed.Load() {
			t.Errorf("the clients did not come to request %d of kind %s", at, kind)
		}
		cancel()
		p.Kill()
		t.Logf("round %d: killed at request %d of kind %s, after %d steps", round, at, kind, acks.Load())
	}
	p := n.start(t, data)
	n.ready(t, p)
	all(t, clients, func(c *client) error { return c.verify(t.Context(), true) })
}
