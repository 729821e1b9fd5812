package transfer_test

import (
	"crypto/rand"
	"flag"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portolan/portolan/consensus/command"
	"github.com/portolan/portolan/node/store/catalog"
)

var (
	smallImages = flag.Int("small.images", 400, "images of BenchmarkSmallImages")
	smallSites  = flag.Int("small.sites", 1, "receivers of BenchmarkSmallImages")
	smallRTT    = flag.Duration("small.rtt", 80*time.Millisecond, "round trip between the sites of BenchmarkSmallImages")
)

// BenchmarkSmallImages pushes images of 5 blobs of 10 KB at one site, with a rule
// that wants them at the others, a round trip away. All nodes are in this
// process: CPU-ms is what an image costs all of them together, the push
// included.
func BenchmarkSmallImages(b *testing.B) {
	for b.Loop() {
		names := []string{"fra"}
		for i := range *smallSites {
			names = append(names, fmt.Sprintf("far%d", i))
		}
		bed := newBed(b, names, func(bed *bed) { bed.far = *smallRTT / 2 })
		fra := bed.site("fra")
		pid := bed.project("prod")
		bed.rule(&command.Rule{Name: "everywhere", Projects: []string{"prod"}, AllSites: true})
		begun, used := time.Now(), cpuUsed(b)
		var g errgroup.Group
		g.SetLimit(32) // clients
		images := make([]image, *smallImages)
		for i := range images {
			g.Go(func() error {
				layers := make([][]byte, 4)
				for j := range layers {
					layers[j] = make([]byte, 10_000)
					_, _ = rand.Read(layers[j])
				}
				images[i] = fra.pushLayers(pid, fmt.Sprintf("app%d", i%20), "", []string{fmt.Sprint("v", i)}, layers...)
				return nil
			})
		}
		must(b, g.Wait())
		pushed := time.Since(begun)
		for _, n := range bed.nodes[1:] {
			for _, img := range images {
				eventually(b, n.name+" has all", func() bool {
					for _, d := range img.blobs {
						if n.class(d) != catalog.Placed {
							return false
						}
					}
					return true
				})
			}
		}
		took := time.Since(begun)
		b.ReportMetric(float64(*smallImages)/took.Seconds(), "images/s")
		b.ReportMetric(float64(*smallImages)/pushed.Seconds(), "pushes/s")
		b.ReportMetric(float64(cpuUsed(b)-used)/float64(time.Millisecond)/float64(*smallImages), "CPU-ms/image")
		for _, n := range bed.nodes {
			n.stop()
		}
	}
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
func farFrom(t testing.TB, to string, delay time.Duration) int {
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
			wg.Go(func() { carryLate(out, in, delay) })
			wg.Go(func() { carryLate(in, out, delay) })
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// carryLate copies until the connection ends.
func carryLate(to io.WriteCloser, from io.ReadCloser, delay time.Duration) {
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
