package transfer_test

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store"
	"github.com/portolan/portolan/node/store/catalog"
)

var (
	smallImages  = flag.Int("small.images", 1000, "images of BenchmarkSmallImages")
	smallSites   = flag.Int("small.sites", 1, "receivers of BenchmarkSmallImages")
	smallRTT     = flag.Duration("small.rtt", 80*time.Millisecond, "round trip between the sites of BenchmarkSmallImages")
	smallProfile = flag.String("small.profile", "", "file for a profile of the timed part of BenchmarkSmallImages; its samples have the label site")
)

const (
	smallBlobs = 5 // of an image, its config among them
	smallBytes = 10_000
)

// BenchmarkSmallImages brings images of 5 blobs of 10 KB from one site to others, a
// round trip away, by a rule. They are pushed while the sites can't reach one
// another: the time is that of their entries, hints and blobs, from the moment at
// which the links are joined until each site has all of them, and nothing else's.
//
// All nodes and the links are in this process. CPU-ms/image is what an image
// costs all of them together; what it costs each end is in the profile
// (go tool pprof -tags, or -tagfocus site=fra).
func BenchmarkSmallImages(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		names := []string{"fra"}
		for i := range *smallSites {
			names = append(names, fmt.Sprintf("far%d", i))
		}
		bed := newBed(b, names, func(bed *bed) { bed.far = *smallRTT / 2 })
		fra, receivers := bed.site("fra"), bed.nodes[1:]
		pid := bed.project("prod")
		for _, n := range receivers {
			bed.part(fra, n)
		}
		bed.rule(&command.Rule{Name: "everywhere", Projects: []string{"prod"}, AllSites: true})
		images := make([]image, *smallImages)
		var g errgroup.Group
		g.SetLimit(128) // they share syncs of the disk
		for i := range images {
			g.Go(func() error {
				images[i] = fra.pushSmall(pid, fmt.Sprintf("app%d", i%20), fmt.Sprint("v", i))
				return nil
			})
		}
		must(b, g.Wait())

		used := cpuUsed(b)
		stopProfile := profileTo(b, *smallProfile)
		begun := time.Now()
		b.StartTimer()
		for _, n := range receivers {
			bed.join(fra, n)
		}
		for _, n := range receivers {
			n.awaitImages(len(images))
		}
		b.StopTimer()
		took := time.Since(begun)
		stopProfile()
		used = cpuUsed(b) - used
		for _, n := range receivers {
			for _, img := range images { // it was counted right
				for _, d := range img.blobs {
					if n.class(d) != catalog.Placed {
						b.Fatalf("%s counts all images and has no placed copy of %s", n.name, d)
					}
				}
			}
			idle := n.relayed.idle(begun, begun.Add(took))
			b.ReportMetric(100*idle, n.name+"-idle-%")
		}
		b.ReportMetric(float64(*smallImages)/took.Seconds(), "images/s")
		b.ReportMetric(float64(used)/float64(time.Millisecond)/float64(*smallImages), "CPU-ms/image")
		for _, n := range bed.nodes {
			n.stop()
		}
		b.StartTimer()
	}
}

// pushSmall pushes an image of smallBlobs blobs of smallBytes.
func (n *site) pushSmall(pid identity.ProjectID, repo, tag string) image {
	n.t.Helper()
	var blobs [smallBlobs]v1.Descriptor
	for i := range blobs {
		body := make([]byte, smallBytes)
		_, _ = rand.Read(body)
		d, err := n.store.PutBytes(context.Background(), body, store.Link{PID: pid, Repo: repo})
		must(n.t, err)
		blobs[i] = v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d.Digest, Size: d.Size}
	}
	blobs[0].MediaType = v1.MediaTypeImageConfig
	m := v1.Manifest{MediaType: v1.MediaTypeImageManifest, Config: blobs[0], Layers: blobs[1:]}
	m.SchemaVersion = 2
	return n.put(pid, repo, m, []string{tag})
}

// awaitImages waits until so many artifacts were brought here. It asks the
// reconciler's counter: to look at each blob would cost as much as bringing it.
func (n *site) awaitImages(want int) {
	n.t.Helper()
	const stalled = time.Minute
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	last, moved := -1, time.Now()
	for {
		brought := n.brought()
		if brought >= want {
			return
		}
		if brought != last {
			last, moved = brought, time.Now()
		}
		if time.Since(moved) > stalled {
			n.t.Fatalf("%s has %d of %d images, and none came for %s", n.name, brought, want, stalled)
		}
		<-tick.C
	}
}

// brought is how many artifacts came here whole.
func (n *site) brought() int {
	n.t.Helper()
	families, err := n.counts.Gather()
	must(n.t, err)
	for _, f := range families {
		if f.GetName() == "portolan_transfer_artifacts_total" {
			return int(f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	return 0
}

// profileTo writes a profile until the function that it returns is called.
func profileTo(b *testing.B, name string) (stop func()) {
	b.Helper()
	if name == "" {
		return func() {}
	}
	f, err := os.Create(name)
	must(b, err)
	must(b, pprof.StartCPUProfile(f))
	return func() { pprof.StopCPUProfile(); must(b, f.Close()) }
}

// cpuUsed is what this process has used of processors.
func cpuUsed(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// farFrom relays to an address on loopback as if it were far: whatever is sent
// arrives so much later. It ends with the test.
func farFrom(t testing.TB, to string, delay time.Duration, seen *traffic) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			wg.Go(func() { carryLate(out, in, delay, seen) })
			wg.Go(func() { carryLate(in, out, delay, seen) })
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// carryLate copies until the connection ends.
func carryLate(to io.WriteCloser, from io.ReadCloser, delay time.Duration, seen *traffic) {
	type piece struct {
		b  []byte
		at time.Time
	}
	wire := make(chan piece, 4096)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer to.Close()
		for p := range wire {
			<-time.After(time.Until(p.at))
			seen.add(len(p.b))
			if _, err := to.Write(p.b); err != nil {
				_ = from.Close()
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			wire <- piece{append([]byte(nil), buf[:n]...), time.Now().Add(delay)}
		}
		if err != nil {
			break
		}
	}
	close(wire)
	wg.Wait()
	_ = from.Close()
}

// traffic is what a node's link carried, in windows of idleWindow.
type traffic struct {
	epoch time.Time
	bytes [1 << 15]atomic.Int64
}

// idleWindow is longer than a round trip: a link that carries nothing for so long
// was waiting for somebody.
const idleWindow = 100 * time.Millisecond

func newTraffic() *traffic { return &traffic{epoch: time.Now()} }

func (t *traffic) window(at time.Time) int {
	return min(int(at.Sub(t.epoch)/idleWindow), len(t.bytes)-1)
}

func (t *traffic) add(n int) { t.bytes[t.window(time.Now())].Add(int64(n)) }

// idle is the share of windows between two times in which next to nothing was
// carried: less than a blob.
func (t *traffic) idle(from, to time.Time) float64 {
	first, last := t.window(from), t.window(to)
	n := 0
	for i := first; i <= last; i++ {
		if t.bytes[i].Load() < smallBytes {
			n++
		}
	}
	return float64(n) / float64(last-first+1)
}
