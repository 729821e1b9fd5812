package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/portolan/portolan/test/bench/figures"
)

// sizes scale the cases. Each is a flag.
type sizes struct {
	Rounds        int           // of every case
	BlobBytes     int           // of large blobs
	Downloads     int           // of a large blob, per round and client
	SmallPushes   int           // of 4 KiB blobs, per round
	For           time.Duration // of loads that are timed, per round
	Tags          int           // in the large repository
	Repositories  int           // in the catalogue
	IdleManifests int           // with ten tags each
	Idle          time.Duration // before memory is read
	Mixed         time.Duration
	MixedClients  int
}

// full are the sizes that the targets are about.
var full = sizes{Rounds: 5, BlobBytes: 200e6, Downloads: 5, SmallPushes: 4000, For: 5 * time.Second, Tags: 100_000,
	Repositories: 20_000, IdleManifests: 100_000, Idle: time.Minute, Mixed: time.Minute, MixedClients: 500}

// quick shows within minutes whether a change has cost anything.
var quick = sizes{Rounds: 3, BlobBytes: 200e6, Downloads: 2, SmallPushes: 800, For: 2 * time.Second, Tags: 4000,
	Repositories: 1000, IdleManifests: 4000, Idle: 10 * time.Second, Mixed: 10 * time.Second, MixedClients: 500}

// bench is one run.
type bench struct {
	sizes
	portolan, registry string // binaries
	dir                string // on the disk to measure
	memory             string // on tmpfs, or empty
	password           string
	rows               []row
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == bare { // a signal ends it
		fmt.Fprintln(os.Stderr, "bench:", runBare(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	b := &bench{sizes: full, password: newPassword()}
	name := "full"
	for _, a := range args {
		if a == "-quick" || a == "--quick" {
			b.sizes, name = quick, "quick"
		}
	}
	f := flag.NewFlagSet("bench", flag.ExitOnError)
	f.Bool("quick", false, "small sizes, minutes instead of half an hour")
	only := f.String("run", "", "only the groups of cases whose name matches this regular `expression`")
	f.StringVar(&b.portolan, "portolan", "bin/portolan", "our `binary`")
	f.StringVar(&b.registry, "registry", "", "distribution's `binary` (default: the one that test/tools peers installs)")
	f.StringVar(&b.dir, "dir", os.TempDir(), "`directory` on the disk to measure")
	f.StringVar(&b.memory, "tmpfs", "/dev/shm", "`directory` on a tmpfs; empty: leave these cases out")
	out := f.String("out", "", "`file` for the results (default test/bench/results/full.json or quick.json)")
	f.IntVar(&b.Rounds, "rounds", b.Rounds, "how often each case runs")
	f.IntVar(&b.BlobBytes, "blob-bytes", b.BlobBytes, "size of large blobs")
	f.IntVar(&b.Downloads, "downloads", b.Downloads, "downloads of a large blob per round and client")
	f.IntVar(&b.SmallPushes, "small-pushes", b.SmallPushes, "pushes of small blobs per round")
	f.DurationVar(&b.For, "for", b.For, "how long timed loads take")
	f.IntVar(&b.Tags, "tags", b.Tags, "tags in the large repository")
	f.IntVar(&b.Repositories, "repositories", b.Repositories, "repositories in the catalogue")
	f.IntVar(&b.IdleManifests, "idle-manifests", b.IdleManifests, "manifests, of ten tags each, when idle memory is read")
	f.DurationVar(&b.Idle, "idle", b.Idle, "how long after the start idle memory is read")
	f.DurationVar(&b.Mixed, "mixed", b.Mixed, "how long the mixed load takes")
	f.IntVar(&b.MixedClients, "mixed-clients", b.MixedClients, "clients of the mixed load")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *out == "" {
		*out = filepath.Join("test", "bench", "results", name+".json")
	}
	if b.registry == "" {
		cache, err := cacheDir()
		if err != nil {
			return err
		}
		b.registry = filepath.Join(cache, "tools", "registry")
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	for _, bin := range []string{b.portolan, b.registry} {
		if _, err := os.Stat(bin); err != nil {
			return fmt.Errorf("%w: use make bench, which builds both", err)
		}
	}
	if b.portolan, err = filepath.Abs(b.portolan); err != nil {
		return err
	}
	if !onMemory(b.memory) {
		b.memory = ""
	}
	begin := time.Now()
	for _, g := range groups {
		if !match.MatchString(g.name) {
			continue
		}
		now := time.Now()
		fmt.Fprintf(os.Stderr, "%s  %s\n", now.Format(time.TimeOnly), g.name)
		if err := b.group(ctx, g); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		fmt.Fprintf(os.Stderr, "          took %s, %s so far\n", time.Since(now).Round(time.Second), time.Since(begin).Round(time.Second))
	}
	if err := table(os.Stdout, b.rows); err != nil {
		return err
	}
	return save(*out, b.rows, *only != "")
}

// group runs one, and notes in its rows how busy the machine was.
func (b *bench) group(ctx context.Context, g group) error {
	m, err := figures.Now()
	if err != nil {
		return err
	}
	first := len(b.rows)
	if err := g.run(b, ctx); err != nil {
		return err
	}
	busy, err := m.Others() // both registries have ended on both occasions
	if err != nil {
		return err
	}
	busy = round(busy, 2)
	for i := range b.rows[first:] {
		b.rows[first+i].Others = &busy
	}
	return nil
}

// cacheDir is where test/tools puts what it builds.
func cacheDir() (string, error) {
	if c := os.Getenv("CACHE"); c != "" {
		return c, nil
	}
	c, err := os.UserCacheDir()
	return filepath.Join(c, "portolan"), err
}

// tmpfsMagic is statfs's type of a tmpfs.
const tmpfsMagic = 0x01021994

func onMemory(dir string) bool {
	var st syscall.Statfs_t
	return dir != "" && syscall.Statfs(dir, &st) == nil && st.Type == tmpfsMagic
}

// speaksTLS says whether our binary can: the cases over TLS need it.
func (b *bench) speaksTLS(ctx context.Context) bool {
	help, err := exec.CommandContext(ctx, b.portolan, "serve", "--help").Output()
	return err == nil && strings.Contains(string(help), "--tls-cert")
}

// report adds a row; it is printed at once, too: a full run takes long.
func (b *bench) report(name, unit string, t *target, s samples) {
	r := newRow(name, unit, t, s)
	b.rows = append(b.rows, r)
	fmt.Fprintf(os.Stderr, "          %s: %g / %s %s, ratio %s %s\n", r.Name, r.Ours, number(r.Peer), r.Unit, number(r.Ratio), r.Target)
}
