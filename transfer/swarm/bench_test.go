package swarm

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/transfer/peer"
)

// cpu is what this process has used of processors.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// warm makes the kernel have so much memory to cache a file in: a virtual machine
// gets it from its host page by page, which costs more than all that is measured
// here (2 to 3 CPU-s/GB).
func warm(b *testing.B, size int) {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "scratch"))
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, mib)
	for range size / mib {
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkFetch moves a large blob from one node to another over loopback, both
// in this process: CPU-s/GB is what both ends take together, of the data plane
// and the stores alone.
func BenchmarkFetch(b *testing.B) {
	const size = 256 * mib
	l := newLab(b)
	from, to := l.start(), l.start()
	l.held(from)
	w := from.putLarge(size)
	b.SetBytes(size)
	b.ReportAllocs()
	b.ResetTimer()
	used := time.Duration(0)
	for range b.N {
		b.StopTimer()
		warm(b, size)
		b.StartTimer()
		before := cpu(b)
		if err := to.swarm.Fetch(b.Context(), w); err != nil {
			b.Fatal(err)
		}
		used += cpu(b) - before
		b.StopTimer()
		to.stop()
		to = l.start() // with an empty store
		b.StartTimer()
	}
	b.ReportMetric(used.Seconds()/(float64(b.N)*size/1e9), "CPU-s/GB")
}

// trickle is a stream that carries so much a second.
type trickle struct {
	stream
	ctx   context.Context
	limit *rate.Limiter
}

func (s *trickle) Write(p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		part := p[n:min(len(p), n+s.limit.Burst())]
		if err = s.limit.WaitN(s.ctx, len(part)); err == nil {
			_, err = s.stream.Write(part)
			n += len(part)
		}
	}
	return n, err
}

// BenchmarkFirstByte is how long a client of a cold blob waits for its first byte
// over 10 Mbit/s, without sub-states (as from a holder that knows of none) and with
// them, for units of both ends of the range.
func BenchmarkFirstByte(b *testing.B) {
	for _, unit := range []string{"1 MiB", "8 MiB"} {
		for _, how := range []string{"units", "sub-states"} {
			b.Run(unit+"/"+how, func(b *testing.B) {
				l := newLab(b)
				from, to := l.start(), l.start()
				l.held(from)
				var (
					src  source = supply{from.swarm}
					open        = to.swarm.OpenBlob
					w    Want
				)
				if unit == "8 MiB" { // of 9 GiB, which need not fit a disk
					o := newFar(b, from)
					open = to.swarm.passThrough
					src, w = o, Want{Digest: o.rec.Digest, Size: o.size, PID: project}
				} else {
					w = from.put(content(30 * mib))
				}
				srv := newServer(from.config(slog.New(slog.DiscardHandler)), src, from.swarm.metrics)
				srv.crowds = from.swarm.crowds
				if how == "units" {
					srv.split = nil
				}
				from.host.Handle(Protocol, func(ctx context.Context, node identity.NodeID, st *peer.Stream) {
					srv.handle(ctx, node, &trickle{stream: st, ctx: ctx, limit: rate.NewLimiter(10e6/8, 8<<10)})
				})
				took := time.Duration(0)
				for range b.N {
					start := time.Now()
					ctx, cancel := context.WithCancel(b.Context())
					r, err := open(ctx, w)
					l.check(err)
					r.(*reader).Early()
					if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
						b.Fatal(err)
					}
					took += time.Since(start)
					b.StopTimer()
					cancel()
					_ = r.Close()
					eventually(b, "the flight ends", func() bool { return len(to.swarm.Progress()) == 0 && len(to.swarm.passing) == 0 })
					b.StartTimer()
				}
				b.ReportMetric(took.Seconds()*1e3/float64(b.N), "ms-to-first-byte")
			})
		}
	}
}
