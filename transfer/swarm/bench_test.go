package swarm

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
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
