package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portolan/portolan/test/cluster"
	"github.com/portolan/portolan/test/faultfs"
)

// node is one site, a mesh of its own.
type node struct {
	base    int // port
	url     string
	options []string
}

func newNode(t *testing.T) node {
	base := cluster.BasePort(t, 4)
	return node{base: base, url: fmt.Sprintf("http://127.0.0.1:%d", base)}
}

func (n node) start(t *testing.T, data string) *cluster.Process {
	t.Helper()
	port := func(i int) string { return strconv.Itoa(n.base + i) }
	return cluster.Start(t, []string{"PORTOLAN_ADMIN_PASSWORD=" + password}, append([]string{"serve", "--site", "here", "--data", data,
		"--http", "127.0.0.1:" + port(0), "--bind", "127.0.0.1", "--advertise", "127.0.0.1",
		"--gossip-port", port(1), "--control-port", port(2), "--data-port", port(3)}, n.options...)...)
}

// ready waits until the node takes edits as well.
func (n node) ready(t *testing.T, p *cluster.Process) {
	t.Helper()
	c := newClient(n.url, "library/ready", nil, nil)
	defer c.http.CloseIdleConnections()
	cluster.Eventually(t, cluster.Patience, "the node is ready", func() error {
		select {
		case <-p.Exited():
			t.Fatalf("the node does not start: %v\n%s", p.Err(), p.Output())
		default:
		}
		_, _, err := c.do(t.Context(), http.MethodGet, "/readyz", nil, nil, http.StatusOK)
		return err
	})
}

const nClients = 4

func newClients(n node, seed uint64, acks *atomic.Int64) []*client {
	var out []*client
	for i := range nClients {
		out = append(out, newClient(n.url, fmt.Sprintf("library/c%d", i), rand.New(rand.NewPCG(seed, uint64(i))), acks))
	}
	return out
}

// all lets all clients do something at once.
func all(t *testing.T, clients []*client, what func(*client) error) {
	t.Helper()
	var running sync.WaitGroup
	for _, c := range clients {
		running.Go(func() {
			if err := what(c); err != nil {
				t.Errorf("%s: %v", c.repo, err)
			}
		})
	}
	running.Wait()
}

// TestPowerCuts takes the power while clients push, at any operation of the disk,
// also in a start. What every client was told holds; the node starts without
// help.
func TestPowerCuts(t *testing.T) {
	faultfs.Require(t)
	seed := faultfs.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 4))
	n := newNode(t)
	var acks atomic.Int64
	clients := newClients(n, seed, &acks)
	disk := faultfs.Empty()
	for round := range faultfs.Rounds(6) {
		f := faultfs.New(disk)
		f.NamedBySync = []string{".sst"} // see node/store/DESIGN.md
		dir, unmount := f.MountT(t)
		data := filepath.Join(dir, "data")

		if round%2 == 0 { // in the start, the first one as well
			cut := f.CutAt(1 + rng.IntN(150))
			p := n.start(t, data)
			probe := newClient(n.url, "library/ready", nil, nil)
			cluster.Eventually(t, cluster.Patience, "the node starts or is cut off", func() error {
				select {
				case <-cut:
					return nil
				case <-p.Exited():
					t.Fatalf("the node does not start: %v\n%s", p.Err(), p.Output())
				default:
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second) // nobody answers after the cut
				defer cancel()
				_, _, err := probe.do(ctx, http.MethodGet, "/readyz", nil, nil, http.StatusOK)
				return err
			})
			probe.http.CloseIdleConnections()
			f.CutAt(f.Len()) // a start that needed less
			powerOff(f, p)
		} else {
			p := n.start(t, data)
			n.ready(t, p)
			all(t, clients, func(c *client) error { return c.verify(t.Context(), false) })
			if t.Failed() {
				return
			}
			before := acks.Load()
			cut := f.CutAt(f.Len() + 300 + rng.IntN(1500))
			ctx, cancel := context.WithTimeout(t.Context(), cluster.Patience)
			done := make(chan struct{})
			go func() {
				defer close(done)
				all(t, clients, func(c *client) error { return c.work(ctx) })
			}()
			select {
			case <-cut:
			case <-ctx.Done():
				t.Error("the clients did not come to the cut")
			}
			powerOff(f, p)
			<-done
			cancel()
			t.Logf("round %d: %d steps were acknowledged", round, acks.Load()-before)
		}
		unmount()
		disk = f.Crash(f.Len(), []uint64{0, rng.Uint64(), rng.Uint64(), 0, rng.Uint64(), 1}[round%6])
		if t.Failed() {
			return
		}
	}
	f := faultfs.New(disk)
	dir, unmount := f.MountT(t)
	p := n.start(t, filepath.Join(dir, "data"))
	n.ready(t, p)
	all(t, clients, func(c *client) error { return c.verify(t.Context(), false) })
	p.Stop(t)
	unmount()
}

// powerOff ends a process whose disk has no power any more.
func powerOff(f *faultfs.FS, p *cluster.Process) {
	_ = p.Cmd.Process.Kill()
	f.Unblock() // it can end only now
	<-p.Exited()
}

// TestKills kills the node on an ordinary disk while clients push: what they were
// told holds to the byte, and uploads go on where they were.
func TestKills(t *testing.T) {
	seed := faultfs.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 5))
	n := newNode(t)
	data := filepath.Join(t.TempDir(), "data")
	var acks atomic.Int64
	clients := newClients(n, seed, &acks)
	for round := range faultfs.Rounds(5) {
		p := n.start(t, data)
		n.ready(t, p)
		all(t, clients, func(c *client) error { return c.verify(t.Context(), true) })
		if t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), cluster.Patience)
		until := acks.Load() + 20 + int64(rng.IntN(60))
		done := make(chan struct{})
		go func() {
			defer close(done)
			all(t, clients, func(c *client) error { return c.work(ctx) })
		}()
		cluster.Eventually(t, cluster.Patience, "the clients push", func() error {
			if a := acks.Load(); a < until {
				return fmt.Errorf("%d of %d steps", a, until)
			}
			return nil
		})
		p.Kill()
		<-done
		cancel()
		t.Logf("round %d: killed after %d steps", round, acks.Load())
	}
	p := n.start(t, data)
	n.ready(t, p)
	all(t, clients, func(c *client) error { return c.verify(t.Context(), true) })
}
