package transfer_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/portolan/portolan/node/identity"
	"github.com/portolan/portolan/node/store/catalog"
	"github.com/portolan/portolan/test/bench/figures"
)

var (
	bootstrapEntries = flag.Int("bootstrap.entries", 20_000, "entries that BenchmarkBootstrap's new site takes in")
	bootstrapProfile = flag.String("bootstrap.cpuprofile", "", "file for a CPU profile of what BenchmarkBootstrap measures")
	bootstrapOut     = flag.String("bootstrap.out", "", "file that gets BenchmarkBootstrap's figures, if it takes in as many entries as the targets are for")
)

// BenchmarkBootstrap measures how long a new site takes until it has all entries
// of the one that is there, over a real connection on loopback: half of them
// manifests with their bytes, half tags, in 100 repositories of ten projects.
func BenchmarkBootstrap(b *testing.B) {
	bed := newBed(b, []string{"fra"})
	fra := bed.site("fra")
	pids := make([]identity.ProjectID, 10)
	for i := range pids {
		pids[i] = bed.project(fmt.Sprint("project", i))
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 256 { // each transaction is synced: many share one
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= *bootstrapEntries/2 {
					return
				}
				body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%s","size":7},"layers":[]}`, digest.FromString(fmt.Sprint("config", i)))
				p := catalog.Put{PID: pids[i%len(pids)], Repo: fmt.Sprint("team/app", i/len(pids)%10), Digest: digest.FromBytes(body), Size: int64(len(body)), Bytes: body,
					MediaType: "application/vnd.oci.image.manifest.v1+json", Tags: []string{fmt.Sprint("v1.", i)}, Home: "fra", Actor: "user:admin"}
				for l := range 3 {
					p.Refs = append(p.Refs, catalog.Ref{Digest: digest.FromString(fmt.Sprint("layer", l, i)), Size: 1 << 20, Kind: catalog.RefBlob})
				}
				if _, err := fra.store.Catalog().PutManifest(context.Background(), p); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for i := 0; b.Loop(); i++ {
		before, peak := watchMemory(b)
		stop := startProfile(b)
		machine, err := figures.Now()
		must(b, err)
		begun, busy := time.Now(), processorTime(b)
		n := bed.addSite(fmt.Sprint("new", i))
		for _, pid := range pids {
			for !equal(pid, fra, n) {
				select {
				case <-time.After(20 * time.Millisecond):
				case <-b.Context().Done():
					b.Fatal("not equal")
				}
			}
		}
		took, used := time.Since(begun), processorTime(b)-busy
		others, err := machine.Others()
		must(b, err)
		stop()
		most := peak()
		saveBootstrap(b, took, used, most, others)
		b.ReportMetric(took.Seconds(), "s")
		b.ReportMetric(float64(*bootstrapEntries)/took.Seconds(), "entries/s")
		b.ReportMetric(used.Seconds(), "CPU-s")
		b.ReportMetric(before, "MiB-before")
		b.ReportMetric(most, "MiB-peak")
	}
}

const (
	// bootstrapFull entries are to be there within bootstrapWithin seconds, and a site
	// is to take no more than bootstrapMemory MiB meanwhile.
	bootstrapFull   = 1_000_000
	bootstrapWithin = 60
	bootstrapMemory = 300
)

// saveBootstrap writes a run's figures to the file of the results.
func saveBootstrap(b *testing.B, took, used time.Duration, most, others float64) {
	if *bootstrapOut == "" || *bootstrapEntries != bootstrapFull {
		return
	}
	const name = "a new site takes 1,000,000 entries in, loopback: "
	note := fmt.Sprintf("both sites in one process on %d cores", runtime.NumCPU())
	rows := []figures.Row{
		figures.New(name+"time", took.Seconds(), "s", figures.AtMost(bootstrapWithin), note),
		figures.New(name+"processor time of both", used.Seconds(), "CPU-s", nil, note),
		figures.New(name+"most memory of both", most, "MiB", figures.AtMost(2*bootstrapMemory), note),
	}
	for i := range rows {
		rows[i].Others = &others
	}
	must(b, figures.Save(*bootstrapOut, rows))
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// startProfile profiles from here to the call of what it gives, if a file is named: the
// pushes before would hide the exchange in a profile of the whole test.
func startProfile(b *testing.B) (stop func()) {
	if *bootstrapProfile == "" {
		return func() {}
	}
	f, err := os.Create(*bootstrapProfile)
	must(b, err)
	must(b, pprof.StartCPUProfile(f))
	return func() {
		pprof.StopCPUProfile()
		must(b, f.Close())
	}
}

// watchMemory gives this process's anonymous memory now and, by the function, its peak
// until then, in MiB. Both sites are in it.
func watchMemory(b *testing.B) (before float64, peak func() float64) {
	debug.FreeOSMemory() // what the pushes left
	before = anonymous(b)
	most, stop := before, make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, anonymous(b))
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	})
	return before, func() float64 {
		close(stop)
		watching.Wait()
		return most
	}
}

func anonymous(b *testing.B) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Error(err)
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			var kib float64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				b.Error(err)
			}
			return kib / 1024
		}
	}
	b.Error("this process's status does not say its anonymous memory")
	return 0
}
